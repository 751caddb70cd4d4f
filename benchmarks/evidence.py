"""Is it right, is it better? The paper's grid and every baseline on one target domain.

    python benchmarks/evidence.py [--target scientific|office] [--minutes 60 | --steps 600] [--data ../shared/data]

SmolLM2-135M, LoRA r=16: a joint stage over slices of five Amazon domains and the target, then the target alone
(`calrec-lite ablate`): no training, I, II, I + II, and I + II without the contrastive terms or with the vocabulary
softmax; the same budget for every cell. All baselines, --users test users, paired intervals. Killed and
started again it goes on; finished cells are kept. With the default budget that is five cells of an hour and their
measuring. On office, which only SASRec was tuned on, the untouched base and I + II. What was tuned before, on
validation users: evidence_trials.py.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amazon import WORDING, domain

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.evaluate.ablation import ablate, ablation_folder, ablation_table
from calrec_lite.evaluate.compare import compare
from calrec_lite.evaluate.fusion import tune_fusion
from calrec_lite.evaluate.protocol import Protocol, build_cases, evaluate_system
from calrec_lite.evaluate.results import write_results
from calrec_lite.evaluate.systems import open_recommender
from calrec_lite.files import write_json
from calrec_lite.recipe_file import check_recipe, load_recipe
from calrec_lite.train.cells import plan
from calrec_lite.train.run import Run
from calrec_lite.train.stage import train_run

ROOT = Path(__file__).parents[1]
TARGETS = {"scientific": "amazon18_scientific", "office": "amazon14_office"}
JOINT = {
    "beauty": "amazon14_beauty",
    "toys": "amazon14_toys",
    "health": "amazon14_health",
    "clothing": "amazon14_clothing",
    "games": "amazon18_games",
}
BASELINES = ["popularity", "last_item", "bm25_last", "transitions", "sasrec", "minilm"]
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
        "optim": {"batch_size": 16, "learning_rate": 6e-4, "save_every": 50},
        "recommend": {"batch_tokens": 16384},
        "evaluate": {"domain": target, "users": users, "baselines": BASELINES},
        "ablate": {**GRID[target], **budget},
    }


def ratios(results: dict[str, Any], rerank: dict[str, Any] | None = None) -> dict[str, float]:
    """The final model against the strongest baselines, and what each part of the method is worth, where measured.

    Args:
        rerank: metrics of the final model's lists by `strategy: rerank`; against the baselines, keys of their own.
    """
    rows = {(row["variant"], *row["stages"]): row["metrics"] for row in results["rows"]}
    base = {name: row["metrics"] for name, row in results["baselines"].items()}
    full = rows["full", "joint", "target"]
    others = {
        "ndcg_vs_transitions": ("ndcg@10", base["transitions"]),
        "ndcg_vs_sasrec": ("ndcg@10", base["sasrec"]),
        "recall1_vs_sasrec": ("recall@1", base["sasrec"]),
        "two_stage_vs_stage2_ndcg": ("ndcg@10", rows.get(("full", "target"))),
        "contrastive_vs_none_ndcg": ("ndcg@10", rows.get(("no_contrast", "joint", "target"))),
        "catalogue_vs_vocabulary_ndcg": ("ndcg@10", rows.get(("softmax_vocabulary", "joint", "target"))),
    }
    found = {
        name: float(full[metric]["value"] / other[metric]["value"])
        for name, (metric, other) in others.items()
        if other is not None
    }
    for name, (metric, other) in others.items() if rerank else ():
        if other is not None and name in ("ndcg_vs_transitions", "ndcg_vs_sasrec", "recall1_vs_sasrec"):
            found[f"rerank_{name}"] = float(rerank[metric]["value"] / other[metric]["value"])  # type: ignore[index]
    return found


def reranked(folder: Path, users: int = 500) -> dict[str, Any]:
    """The lists of a cell by `strategy: rerank`, its fusion tuned on validation users; kept in the cell's folder."""
    file = folder / "rerank.json"
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    run = Run.open(folder)
    train_run(run)  # merges again what the ablation removed
    recipe, domain = run.recipe, run.domain(run.recipe.target)
    valid = build_cases(domain, "validation", users, recipe.seed)
    tried = tune_fusion(open_recommender(run, run.final()), valid, recipe.recommend.exclude_seen)
    chosen = recipe.recommend.model_copy(update={"strategy": "rerank", "fusion": tried[0].fusion})
    tuned = Run(recipe.model_copy(update={"recommend": chosen}), folder)
    protocol = Protocol.of(recipe)
    cases = build_cases(domain, protocol.split, protocol.users, protocol.seed)
    measured = evaluate_system(open_recommender(tuned, run.final()), cases, protocol)
    write_results(run.evaluation, domain, protocol, cases, {"rerank": measured}, {})
    found = {
        "fusion": tried[0].fusion,
        "validation": [asdict(t) for t in tried],
        "metrics": measured.metrics,
        "users_per_second": measured.users_per_second,
    }
    write_json(file, found)
    return found


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
    folder = ablation_folder(recipe, options.runs)
    final = folder / next(cell.name for cell in plan(recipe) if len(cell.stages) == 2)
    by_rerank = reranked(final) if not options.cell or final.name in options.cell else {}
    if options.cell:
        return
    systems = [(name, "final") for name in results["baselines"]]
    full = next(r for r in results["rows"] if r["variant"] == "full" and len(r["stages"]) == 2)
    trained = next(iter(full["seeds"].values()))
    systems += [(name, "rerank") for name in results["baselines"]]
    paired = compare(folder / "untouched" / "evaluation", _evaluation(folder, full), systems)
    key, value = next(iter(budget.items()))
    out = ROOT / "benchmarks" / "results" / f"evidence_{options.target}.json"
    written = {
        **results,
        "command": f"python benchmarks/evidence.py --target {options.target} --{key} {value:g}",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": trained["hardware"],  # cells may run on another machine than the table is written on
        "versions": trained["versions"],
        "minus_baselines": {p["a"]: p["metrics"] for p in paired["comparisons"] if p["b"] == "final"},
        "rerank": {
            **by_rerank,
            "minus_baselines": {p["a"]: p["metrics"] for p in paired["comparisons"] if p["b"] == "rerank"},
        },
        "ratios": ratios(results, by_rerank["metrics"]),
    }
    write_json(out, written)
    print(ablation_table(results))
    print(json.dumps(written["ratios"], indent=1))


def _evaluation(folder: Path, row: dict[str, Any]) -> Path:
    return folder / str(next(iter(row["seeds"].values()))["folder"]) / "evaluation"


if __name__ == "__main__":
    main()
