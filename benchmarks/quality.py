"""Are the lists better than counts and SASRec, and what is the LLM worth in them? One domain a call, all test users.

    python benchmarks/quality.py scientific|office|beauty|games|ml100k|journey [--seeds 0,1,2] [--minutes 20]

Lists by every reading (docs/method.md, 8) over three kinds of item vectors: MiniLM's, the untouched LLM's, and those of
the LLM after `--minutes` of training on the domain (none without the option). User tower and weights are fitted with
each seed; the LLM is trained once. Beside them all baselines, SASRec among them. With --likelihood N the LLM's own
likelihood is added on N test users (`fused`), which takes a second a user on a CPU. Everything measured is kept under
runs/quality-DOMAIN, with each user's list; started again, it goes on. Seen items are masked, but on Complete
Journey, where people buy again. Amazon domains need the shared data.
"""

import argparse
import json
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from amazon import TARGETS, WORDING, domain
from safetensors.numpy import load_file
from sasrec import about
from torch import Tensor, from_numpy

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.data.domain import Domain
from calrec_lite.data.transitions import Transitions
from calrec_lite.evaluate.baselines import build_baseline, telling_baselines
from calrec_lite.evaluate.baselines.fast import COUNTS, by_parts
from calrec_lite.evaluate.baselines.minilm import VECTORS_FILE, minilm_folder
from calrec_lite.evaluate.compare import Evaluation
from calrec_lite.evaluate.protocol import Protocol, Ranker, evaluate_system
from calrec_lite.evaluate.store import read_metrics, write_results
from calrec_lite.files import atomic_path, write_json
from calrec_lite.fitting.fit import fit_fusion
from calrec_lite.fitting.opening import likelihood_of, open_recommender
from calrec_lite.measure.cases import Cases, build_cases
from calrec_lite.measure.metrics import Ranks, paired_bootstrap, summarise
from calrec_lite.recipe import Recipe
from calrec_lite.recipe.file import check_recipe, load_recipe
from calrec_lite.recommend.fusion import Fusion
from calrec_lite.recommend.readings import PARTS, READINGS
from calrec_lite.recommend.recommender import Recommender
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run

ROOT = Path(__file__).parents[1]
AMAZON = {**TARGETS, "beauty": "amazon14_beauty", "games": "amazon18_games"}
OTHERS = {"ml100k": "movies", "journey": "groceries"}  # domains of the demo
LONG = {"length": 50}  # of the tower, where histories are long
WIDE = {"hidden": 128, "batch_size": 1024}  # the best on validation where it was tuned: benchmarks/sasrec.py
DRAWN = {"negatives": 2000, "valid_users": 5000}  # of SASRec and of the tower, over 17,000 items for 50,000 users
BASELINES = ("popularity", "bm25_last", "transitions", "minilm", "sasrec", "personal_popularity")  # the best is to beat
METRICS = ("ndcg@10", "recall@1", "recall@10")


def recipe_of(name: str, data: Path, minutes: float | None) -> Recipe:
    """One domain, SmolLM2-135M, one stage; on titles, as the evidence has them."""
    again = name == "journey"  # people buy groceries again
    tower = LONG if name in OTHERS else DRAWN if name == "games" else {}
    if name in OTHERS:
        spec = load_recipe("demo").domains[OTHERS[name]].model_dump(mode="json")
        spec |= {"max_users": None}
    else:
        spec = domain(data, AMAZON[name])
    return check_recipe(
        {
            "name": f"quality-{name}",
            "base": {"model": load_recipe("demo").base.model, "load_in_4bit": False},
            "domains": {name: spec},
            "text": {**WORDING, "max_items": 8, "max_item_tokens": 64},
            "stages": [{"name": "target", "domains": [name], "minutes": minutes or 1}],
            "loss": {"beta": 0.2, "tau": 0.1},
            "optim": {"batch_size": 16, "micro_batch_size": 8, "learning_rate": 6e-4, "save_every": 20},
            "recommend": {"strategy": "fast", "rerank": 50, "exclude_seen": not again},
            "fused": {"tower": tower},
            "evaluate": {
                "users": None,
                "baselines": BASELINES,
                "sasrec": {"valid_users": None} | (WIDE if name in TARGETS else DRAWN if name == "games" else {}),
            },
        }
    )


