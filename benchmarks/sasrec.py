"""SASRec on Amazon-2014 Beauty, tuned on validation, measured once on test beside the other baselines.

    python benchmarks/sasrec.py [--data ../shared/data] [--out benchmarks/results/sasrec_beauty.json]

Published tables hold SASRec with a full softmax to Recall@10 .0983 and NDCG@10 .0596 there (5-core, leave-one-out, all
12,101 items ranked, seen items masked); below .090 it is not SASRec. Needs the shared data. Trained models are cached:
started again, it goes on.
"""

import argparse
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

from calrec_lite import recipe
from calrec_lite.data.prepare import describe, prepare
from calrec_lite.evaluate.baselines import BASELINES
from calrec_lite.evaluate.minilm import MiniLM
from calrec_lite.evaluate.protocol import Protocol, Ranker, build_cases, evaluate_system
from calrec_lite.evaluate.results import hardware, versions
from calrec_lite.evaluate.sasrec import Sasrec
from calrec_lite.files import write_json

ROOT = Path(__file__).parents[1]
LEAST = 0.090
# Tried in this order, each against the best so far on validation; nothing here has seen the test part.
GRID: list[dict[str, float | int]] = [{}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "sasrec_beauty.json")
    options = parser.parse_args()
    place = options.data / "amazon14_beauty"
    domain = prepare(
        "beauty",
        recipe.Domain(
            interactions=str(place / "seqs.jsonl.gz"),
            items=str(place / "items.jsonl.gz"),
            columns=recipe.Columns(user="user", item="items", time="ts"),
            fields={"Title": "title"},
        ),
        seed=0,
    )
    print(describe(domain))
    protocol = Protocol(users=None)
    tried = []
    for settings in GRID:
        tried.append((Sasrec(domain, 0, recipe.Sasrec(**settings), True), settings))
        print(settings, {key: tried[-1][0].trained[key] for key in ("best_epoch", "valid_ndcg")}, flush=True)
    best, chosen = max(tried, key=lambda one: one[0].trained["valid_ndcg"])
    cases = build_cases(domain, "test", None, 0)
    minilm = MiniLM(domain, 0, recipe.MiniLM(), True)
    systems: dict[str, Ranker] = {name: make(domain, 0) for name, make in BASELINES.items()}
    systems |= {"minilm": minilm, "sasrec": best}
    results = {}
    for name, system in systems.items():
        start = time.perf_counter()
        measured = evaluate_system(system, cases, protocol)
        results[name] = {"metrics": measured.metrics, "seconds": round(time.perf_counter() - start, 1)}
        print(name, {metric: round(interval["value"], 4) for metric, interval in measured.metrics.items()}, flush=True)
    recall = results["sasrec"]["metrics"]["recall@10"]["value"]
    write_json(
        options.out,
        {
            "command": "python benchmarks/sasrec.py",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
            ).stdout.strip(),
            "versions": versions(),
            "hardware": hardware(),
            "domain": {"name": "amazon14_beauty", "fingerprint": domain.fingerprint, **domain.info["statistics"]},
            "protocol": protocol.record(cases),
            "tuned_on": "validation",
            "tried": [{"settings": settings, **ranker.trained} for ranker, settings in tried],
            "chosen": recipe.Sasrec(**chosen).model_dump(),
            "training_minutes": round(best.trained["epochs"][-1]["seconds"] / 60, 1),
            "minilm_latest": {"chosen": minilm.latest, "validation_ndcg": minilm.validation},
            "systems": results,
            "least_recall_at_10": LEAST,
            "reached": recall >= LEAST,
        },
    )
    print(f"SASRec: Recall@10 {recall:.4f}, at least {LEAST} was wanted -> {options.out}")


if __name__ == "__main__":
    main()
