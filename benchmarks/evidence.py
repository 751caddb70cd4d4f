"""Is it right, is it better? The paper's grid and every baseline on one target domain.

    python benchmarks/evidence.py [--target scientific|office] [--minutes 60 | --steps 600] [--data ../shared/data]

SmolLM2-135M, LoRA r=16: a joint stage over slices of five Amazon domains and the target, then the target alone
(`calrec-lite ablate`): no training, I, II, I + II, each with and without the contrastive terms, and I + II with the
vocabulary softmax; the same budget for every cell. All baselines, --users test users, paired intervals. Killed and
started again it goes on; finished cells are kept. With the default budget this takes the whole of nine cells: hours.
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
NO_CONTRAST = {"loss.alpha": 0.0, "loss.beta": 0.0}


def recipe_values(data: Path, target: str, budget: dict[str, Any], users: int) -> dict[str, Any]:
    """The recipe and its grid as plain data. The same for every target but for the target's name."""
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
        "evaluate": {"domain": target, "users": users, "baselines": BASELINES},
        "ablate": {
            "variants": {"no_contrast": NO_CONTRAST, "softmax_vocabulary": {"loss.softmax": "vocabulary"}},
            "crossed": ["no_contrast"],
            **budget,
        },
    }


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """The final model against the strongest baselines, and what each part of the method is worth."""
    rows = {(row["variant"], len(row["stages"])): row["metrics"] for row in results["rows"]}
    second = next(r["metrics"] for r in results["rows"] if (r["variant"], r["stages"]) == ("full", ["target"]))
    full, base = rows["full", 2], {name: row["metrics"] for name, row in results["baselines"].items()}

    def of(metric: str, one: dict[str, Any], other: dict[str, Any]) -> float:
        return float(one[metric]["value"] / other[metric]["value"])

    return {
        "ndcg_vs_transitions": of("ndcg@10", full, base["transitions"]),
        "ndcg_vs_sasrec": of("ndcg@10", full, base["sasrec"]),
        "recall1_vs_sasrec": of("recall@1", full, base["sasrec"]),
        "two_stage_vs_stage2_ndcg": of("ndcg@10", full, second),
        "contrastive_vs_none_ndcg": of("ndcg@10", full, rows["no_contrast", 2]),
        "catalogue_vs_vocabulary_ndcg": of("ndcg@10", full, rows["softmax_vocabulary", 2]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TARGETS), default="scientific")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--minutes", type=float, help="training of each cell; default 60")
    parser.add_argument("--steps", type=int, help="training of each cell, instead of minutes")
    parser.add_argument("--users", type=int, default=2000, help="test users")
    options = parser.parse_args()
    quiet_libraries()
    budget = {"steps": options.steps} if options.steps else {"minutes": options.minutes or 60}
    recipe = check_recipe(recipe_values(options.data, options.target, budget, options.users))
    results = ablate(recipe, options.runs)
    folder = ablation_folder(recipe, options.runs)
    systems = [(name, "final") for name in results["baselines"]]
    full = next(r for r in results["rows"] if r["variant"] == "full" and len(r["stages"]) == 2)
    paired = compare(folder / "untouched" / "evaluation", _evaluation(folder, full), systems)
    key, value = next(iter(budget.items()))
    out = ROOT / "benchmarks" / "results" / f"evidence_{options.target}.json"
    written = {
        **results,
        "command": f"python benchmarks/evidence.py --target {options.target} --{key} {value:g}",
        "date": time.strftime("%Y-%m-%d"),
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
