"""Is it right, is it better? The main cells of the paper's grid and every baseline on one target domain.

    python benchmarks/evidence.py [--target scientific|office] [--minutes 60 | --steps 700] [--data ../shared/data]

SmolLM2-135M, LoRA r=16: a joint stage over slices of five Amazon domains and the target, then the target alone
(`calrec-lite ablate`): no training, I, II, I + II, and I + II without the contrastive terms or with the vocabulary
softmax; the same budget for every cell; lists by beam and by rerank. All baselines, --users test users, paired
intervals. Killed and started again it goes on; finished cells are kept. With the default budget that is five cells of
an hour and their measuring. On office, where nothing was tuned, the untouched base and I + II. Layers are
compiled, which needs a C++ compiler. What was tuned before, on validation users: evidence_trials.py.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from amazon import TARGETS, WORDING, domain
from evidence_control import Mixed

from calrec_lite.ablation.run import ablate, ablation_folder, remove_weights
from calrec_lite.ablation.table import ablation_table
from calrec_lite.cli.options import quiet_libraries
from calrec_lite.evaluate.compare import compare
from calrec_lite.evaluate.protocol import Protocol, evaluate_system
from calrec_lite.evaluate.store import read_metrics, write_results
from calrec_lite.evaluate.tables import difference_cell, interval_cell
from calrec_lite.evaluate.tune import TRANSITIONS, Tried, all_candidates, tried_on
from calrec_lite.files import write_json
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.measure.cases import build_cases
from calrec_lite.recipe import Recipe
from calrec_lite.recipe.file import check_recipe, load_recipe
from calrec_lite.recommend.rerank import Candidates
from calrec_lite.run import Run
from calrec_lite.table import markdown
from calrec_lite.training.stage import train_run

ROOT = Path(__file__).parents[1]
JOINT = {
    "beauty": "amazon14_beauty",
    "toys": "amazon14_toys",
    "health": "amazon14_health",
    "clothing": "amazon14_clothing",
    "games": "amazon18_games",
}
BASELINES = ["popularity", "last_item", "bm25_last", "transitions", "sasrec", "minilm"]
SASREC = {"hidden": 128, "batch_size": 1024, "valid_users": None}  # the best on validation of both targets: sasrec.py
Key = tuple[str, ...]  # of a cell: variant, *stages
FINAL = ("full", "joint", "target")
LISTS = {"beam": "final", "rerank": "rerank", "rerank with transitions": "with_transitions"}  # of the final model
RERANKED = "reranked"  # folder of the untouched base's lists: beside its baselines they would be taken for some
CANDIDATES = 50  # that are reranked: so many by similarity, and so many by transitions
GRID: dict[str, dict[str, Any]] = {
    "scientific": {
        "variants": {
            "no_contrast": {"loss.alpha": 0.0, "loss.beta": 0.0},
            "softmax_vocabulary": {"loss.softmax": "vocabulary"},
        },
        "crossed": [],
    },
    "office": {"stages": [[]], "variants": {}, "crossed": []},  # the final recipe only
}


def recipe_values(data: Path, target: str, budget: dict[str, Any], users: int) -> dict[str, Any]:
    """The recipe and its grid as plain data. The same for every target, but that the whole grid is of one."""
    joint = {name: domain(data, folder, 2000) for name, folder in JOINT.items()}
    return {
        "name": f"evidence-{target}",
        "base": {"model": load_recipe("demo").base.model, "load_in_4bit": False},
        "domains": {**joint, target: domain(data, TARGETS[target])},
        "text": {**WORDING, "max_items": 10, "max_item_tokens": 48},
        "stages": [
            {"name": "joint", "domains": [*JOINT, target], "max_steps": 1},
            {"name": "target", "domains": [target], "max_steps": 1},
        ],
        "loss": {"beta": 0.2, "tau": 0.1},
        "optim": {
            "batch_size": 64,
            "micro_batch_size": 32,  # cells share a card
            "learning_rate": 1.2e-3,  # 6e-4 was found for 16 rows: times the square root of four
            "compile": True,
            "eval_every": 200,
        },
        "recommend": {"strategy": "beam", "batch_tokens": 16384},
        "evaluate": {"domain": target, "users": users, "baselines": BASELINES, "sasrec": SASREC},
        "ablate": {**GRID[target], **budget},
    }


def ratios(
    beam: dict[Key, Any], rerank: dict[Key, Any], mixed: Any, base: dict[str, Any]
) -> tuple[dict[str, float], dict[str, str]]:
    """The final model against the strongest baselines, and what each part of the method is worth; each by which lists.

    Those without a prefix are of its lists with transitions, which validation users preferred, and for parts of the
    method of lists by beam. Cells that are not there have no ratio.

    Args:
        beam, rerank: (variant, *stages) -> metrics of the lists of a cell.
        mixed: metrics of the final model's lists by rerank with transitions.
        base: baseline -> its metrics.
    """
    pairs: dict[str, tuple[str, str, Any, Any]] = {}
    lists = (
        ("", "rerank with transitions", mixed),
        ("rerank_", "rerank", rerank[FINAL]),
        ("beam_", "beam", beam[FINAL]),
    )
    for (prefix, by, own), other in product(lists, ("transitions", "sasrec")):
        pairs[f"{prefix}ndcg_vs_{other}"] = (by, "ndcg@10", own, base[other])
        pairs[f"{prefix}recall1_vs_{other}"] = (by, "recall@1", own, base[other])
    parts = {
        "two_stage_vs_stage2_ndcg": ("full", "target"),
        "two_stage_vs_stage1_ndcg": ("full", "joint"),
        "contrastive_vs_none_ndcg": ("no_contrast", *FINAL[1:]),
        "catalogue_vs_vocabulary_ndcg": ("softmax_vocabulary", *FINAL[1:]),
    }
    for name, cell in parts.items():
        pairs[name] = ("beam", "ndcg@10", beam[FINAL], beam.get(cell))
        pairs[f"rerank_{name}"] = ("rerank", "ndcg@10", rerank[FINAL], rerank.get(cell))
    there = {name: pair for name, pair in pairs.items() if pair[-1] is not None}
    values = {n: float(one[key]["value"] / other[key]["value"]) for n, (_, key, one, other) in there.items()}
    return values, {name: by for name, (by, *_) in there.items()}


@dataclass(frozen=True)
class Kept:
    """Lists from candidates that were scored before."""

    found: list[Candidates]
    weights: Tried

    def rank(self, histories: Any, k: int, exclude_seen: bool) -> Any:
        lists = np.full((len(self.found), k), -1, np.int32)
        for row, own in zip(lists, self.found, strict=True):
            best, _ = own.best(self.weights.fusion, self.weights.transitions, k)
            row[: len(best)] = own.items[best]
        return lists


def reranked(folder: Path, trained: bool = True, users: int = 500) -> dict[str, Any]:
    """The lists of a cell, trained or not, by `strategy: rerank`, without transitions and with; kept in its folder.

    Weights are chosen on validation users. The candidates' scores are computed once for both.
    """
    run, file, evaluation = Run.open(folder), folder / "rerank.json", measures(folder, trained)
    setting = {"validation_users": users, "candidates": CANDIDATES, "protocol": asdict(Protocol.of(run.recipe))}
    if file.is_file():
        facts = dict(json.loads(file.read_text(encoding="utf-8")))
        if facts["setting"] == setting and "rerank" in read_metrics(evaluation)["systems"]:
            return facts
    options = run.recipe.recommend.model_copy(update={"rerank": CANDIDATES})
    run.recipe = run.recipe.model_copy(update={"recommend": options})
    if trained:
        train_run(run)  # merges again what the ablation removed
    recipe, domain = run.recipe, run.domain(run.recipe.target)
    weights, seen = run.final() if trained else run.base, recipe.recommend.exclude_seen
    recommender = open_recommender(run, weights, transitions=True)
    valid = build_cases(domain, "validation", users, recipe.seed)
    tried = tried_on(all_candidates(recommender, valid, seen), valid, TRANSITIONS)
    protocol = Protocol.of(recipe)
    cases = build_cases(domain, protocol.split, protocol.users, protocol.seed)
    begin = time.perf_counter()
    found = all_candidates(recommender, cases, seen)
    seconds = time.perf_counter() - begin
    chosen = {"rerank": next(t for t in tried if not t.transitions), "with_transitions": tried[0]}
    measured = {
        name: replace(evaluate_system(Kept(found, best), cases, protocol), seconds=seconds)
        for name, best in chosen.items()
    }
    write_results(evaluation, domain, protocol, cases, measured, {})
    facts = {name: {**asdict(best), "metrics": measured[name].metrics} for name, best in chosen.items()}
    facts |= {"setting": setting, "validation": [asdict(t) for t in tried], "users_per_second": len(found) / seconds}
    write_json(file, facts)
    remove_weights(folder)
    return facts


def control(folder: Path, users: int = 500) -> dict[str, Any]:
    """MiniLM with transitions in the model's place, kept beside the final model's lists; and what these have more."""
    run = Run.open(folder)
    recipe, domain = run.recipe, run.domain(run.recipe.target)
    seen, protocol = recipe.recommend.exclude_seen, Protocol.of(recipe)
    mixed = Mixed(domain, recipe.seed, recipe.evaluate.minilm, seen)
    ndcg = mixed.tune(build_cases(domain, "validation", users, recipe.seed), seen)
    cases = build_cases(domain, protocol.split, protocol.users, protocol.seed)
    name = "minilm_with_transitions"
    measured = evaluate_system(mixed, cases, protocol)
    write_results(run.evaluation, domain, protocol, cases, {name: measured}, {})
    facts = {"cosine": mixed.weights[0], "popularity": mixed.weights[1], "ndcg10": ndcg, "metrics": measured.metrics}
    return facts | {"final_minus": minus(run.evaluation, run.evaluation, [(name, "with_transitions")])[name]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TARGETS), default="scientific")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--minutes", type=float, help="training of each cell; default 60")
    parser.add_argument("--steps", type=int, help="training of each cell, instead of minutes")
    parser.add_argument("--users", type=int, default=2000, help="test users")
    parser.add_argument("--cell", action="append", default=[], help="run only this cell, and write no table")
    options = parser.parse_args()
    quiet_libraries()
    budget = {"steps": options.steps} if options.steps else {"minutes": options.minutes or 60}
    recipe = check_recipe(recipe_values(options.data, options.target, budget, options.users))
    results = ablate(recipe, options.runs, options.cell)
    if not options.cell:
        write(recipe, results, options)


def write(recipe: Recipe, results: dict[str, Any], options: argparse.Namespace) -> None:
    """Add every cell's lists by rerank and all comparisons to the ablation's results, and write the file."""
    folder = ablation_folder(recipe, options.runs)
    rows = {(row["variant"], *row["stages"]): row for row in results["rows"]}
    cells = {key: folder / next(iter(row["seeds"].values()))["folder"] for key, row in rows.items()}
    trained = next(iter(rows[FINAL]["seeds"].values()))
    asked = [key for key in cells if key[1:] or recipe.ablate.variants]  # the untouched base: beside a whole grid
    found = {key: reranked(cells[key], trained=bool(key[1:])) for key in asked}
    values, by = ratios(
        {key: row["metrics"] for key, row in rows.items()},
        {key: facts["rerank"]["metrics"] for key, facts in found.items()},
        found[FINAL]["with_transitions"]["metrics"],
        {name: row["metrics"] for name, row in results["baselines"].items()},
    )
    run = Run.open(cells[FINAL])
    budget = "steps" if recipe.ablate.steps else "minutes"
    given = f"--target {options.target} --{budget} {getattr(recipe.ablate, budget):g}"
    written = {
        **results,
        "command": f"python benchmarks/evidence.py {given}",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": trained["hardware"],  # cells may run on another machine than the table is written on
        "versions": trained["versions"],
        "rerank": found[FINAL],
        "rerank_by_cell": beside_final(cells, found),
        **beside_baselines(cells, list(results["baselines"])),
        "validation_nats": validation_nats(folder),
        "validation_curve": validation_curve(folder),
        "recipe": recipe.model_dump(mode="json", exclude={"domains"}),
        "domains": {name: run.domain(name).fingerprint for name in run.recipe.domains},
        "ratios": values,
        "ratio_lists": by,
    }
    write_json(ROOT / "benchmarks" / "results" / f"evidence_{options.target}.json", written)
    print(f"{ablation_table(results)}\n\n{rerank_table(written)}\n{json.dumps(written['ratios'], indent=1)}")


def measures(cell: Path, trained: bool) -> Path:
    """Where a cell's lists by rerank are measured."""
    return cell / ("evaluation" if trained else RERANKED)


