"""`python tests/campaign/run.py --inputs 10000 --seed 0 --out benchmarks/results/campaign.json`; goes on after a stop.

`--only N` runs the input N of a seed alone and shows all it said.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from calrec_lite import __version__  # noqa: E402
from tests.campaign.kills import kill_rounds  # noqa: E402
from tests.campaign.mutation import mutations, prepare_process  # noqa: E402
from tests.campaign.outcome import attempt  # noqa: E402
from tests.campaign.world import build  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=0, help="run so many mutated inputs")
    parser.add_argument("--kills", type=int, default=0, help="kill so many commands at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one input to run and show")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "campaign.json")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "calrec-lite-campaign")
    options = parser.parse_args()
    maker = multiprocessing.get_context("spawn").Process(target=build, args=(options.work,))
    maker.start()  # so that this process computes nothing: what is killed are forks of it
    maker.join()
    world = build(options.work)
    if options.only is not None:
        prepare_process(world)
        print(attempt(world, options.seed, options.only, show=True))
        return
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    results |= {"seed": options.seed, "version": __version__, "date": time.strftime("%Y-%m-%d")}
    if options.inputs:
        results |= mutations(world, options.seed, options.inputs, world.folder / "inputs.jsonl")
        _write(options.out, results)
    if options.kills:
        prepare_process(world)
        results |= kill_rounds(world, options.seed, options.kills, world.folder / "kills.jsonl")
        _write(options.out, results)


def _write(out: Path, results: dict) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
