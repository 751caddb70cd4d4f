"""What are item vectors worth in fused lists at all? Vectors that say nothing in their place, all else as it is.

    python benchmarks/quality_control.py scientific|office|beauty|games|ml100k|journey [--seeds 0,1,2]

Each item gets a vector drawn at random. User tower, memory, counts and words are fitted as for MiniLM's and the LLM's
vectors, whose ranks are read from quality_DOMAIN.parquet. What their lists have more than these is what the encoder is
worth beside purchases and words. Run after benchmarks/quality.py; kept and resumed as that is.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from quality import AMAZON, OTHERS, ROOT, Quality, recipe_of
from sasrec import about
from torch import Tensor

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.evaluate.compare import Evaluation
from calrec_lite.files import write_json
from calrec_lite.measure.metrics import Ranks, paired_bootstrap, summarise
from calrec_lite.recommend.readings import READINGS

RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 384  # MiniLM's


class Control(Quality):
    """The lists over random vectors."""

    def measure(self) -> None:
        for seed in self.seeds:
            self._measure_readings("random", seed, {})

    def _vectors(self, source: str) -> Tensor:
        return torch.randn(len(self.domain.catalogue), WIDTH, generator=torch.Generator().manual_seed(0))

    def results(self) -> dict[str, Any]:
        """Lists by each reading, and how much better those over text vectors are, paired by user and seed."""
        protocol, found, evaluation = self.protocol, {}, Evaluation.open(self.folder)
        users = evaluation.ranks(f"random_fast_{self.seeds[0]}")[0]
        for reading in READINGS:
            random = np.stack([evaluation.ranks(f"random_{reading}_{seed}")[1] for seed in self.seeds])
            facts: dict[str, Any] = {"random": dict(summarise(random, protocol.bootstrap, protocol.seed))}
            for source in ("minilm", "untouched"):
                ranks = kept_ranks(self.recipe.target, f"{source}_{reading}", self.seeds, users)
                facts[source] = dict(summarise(ranks, protocol.bootstrap, protocol.seed))
                facts[f"{source} - random"] = paired_bootstrap(random, ranks, protocol.bootstrap, protocol.seed)
                facts[f"{source}_vs_random"] = facts[source]["ndcg@10"]["value"] / facts["random"]["ndcg@10"]["value"]
            found[reading] = facts
        return {"domain": self.domain.name, "seeds": list(self.seeds), "users": len(self.cases.users), **found}


def kept_ranks(name: str, system: str, seeds: Sequence[int], users: Sequence[str]) -> Ranks:
    """(S, U) of a system of quality_NAME.parquet, in the order of `users`; infinite where the list has no target."""
    columns = [f"{system}_{seed}" for seed in seeds]
    table = pq.read_table(RESULTS / f"quality_{name}.parquet", columns=["user", *columns])
    place = {user: row for row, user in enumerate(table["user"].to_pylist())}
    rows = [place[user] for user in users]
    ranks = [table[column].to_numpy().astype(np.float64)[rows] for column in columns]
    return np.nan_to_num(np.stack(ranks), nan=np.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=[*AMAZON, *OTHERS])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "control")
    parser.add_argument("--seeds", default="0,1,2", help="of user tower and weights")
    options = parser.parse_args()
    quiet_libraries()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    control = Control(recipe_of(options.domain, options.data, None), options.runs, None, seeds, 0)
    control.measure()
    command = f"python benchmarks/quality_control.py {options.domain} --seeds {options.seeds}"
    results = {**about(command), **control.results()}
    out = RESULTS / f"quality_control_{options.domain}.json"
    write_json(out, results)
    pq.write_table(control.all_ranks(), out.with_suffix(".parquet"), compression="zstd")
    ratios = {r: {key: value for key, value in results[r].items() if "_vs_" in key} for r in READINGS}
    print(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
