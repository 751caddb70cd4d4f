"""What benchmarks/evidence.py was tuned by: short trainings on the target alone, measured on validation users.

    python benchmarks/evidence_trials.py [--only title|category|scale|parts] [--minutes 20] [--data ../shared/data]

No test user is looked at. Two groups of trials, or two cells of one (`--only parts --cell full.target.seed0`), may run
side by side, one thread each, so that both have the same machine. Killed and started again they go on; without --cell
the results are written.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import evidence
import torch
from amazon import TITLE

from calrec_lite.ablation.run import ablate, ablation_folder
from calrec_lite.ablation.table import ablation_table
from calrec_lite.cli.options import quiet_libraries
from calrec_lite.evaluate.compare import compare
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.evaluate.store import read_metrics
from calrec_lite.evaluate.tables import difference_cell, interval_cell
from calrec_lite.evaluate.tune import tune_fusion
from calrec_lite.files import write_json
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.measure.cases import build_cases
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run

CATEGORY = {"Category": "categories"}
# Of each group what its recipe has other than evidence.py's, fields that come before the title, and what is tried.
GROUPS: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, dict[str, Any]]]] = {
    "title": (
        {"loss": {"logit_scale": 1.0}, "optim": {"batch_size": 16}},
        {},
        {
            "rate_2e-3": {"optim.learning_rate": 2e-3},
            "batch_4": {"optim.batch_size": 4},
            "sharp": {"loss.beta": 0.2, "loss.tau": 0.1},
        },
    ),
    "category": ({"loss": {"logit_scale": 1.0}, "optim": {"batch_size": 16}}, CATEGORY, {}),
    "scale": ({"loss": {}, "optim": {"batch_size": 4}}, {}, {"sharp": {"loss.beta": 0.2, "loss.tau": 0.1}}),
    "parts": (  # made after the evidence, around its own beta and tau: one thing at a time that was never tried
        {
            "loss": {"beta": 0.2, "tau": 0.1},
            "optim": {"batch_size": 8, "valid_users": 150},
            "recommend": {"strategy": "beam", "rerank": 50},
        },
        {},
        {
            "alpha_half": {"loss.alpha": 0.5},
            "both_ways": {"loss.direction": "both"},
            "all_negatives": {"loss.contrast_per_row": None},
            "rank_64": {"base.lora.r": 64, "base.lora.alpha": 128},
            "tokens_16": {"text.max_item_tokens": 16},
        },
    ),
}
RERANKED = ("scale", "parts")  # only there the vectors had learnt something
DENSE = ("full", "alpha_half", "rank_64")  # of `parts`: these two had the best lists by rerank
DENSE_USERS = 1000


def recipe_values(data: Path, group: str, minutes: float, users: int) -> dict[str, Any]:
    """The target stage of the evidence's recipe and what is tried, as plain data."""
    values = evidence.recipe_values(data, "scientific", {"minutes": minutes}, users)
    other, before, variants = GROUPS[group]
    values["evaluate"] |= {"split": "validation", "baselines": ["popularity", "transitions"]}
    return values | {
        "name": f"trials-{group}",
        "domains": {"scientific": values["domains"]["scientific"] | {"fields": before | TITLE}},
        "stages": values["stages"][-1:],
        "loss": other["loss"],
        "optim": {"learning_rate": 6e-4, "save_every": 50, "valid_users": 300} | other["optim"],
        "recommend": other.get("recommend", {}),
        "ablate": values["ablate"] | {"stages": [[]], "variants": variants, "crossed": []},
    }


def trained_cells(results: dict[str, Any], folder: Path, only: list[str]) -> dict[str, Path]:
    """Folders of the trained cells by variant (`only`: of these)."""
    rows = [row for row in results["rows"] if row["stages"]]
    cells = {row["variant"]: folder / next(iter(row["seeds"].values()))["folder"] for row in rows}
    return {variant: cell for variant, cell in cells.items() if not only or cell.name in only}


