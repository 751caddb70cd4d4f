"""What benchmarks/evidence.py was tuned by: short trainings on the target alone, measured on validation users.

    python benchmarks/evidence_trials.py [--only title|category] [--minutes 20] [--data ../shared/data]

No test user is looked at. The trials of `title` and of `category` may run side by side, one thread each, so that
both have the same machine. Killed and started again they go on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import evidence
import torch
from amazon import TITLE

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.evaluate.ablation import ablate, ablation_table
from calrec_lite.files import write_json
from calrec_lite.recipe_file import check_recipe

FIELDS = {"title": TITLE, "category": {"Category": "categories"} | TITLE}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {  # of a recipe with 16 rows a step
    "title": {
        "rate_2e-3": {"optim.learning_rate": 2e-3},
        "batch_4": {"optim.batch_size": 4},
        "sharp": {"loss.beta": 0.2, "loss.tau": 0.1},
    },
    "category": {},
}


def recipe_values(data: Path, fields: str, minutes: float, users: int) -> dict[str, Any]:
    """The target stage of the evidence's recipe and what is tried, as plain data."""
    values = evidence.recipe_values(data, "scientific", {"minutes": minutes}, users)
    target = values["domains"]["scientific"] | {"fields": FIELDS[fields]}
    values["evaluate"] |= {"split": "validation", "baselines": ["popularity", "transitions"]}
    return values | {
        "name": f"trials-{fields}",
        "domains": {"scientific": target},
        "stages": values["stages"][-1:],
        "optim": values["optim"] | {"batch_size": 16, "valid_users": 300},
        "ablate": values["ablate"] | {"stages": [[]], "variants": VARIANTS[fields], "crossed": []},
    }


def table(results: dict[str, Any]) -> str:
    """Both kinds of item texts: the tables of their ablations, and under each the validation loss of its rows."""
    parts = []
    for fields in FIELDS:
        rows = [row for row in results[fields]["rows"] if row["stages"]]
        seeds = [(row["variant"], seed) for row in rows for seed in row["seeds"].values()]
        nats = ", ".join(f"`{name}` {seed['valid_nats']:.2f}" for name, seed in seeds)
        parts += [f"{fields}:", ablation_table(results[fields]), f"Validation nats an item: {nats}."]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(FIELDS), action="append")
    parser.add_argument("--data", type=Path, default=evidence.ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=evidence.ROOT / "runs")
    parser.add_argument("--minutes", type=float, default=20, help="training of each trial")
    parser.add_argument("--users", type=int, default=300, help="validation users")
    options = parser.parse_args()
    quiet_libraries()
    out = evidence.ROOT / "benchmarks" / "results" / "evidence_trials.json"
    for fields in options.only or FIELDS:
        found = ablate(check_recipe(recipe_values(options.data, fields, options.minutes, options.users)), options.runs)
        print(ablation_table(found))
        written = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
        command = f"python benchmarks/evidence_trials.py --minutes {options.minutes:g}"
        write_json(out, {**written, "command": command, "threads": torch.get_num_threads(), fields: found})


if __name__ == "__main__":
    main()