class Quality:
    """One domain: its systems, measured one after the other and kept.

    Args:
        minutes: of the LLM's training; None: it is not trained.
        seeds: of tower and weights.
        likelihood: test users whose lists the likelihood is added to; 0: none.
    """

    def __init__(
        self, recipe: Recipe, runs: Path, minutes: float | None, seeds: Sequence[int], likelihood: int
    ) -> None:
        self.run = Run.start(recipe, runs)
        self.recipe, self.seeds, self.likelihood, self.minutes = recipe, seeds, likelihood, minutes
        self.domain: Domain = self.run.domain(recipe.target)
        self.protocol = Protocol.of(recipe)
        self.cases = build_cases(self.domain, "test", None, recipe.seed)
        self.folder = self.run.folder / "quality"
        self.baselines = telling_baselines(recipe)
        self.models = ("untouched", *(["finetuned"] if minutes else []))

    def measure(self) -> None:
        """Every system that is not measured yet."""
        for name in self.baselines:
            self._measured(name, partial(build_baseline, name, self.domain, self.recipe), self.cases)
        for source, seed in product(("minilm", *self.models), self.seeds):
            more: dict[str, Sequence[str]] = {}
            if seed == self.seeds[0]:
                more = {f"{source}_cosine": ("text",)} | ({"counts_fast": COUNTS} if source == "minilm" else {})
            self._measure_readings(source, seed, more)
        if self.likelihood:
            some = self.cases.part(self.likelihood, self.recipe.seed)
            for source in self.models:
                self._measured(f"{source}_fused_{self.seeds[0]}", partial(self._fused, source), some)

    def _measure_readings(self, source: str, seed: int, more: dict[str, Sequence[str]]) -> None:
        """Lists by every reading over the vectors of `source`, and those by the parts in `more`."""
        lists = {f"{source}_{reading}_{seed}": parts for reading, parts in READINGS.items()} | more
        if all(map(self._known, lists)):
            return
        fusion = self._fitted(source, seed)
        for name, parts in lists.items():
            self._measured(name, partial(by_parts, fusion, self.domain, self.recipe, seed, parts), self.cases)

    def _known(self, name: str) -> bool:
        return (self.folder / "metrics.json").is_file() and name in read_metrics(self.folder)["systems"]

    def _measured(self, name: str, make: Callable[[], Ranker], cases: Cases) -> None:
        if not self._known(name):
            print(f"{self.domain.name}: {name}", flush=True)
            one = {name: evaluate_system(make(), cases, self.protocol)}
            print({key: round(one[name].metrics[key]["value"], 4) for key in METRICS}, flush=True)
            write_results(self.folder, self.domain, self.protocol, self.cases, one, {})

    def _fitted(self, source: str, seed: int) -> Fusion:
        """Readings and weights, kept: they take minutes, lists by some of them seconds."""
        folder, catalogue = self.folder / f"fitted_{source}_{seed}", self.domain.catalogue
        if not folder.exists():
            seen = self.recipe.recommend.exclude_seen
            fusion = fit_fusion(self.domain, self._vectors(source), self.recipe.fused, seed, seen)
            with atomic_path(folder) as temporary:
                temporary.mkdir()
                fusion.save(temporary, catalogue.ids)
        counts = Transitions.of(self.domain), self.domain.train_counts()
        return Fusion.open(folder, catalogue.ids, catalogue.titles, *counts)[0]

    def _vectors(self, source: str) -> Tensor:
        if source == "minilm":
            folder = minilm_folder(self.domain, self.recipe.evaluate.minilm)
            return from_numpy(load_file(folder / VECTORS_FILE)["vectors"])
        return self._model(source).strategies.text_vectors()

    def _model(self, source: str) -> Recommender:
        """The LLM by itself."""
        beam = self.recipe.recommend.model_copy(update={"strategy": "beam"})
        return open_recommender(self.run, self.run.base if source == "untouched" else self._trained, options=beam)

    @cached_property
    def _trained(self) -> Path:
        recipe = self.recipe.model_copy(
            update={"recommend": self.recipe.recommend.model_copy(update={"strategy": "beam"})}
        )
        train_run(Run(recipe, self.run.folder))
        return self.run.final()

    def _fused(self, source: str) -> Ranker:
        model, seen = self._model(source), self.recipe.recommend.exclude_seen
        fusion = fit_fusion(
            self.domain,
            model.strategies.text_vectors(),
            self.recipe.fused,
            self.seeds[0],
            seen,
            PARTS,
            likelihood_of(model),
            self.recipe.recommend.rerank,
        )
        write_json(self.folder / f"fused_{source}.json", {"weights": dict(fusion.fused or {}), **fusion.facts})
        options = self.recipe.recommend.model_copy(update={"strategy": "fused"})
        own, counts = model.strategies, fusion.readings.transitions
        items = model.encoder, model.catalogue, model.ids
        return Recommender(own.model, *items, options, transitions=counts, fusion=fusion)

    def ranks(self, name: str) -> Ranks:
        """(U,) of one system, (S, U) of one measured with every seed."""
        evaluation = Evaluation.open(self.folder)
        own = [system for system in evaluation.results["systems"] if _without_seed(system) == name]
        return np.stack([evaluation.ranks(system)[1] for system in own])

    def all_ranks(self) -> pa.Table:
        """A user a row, a column for each system: the target's rank, null where it is not in the list."""
        evaluation = Evaluation.open(self.folder)
        users = sorted(self.domain.sequences.users[u] for u in self.cases.users)
        columns: dict[str, Any] = {"user": users}
        for system in evaluation.results["systems"]:
            measured, ranks = evaluation.ranks(system)
            by_user = dict(zip(measured, ranks.tolist()))
            found = [by_user.get(user, np.inf) for user in users]
            columns[system] = pa.array([int(r) if np.isfinite(r) else None for r in found], pa.int8())
        return pa.table(columns)

    def results(self) -> dict[str, Any]:
        """What the file says: every system over its seeds, differences and ratios."""
        measured = read_metrics(self.folder)
        names = dict.fromkeys(map(_without_seed, measured["systems"]))
        systems = {name: self._summary(name) for name in names}
        best = {metric: max(self.baselines, key=lambda n: systems[n][metric]["value"]) for metric in METRICS}
        final = self.models[-1]
        return {
            "domain": measured["domain"],
            "protocol": measured["protocol"],
            "statistics": self.domain.info["statistics"],
            "seeds": list(self.seeds),
            "minutes_of_training": self.minutes,
            "best_baseline": best,
            "systems": systems,
            "users": measured["users"],
            "users_per_second": measured["users_per_second"],
            "differences": self._differences(final, best["ndcg@10"]),
            "ratios": self._ratios(final, best),
            "trained": self.run.stage_metrics(),
        }

    @cache  # noqa: B019 - one object a process
    def _summary(self, name: str) -> dict[str, Any]:
        return dict(summarise(self.ranks(name), self.protocol.bootstrap, self.protocol.seed))

    def _pairs(self, final: str, best: dict[str, str]) -> Iterable[tuple[str, str, str, str]]:
        yield "fused_ndcg_vs_best", f"{final}_fast", best["ndcg@10"], "ndcg@10"
        yield "fused_recall1_vs_best", f"{final}_fast", best["recall@1"], "recall@1"
        yield "vectors_ndcg_vs_best", f"{final}_vectors", best["ndcg@10"], "ndcg@10"
        text = max(("minilm", "bm25_last", "minilm_cosine"), key=lambda n: self._summary(n)["ndcg@10"]["value"])
        yield "text_only_ndcg_vs_best_text", f"{final}_text", text, "ndcg@10"
        yield "llm_vs_minilm_in_text", f"{final}_text", "minilm_text", "ndcg@10"
        yield "llm_vs_minilm_in_fused", f"{final}_fast", "minilm_fast", "ndcg@10"
        yield "fused_vs_counts", f"{final}_fast", "counts_fast", "ndcg@10"
        if final == "finetuned":
            yield "finetuned_vs_untouched_in_fused", "finetuned_fast", "untouched_fast", "ndcg@10"
            yield "finetuned_vs_untouched_text", "finetuned_text", "untouched_text", "ndcg@10"

    def _ratios(self, final: str, best: dict[str, str]) -> dict[str, float]:
        found = {}
        for name, own, other, metric in self._pairs(final, best):
            found[name] = self._summary(own)[metric]["value"] / self._summary(other)[metric]["value"]
        speeds = read_metrics(self.folder)["users_per_second"]
        found["fast_users_per_second"] = float(np.median([speeds[f"{final}_fast_{seed}"] for seed in self.seeds]))
        if self.likelihood:
            found |= self._with_likelihood(final)
        return found

    def _with_likelihood(self, final: str) -> dict[str, float]:
        """`fused` beside other lists, on the users it was measured on."""
        evaluation = Evaluation.open(self.folder)
        users, own = evaluation.ranks(f"{final}_fused_{self.seeds[0]}")
        found = {}
        for name in (f"{final}_fast_{self.seeds[0]}", f"minilm_fast_{self.seeds[0]}", "transitions", "sasrec"):
            all_users, ranks = evaluation.ranks(name)
            some = ranks[np.isin(all_users, users)]
            values = [summarise(r, 10, 0)["ndcg@10"]["value"] for r in (own, some)]
            found[f"likelihood_fused_vs_{name}"] = values[0] / values[1]
        return found

    def _differences(self, final: str, best: str) -> dict[str, Any]:
        """Own lists minus others, paired by user."""
        pairs = [(best, f"{final}_fast"), ("minilm_fast", f"{final}_fast"), ("counts_fast", f"{final}_fast")]
        pairs += [(best, f"{final}_vectors"), ("minilm_text", f"{final}_text")]
        pairs += [("untouched_fast", "finetuned_fast")] * (final == "finetuned")
        return {
            f"{b} - {a}": paired_bootstrap(*map(self.ranks, (a, b)), self.protocol.bootstrap, self.protocol.seed)
            for a, b in pairs
        }


