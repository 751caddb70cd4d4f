"""What benchmarks/evidence.py was tuned by: short trainings on the target alone, measured on validation users.

    python benchmarks/evidence_trials.py [--only title|category|scale] [--minutes 20] [--data ../shared/data]

No test user is looked at. Two of the three groups of trials may run side by side, one thread each, so that both have
the same machine. Killed and started again they go on.
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

BATCH = {"title": 16, "category": 16, "scale": 4}
SCALE = {"title": 1.0, "category": 1.0, "scale": 0.2}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "title": {
        "rate_2e-3": {"optim.learning_rate": 2e-3},
        "batch_4": {"optim.batch_size": 4},
        "sharp": {"loss.beta": 0.2, "loss.tau": 0.1},
    },
    "category": {},
    "scale": {
        "scale_1": {"loss.logit_scale": 1.0},
        "scale_tenth": {"loss.logit_scale": 0.1},
        "rate_2e-3": {"optim.learning_rate": 2e-3},
        "sharp": {"loss.beta": 0.2, "loss.tau": 0.1},
    },
}


def recipe_values(data: Path, group: str, minutes: float, users: int) -> dict[str, Any]:
    """The target stage of the evidence's recipe and what is tried, as plain data."""
    values = evidence.recipe_values(data, "scientific", {"minutes": minutes}, users)
    fields = {"Category": "categories"} | TITLE if group == "category" else TITLE
    values["evaluate"] |= {"split": "validation", "baselines": ["popularity", "transitions"]}
    return values | {
        "name": f"trials-{group}",
        "domains": {"scientific": values["domains"]["scientific"] | {"fields": fields}},
        "stages": values["stages"][-1:],
        "loss": {"logit_scale": SCALE[group]},
        "optim": values["optim"] | {"batch_size": BATCH[group], "valid_users": 300},
        "ablate": values["ablate"] | {"stages": [[]], "variants": VARIANTS[group], "crossed": []},
    }


def table(results: dict[str, Any]) -> str:
    """Of each group the table of its ablation, and under it the validation loss of its rows."""
    parts = []
    for group in [g for g in VARIANTS if g in results]:
        rows = [row for row in results[group]["rows"] if row["stages"]]
        seeds = [(row["variant"], seed) for row in rows for seed in row["seeds"].values()]
        nats = ", ".join(f"`{name}` {seed['valid_nats']:.2f}" for name, seed in seeds)
        parts += [f"{group}:", ablation_table(results[group]), f"Validation nats an item: {nats}."]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(VARIANTS), action="append")
    parser.add_argument("--data", type=Path, default=evidence.ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=evidence.ROOT / "runs")
    parser.add_argument("--minutes", type=float, default=20, help="training of each trial")
    parser.add_argument("--users", type=int, default=300, help="validation users")
    options = parser.parse_args()
    quiet_libraries()
    out = evidence.ROOT / "benchmarks" / "results" / "evidence_trials.json"
    for group in options.only or VARIANTS:
        found = ablate(check_recipe(recipe_values(options.data, group, options.minutes, options.users)), options.runs)
        print(ablation_table(found))
        written = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
        command = f"python benchmarks/evidence_trials.py --minutes {options.minutes:g}"
        write_json(out, {**written, "command": command, "threads": torch.get_num_threads(), group: found})


if __name__ == "__main__":
    main()