def beside_final(cells: dict[Key, Path], found: dict[Key, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each cell's two kinds of lists by rerank, and what the final model's have more, paired by user."""
    kinds = [("rerank", "rerank"), ("with_transitions", "with_transitions")]
    final = measures(cells[FINAL], True)
    rows = []
    for key in found:
        more = minus(measures(cells[key], bool(key[1:])), final, kinds) if key != FINAL else None
        lists = {kind: {**found[key][kind], "final_minus": more and more[kind]} for kind, _ in kinds}
        rows.append({"variant": key[0], "stages": list(key[1:]), **lists})
    return rows


def beside_baselines(cells: dict[Key, Path], baselines: list[str]) -> dict[str, Any]:
    """The final model's lists of each kind minus those of each baseline, and minus each other."""
    untouched, final = cells[FINAL[:1]] / "evaluation", cells[FINAL] / "evaluation"
    return {
        "minilm_with_transitions": control(cells[FINAL]),
        "rerank_minus_beam": minus(final, final, [("final", "rerank")])["final"],
        "final_minus_baselines": {
            lists: minus(untouched, final, [(name, system) for name in baselines]) for lists, system in LISTS.items()
        },
    }


def cell_runs(folder: Path) -> list[Run]:
    """The runs of all cells that were begun."""
    return [Run.open(path.parent) for path in sorted(folder.glob("*/recipe.yaml"))]


def validation_nats(folder: Path) -> dict[str, dict[str, float]]:
    """Nats an item on validation users after each stage of every cell, also of those not measured on test users yet."""
    return {
        run.folder.name: {stage: facts["valid_nats_after"] for stage, facts in run.stage_metrics().items()}
        for run in cell_runs(folder)
    }


def validation_curve(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Nats an item on validation users along each cell's training, and of the training rows just before."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for run in cell_runs(folder):
        trained = None
        for entry in run.log_entries():
            trained = entry.get("nats_per_item", trained)
            if "eval_nats_per_item" in entry:
                kept = {"stage": entry["stage"], "step": entry["step"], "nats": entry["eval_nats_per_item"]}
                curves.setdefault(run.folder.name, []).append({**kept, "training_nats": trained})
    return curves


def minus(a: Path, b: Path, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """By the system of evaluation `a`: what the lists of `b` have more, paired by user."""
    found = compare(a, b, pairs)["comparisons"]
    return {pair["a"]: pair["metrics"] for pair in found if (pair["a"], pair["b"]) in pairs}


def rerank_table(results: dict[str, Any]) -> str:
    """Every cell by `strategy: rerank`, the final model's weights, and all its lists beside each baseline."""
    own = results["rerank"]
    lines = [
        [
            f"fusion {best['fusion']:g}, transitions {best['transitions']:g}",
            *(interval_cell(best["metrics"][key]) for key in ("recall@1", "recall@10", "ndcg@10", "mrr")),
        ]
        for best in (own["rerank"], own["with_transitions"])
    ]
    other = results["minilm_with_transitions"]
    said = ", ".join(
        f"{label} {interval_cell(other['metrics'][key])}"
        for label, key in (("R@1", "recall@1"), ("R@10", "recall@10"), ("N@10", "ndcg@10"))
    )
    in_its_place = (
        f"In the model's place MiniLM, zero-shot, with transitions and popularity, weights by validation: {said}. N@10 "
        f"of the final model with transitions minus that: {difference_cell(other['final_minus']['ndcg@10'])}."
    )
    head = [
        "final model by `strategy: rerank`, weights by validation",
        "R@1",
        "R@10",
        "N@10",
        f"MRR@{results['protocol']['mrr_cut']}",
    ]
    beside = [
        [f"{name}, not paired" if "measured" in row else name]
        + [difference_cell(by[name]["ndcg@10"]) for by in results["final_minus_baselines"].values()]
        for name, row in results["baselines"].items()  # one measured later: evidence_sasrec.py
    ]
    against = markdown(["N@10 of the final model minus", *LISTS], beside)
    return f"{cell_table(results)}\n\n{markdown(head, lines)}\n\n{in_its_place}\n\n{against}\n"


def cell_table(results: dict[str, Any]) -> str:
    """Every cell by `strategy: rerank`, each with weights of its own by validation, beside the final model."""
    lines = []
    for row in results["rerank_by_cell"]:
        line = [" + ".join(row["stages"]) or "none", row["variant"]]
        for own in (row["rerank"], row["with_transitions"]):
            more = own["final_minus"]
            line += [interval_cell(own["metrics"]["ndcg@10"]), difference_cell(more["ndcg@10"]) if more else "-"]
        lines.append(line)
    kinds = ("rerank", "rerank with transitions")
    return markdown(["stages", "variant", *(c for k in kinds for c in (f"{k}: N@10", "final minus it"))], lines)


if __name__ == "__main__":
    main()
