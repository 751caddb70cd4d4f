"""Is it right, is it better? The paper's grid and every baseline on one target domain.

    python benchmarks/evidence.py [--target scientific|office] [--minutes 60 | --steps 600] [--data ../shared/data]

SmolLM2-135M, LoRA r=16: a joint stage over slices of five Amazon domains and the target, then the target alone
(`calrec-lite ablate`): no training, I, II, I + II, each with and without the contrastive terms, and I + II with the
vocabulary softmax; the same budget for every cell. All baselines, --users test users, paired intervals. Killed and
started again it goes on; finished cells are kept. With the default budget that is eight cells of an hour and their
measuring. On office, which only SASRec was tuned on, the untouched base and I + II. What was tuned before, on
validation users: evidence_trials.py.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from amazon import WORDING, domain

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.evaluate.ablation import ablate, ablation_folder, ablation_table
from calrec_lite.evaluate.compare import compare
from calrec_lite.files import write_json
from calrec_lite.recipe_file import check_recipe, load_recipe

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
        "crossed": ["no_contrast"],
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
        "optim": {"batch_size": 4, "learning_rate": 6e-4, "save_every": 50},
        "evaluate": {"domain": target, "users": users, "baselines": BASELINES},
        "ablate": {**GRID[target], **budget},
    }


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """The final model against the strongest baselines, and what each part of the method is worth, where measured."""
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
    return {
        name: float(full[metric]["value"] / other[metric]["value"])
        for name, (metric, other) in others.items()
        if other is not None
    }


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
    if options.cell:
        return
    folder = ablation_folder(recipe, options.runs)
    systems = [(name, "final") for name in results["baselines"]]
    full = next(r for r in results["rows"] if r["variant"] == "full" and len(r["stages"]) == 2)
    trained = next(iter(full["seeds"].values()))
    paired = compare(folder / "untouched" / "evaluation", _evaluation(folder, full), systems)
    key, value = next(iter(budget.items()))
    out = ROOT / "benchmarks" / "results" / f"evidence_{options.target}.json"
    written = {
        **results,
        "command": f"python benchmarks/evidence.py --target {options.target} --{key} {value:g}",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": trained["hardware"],  # cells may run on another machine than the table is written on
        "versions": trained["versions"],
        "minus_baselines": {pair["a"]: pair["metrics"] for pair in paired["comparisons"]},
        "ratios": ratios(results),
    }
    write_json(out, written)
    print(ablation_table(results))
    print(json.dumps(written["ratios"], indent=1))


def _evaluation(folder: Path, row: dict[str, Any]) -> Path:
    return folder / str(next(iter(row["seeds"].values()))["folder"]) / "evaluation"


if __name__ == "__main__":
    main()