def _without_seed(system: str) -> str:
    name, _, seed = system.rpartition("_")
    return name if seed.isdigit() else system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=[*AMAZON, *OTHERS])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--minutes", type=float, help="of the LLM's training; default: it stays untouched")
    parser.add_argument("--seeds", default="0,1,2", help="of user tower and weights")
    parser.add_argument("--likelihood", type=int, default=0, help="test users measured with the LLM's likelihood too")
    options = parser.parse_args()
    quiet_libraries()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    recipe = recipe_of(options.domain, options.data, options.minutes)
    quality = Quality(recipe, options.runs, options.minutes, seeds, options.likelihood)
    quality.measure()
    given = " ".join(
        [options.domain, f"--seeds {options.seeds}", *([f"--minutes {options.minutes:g}"] if options.minutes else [])]
        + ([f"--likelihood {options.likelihood}"] if options.likelihood else [])
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    results = {**about(f"python benchmarks/quality.py {given}"), "commit": commit.stdout.strip(), **quality.results()}
    out = ROOT / "benchmarks" / "results" / f"quality_{options.domain}.json"
    write_json(out, results)
    pq.write_table(quality.all_ranks(), out.with_suffix(".parquet"), compression="zstd")
    print(json.dumps(results["ratios"], indent=1))


if __name__ == "__main__":
    main()