def by_rerank(cells: dict[str, Path], users: int) -> dict[str, list[dict[str, float]]]:
    """Of each cell: what `strategy: rerank` gives with each fusion, on the same validation users."""
    found = {}
    for variant, cell in cells.items():
        file = cell / f"rerank-{users}.json"
        if not file.is_file():
            train_run(run := Run.open(cell))  # merges again what the ablation removed
            cases = build_cases(run.domain(run.recipe.target), "validation", users, run.recipe.seed)
            tried = tune_fusion(open_recommender(run, run.final()), cases, run.recipe.recommend.exclude_seen)
            write_json(file, [asdict(t) for t in tried])
        found[variant] = json.loads(file.read_text(encoding="utf-8"))
    return found


def by_dense(cells: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Of the cells of DENSE: lists by similarity alone on more validation users, beside full's."""
    measured = {variant: cell / "dense" for variant, cell in cells.items() if variant in DENSE}
    for variant, own in measured.items():
        if not own.is_dir():
            train_run(run := Run.open(cells[variant]))
            asked, lists = run.recipe.evaluate, run.recipe.recommend.model_copy(update={"strategy": "dense"})
            alone = asked.model_copy(update={"users": DENSE_USERS, "baselines": [], "base": False})
            run.recipe = run.recipe.model_copy(update={"recommend": lists, "evaluate": alone})
            evaluate_run(run, folder=own)
    full = measured.get("full")
    return {
        variant: {
            "metrics": read_metrics(own)["systems"]["final"],
            "minus_full": compare(full, own)["comparisons"][0]["metrics"] if full and variant != "full" else None,
        }
        for variant, own in measured.items()
    }


def table(results: dict[str, Any]) -> str:
    """The table of a group's ablation, and under it the validation loss of its rows and their lists by rerank."""
    rows = [row for row in results["rows"] if row["stages"]]
    seeds = [(row["variant"], seed) for row in rows for seed in row["seeds"].values()]
    nats = ", ".join(f"`{name}` {seed['valid_nats']:.2f}" for name, seed in seeds)
    parts = [ablation_table(results), f"Validation nats an item: {nats}."]
    for name, tried in results.get("rerank", {}).items():
        best, plain = tried[0], next(t for t in tried if t["fusion"] == 0)
        parts.append(
            f"`{name}` by `strategy: rerank`: N@10 {plain['ndcg10']:.4f} without fusion, best {best['ndcg10']:.4f} "
            f"(R@10 {best['recall10']:.4f}) with fusion {best['fusion']:g}, on the same users."
        )
    for name, own in results.get("dense", {}).items():
        more = f"; minus full's {difference_cell(own['minus_full']['ndcg@10'])}" if own["minus_full"] else ""
        said = f"`{name}` by `strategy: dense`, {DENSE_USERS:,} validation users"
        parts.append(f"{said}: N@10 {interval_cell(own['metrics']['ndcg@10'])}{more}.")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(GROUPS), action="append")
    parser.add_argument("--data", type=Path, default=evidence.ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=evidence.ROOT / "runs")
    parser.add_argument("--minutes", type=float, default=20, help="training of each trial")
    parser.add_argument("--cell", action="append", default=[], help="only this cell of the group, nothing written")
    parser.add_argument("--users", type=int, default=300, help="validation users")
    options = parser.parse_args()
    quiet_libraries()
    out = evidence.ROOT / "benchmarks" / "results" / "evidence_trials.json"
    for group in options.only or GROUPS:
        recipe = check_recipe(recipe_values(options.data, group, options.minutes, options.users))
        found = ablate(recipe, options.runs, options.cell)
        cells = trained_cells(found, ablation_folder(recipe, options.runs), options.cell)
        if group in RERANKED:
            found["rerank"] = by_rerank(cells, options.users)
        if group == "parts":
            found["dense"] = by_dense(cells)
        print(table(found))
        if options.cell:
            continue
        written = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
        command = f"python benchmarks/evidence_trials.py --only {group} --minutes {options.minutes:g}"
        write_json(out, {**written, group: {**found, "command": command, "threads": torch.get_num_threads()}})


if __name__ == "__main__":
    main()
