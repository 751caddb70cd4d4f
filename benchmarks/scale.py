"""Time and peak memory of ranking all of 100,000 items for 100,000 users.

    python benchmarks/scale.py [--users 100000] [--items 100000] [--out benchmarks/results/scale_cpu.json]

`scores`: ranks of the targets from a dense model's scores (vectors of 32 numbers), with ten excluded items a user.
`lists`: the baseline `transitions` through the evaluator, from fitting to metrics with intervals. Each in a process of
its own; the memory is that process's peak, Python and libraries included.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from calrec_lite.data.domain import Catalogue, Domain, Sequences
from calrec_lite.evaluate.baselines.counting import TransitionsBaseline
from calrec_lite.evaluate.protocol import Protocol, evaluate_system
from calrec_lite.evaluate.store import hardware, versions
from calrec_lite.files import write_json
from calrec_lite.measure.cases import build_cases
from calrec_lite.measure.metrics import ranks_in_chunks, summarise

ROOT = Path(__file__).parents[1]
EVENTS = 10


def scores(users: int, items: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    of_users, of_items = (random.normal(size=(n, 32)).astype(np.float32) for n in (users, items))
    targets = random.integers(items, size=users)
    seen = list(random.integers(items, size=(users, EVENTS)))
    ranks = ranks_in_chunks(lambda part: of_users[part] @ of_items.T, targets, items, seen)
    return dict(summarise(ranks, 2000, 0))


def lists(users: int, items: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    names = [str(n) for n in range(items)]
    events = (items * random.random(users * EVENTS) ** 3).astype(np.int32)  # some items far more often than others
    domain = Domain(
        "large",
        Catalogue(names, [{"Title": name} for name in names], {name: n for n, name in enumerate(names)}),
        Sequences([str(u) for u in range(users)], events, np.arange(users + 1) * EVENTS, None),
        {"fingerprint": "0" * 64},
    )
    cases = build_cases(domain, "test", None, 0)
    return dict(evaluate_system(TransitionsBaseline(domain, 0), cases, Protocol()).metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scale_cpu.json")
    parser.add_argument("--only", choices=["scores", "lists"], help="measure one of them here and print it")
    options = parser.parse_args()
    if options.only:
        start = time.perf_counter()
        metrics = {"scores": scores, "lists": lists}[options.only](options.users, options.items)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": time.perf_counter() - start, "peak_memory_bytes": peak, "metrics": metrics}))
        return
    size = ["--users", str(options.users), "--items", str(options.items)]
    found = {}
    for what in ("scores", "lists"):
        done = subprocess.run([sys.executable, __file__, *size, "--only", what], stdout=subprocess.PIPE, check=True)
        found[what] = json.loads(done.stdout)
        print(what, {key: found[what][key] for key in ("seconds", "peak_memory_bytes")}, flush=True)
    write_json(
        options.out,
        {
            "command": "python benchmarks/scale.py",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": hardware(),
            "users": options.users,
            "items": options.items,
            **found,
        },
    )


if __name__ == "__main__":
    main()
