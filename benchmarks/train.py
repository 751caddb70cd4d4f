"""How fast the training core is, in how little memory, beside what a user would do without it (docs/training.md).

    python benchmarks/train.py [--only throughput|ladder|step|memory|quality|gpu] [--rounds 3]

SmolLM2-135M, LoRA r=16 on all linear layers, on ML-100K and amazon18_scientific (needs the shared data). All rows of
a table run in one process, one after another, round by round on the same rows; medians over rounds. `step` is two rungs
of the ladder alone: rows run once, and twice. Memory is
that of a process of its own for each row. Each part is written to the results file as soon as it is there, and a
part that is there is not measured again (--again). `gpu` needs CUDA: real sizes in four bits, offload, compiled layers.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import train_gpu
import train_quality
from train_ladder import LADDER, STEP
from train_rows import DATA, DTYPES, SEED, WHAT, Bench, build, faster
from train_tables import ratios, table

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.evaluate.store import hardware, versions
from calrec_lite.files import write_json
from calrec_lite.method.rows import Rows
from calrec_lite.model.device import device
from calrec_lite.model.memory import peak_bytes
from calrec_lite.recipe.file import load_recipe
from calrec_lite.sources import fetch
from calrec_lite.training.sampler import StepSampler

ROOT = Path(__file__).parents[1]
BATCH = 16
SETTING = f"SmolLM2-135M, LoRA r=16, rows of at most 10 items, batch {BATCH}"
PARTS = ("throughput", "ladder", "step", "memory", "quality", "gpu")
PROBES = [(row, BATCH) for row in WHAT]  # row, batch; all with a micro-batch of 4
MORE_PROBES = [  # on ML-100K, not in NF4
    ("D", 256),
    ("E", 256),
    ("F", 256),
    ("E: micro-batch 4, graphs kept", BATCH),
    ("E: micro-batch 4, graphs kept", 64),  # with 256 it had 14 GB and was not done
    ("E: gradient checkpointing", BATCH),
]
MICRO = 4


def drawn(rows: Rows, rounds: int, steps: int) -> list[np.ndarray]:
    """Rows of each round: whole steps as training makes them, one from each length class, so that rounds are alike."""
    made = [np.array(step) for step in StepSampler(rows, BATCH, SEED)]
    order = sorted(range(len(made)), key=lambda i: rows.length[made[i]].sum())
    draw = np.random.default_rng(SEED)
    classes = [draw.permutation(part) for part in np.array_split(order, steps)]
    return [np.concatenate([made[part[turn]] for part in classes]) for turn in range(rounds)]


def timed(names: list[str], bench: Bench, rounds: int, steps: int, keep: Path) -> dict[str, Any]:
    """Medians over rounds. A round is kept when it is whole, and a run that was stopped goes on after it."""
    files = [keep / f"{steps}-steps-{turn}.json" for turn in range(rounds)]
    missing = [turn for turn, file in enumerate(files) if not set(names) <= set(kept(file))]
    if missing:
        measure_rounds(names, bench, steps, files, missing)
    found = {name: [kept(file)[name] for file in files] for name in names}
    return {
        name: {key: statistics.median(v[key] for v in values) for key in values[0]}
        | {"every_round": [v["seconds_a_step"] for v in values]}
        for name, values in found.items()
    }


def kept(file: Path) -> dict[str, dict[str, float]]:
    """A round that was measured before, by row; nothing where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def table_of(part: str, names: list[str], data: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """The throughput table or the ladder of a data set and a dtype."""
    keep = options.runs / "rounds" / f"{part}-{data}-{dtype}"
    if options.again:
        shutil.rmtree(keep, ignore_errors=True)
    return timed(names, Bench(data, dtype, options.data, options.runs), options.rounds, options.steps, keep)


def measure_rounds(names: list[str], bench: Bench, steps: int, files: list[Path], missing: list[int]) -> None:
    """The missing rounds. One step of each row before them, so that the kernels are there, is not counted."""
    last = drawn(bench.last, len(files), steps)
    every = last if bench.every is bench.last else drawn(bench.every, len(files), steps)
    out = files[0].parent / "trainer"
    systems = {name: build(name, bench, BATCH, BATCH, out, np.concatenate(last)) for name in names}
    for system in systems.values():
        list(system.steps((every if system.rows is bench.every else last)[0][-BATCH:]))
    for turn in missing:
        found: dict[str, dict[str, float]] = {}
        for name, system in systems.items():
            rows = (every if system.rows is bench.every else last)[turn]
            start = time.perf_counter()
            counts = list(system.steps(rows))
            seconds = time.perf_counter() - start
            facts = {key: sum(getattr(c, key) for c in counts) / seconds for key in ("rows", "targets", "tokens")}
            found[name] = {f"{k}_per_second": v for k, v in facts.items()} | {"seconds_a_step": seconds / steps}
            print(f"{bench.name} {bench.dtype} round {turn} {name}: {seconds / steps:.2f} s a step", flush=True)
        write_json(files[turn], found)


def probed(row: str, data: str, dtype: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of a process that only trains this row for two steps."""
    call = [sys.executable, __file__, "--probe", json.dumps([row, data, dtype, batch])]
    call += ["--runs", str(options.runs), "--data", str(options.data)]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    print(f"{data} {dtype} {row} batch {batch}: {done.stdout.splitlines()[-1]}", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def probe(options: argparse.Namespace) -> None:
    """The other side of `probed`: the longest rows there are, so that the peak is the worst one."""
    row, data, dtype, batch = json.loads(options.probe)
    bench = Bench(data, dtype, options.data, options.runs)
    longest = [np.argsort(-rows.length, kind="stable")[:batch] for rows in (bench.every, bench.last)]
    system = build(row, bench, batch, MICRO, options.runs / "probe", longest[1])
    before = peak_bytes(system.trainer.args.device)
    rows = longest[0] if system.rows is bench.every else longest[1]
    for _ in range(2):  # the optimiser's states are there from the second step on
        list(system.steps(rows))
    print(json.dumps({"peak_bytes": peak_bytes(system.trainer.args.device), "before_first_step": before}))


class Results:
    """The results file, part by part."""

    def __init__(self, path: Path, again: bool) -> None:
        self.path, self.again = path, again
        self.values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def part(self, name: str, key: str, measure: Any) -> None:
        """Measure a part, unless it is there, and write the file."""
        part = self.values.setdefault(name, {})
        if key in part and not self.again:
            print(f"{name} {key}: there already")
            return
        part[key] = measure()
        self.values |= {
            **described(self.values),
            "date": time.strftime("%Y-%m-%d"),
            "versions": {**versions(), **extra_versions()},
            "hardware": hardware(),
            "ratios": ratios(self.values),
        }
        write_json(self.path, self.values)


def described(values: dict[str, Any]) -> dict[str, str]:
    """The command and the setting of the parts that are there."""
    small = bool((set(PARTS) - set(train_gpu.PARTS)) & set(values))
    large = bool(set(train_gpu.PARTS) & set(values))
    settings = [text for text, there in ((SETTING, small), (train_gpu.SETTING, large)) if there]
    only = (" [--only gpu]" if small else " --only gpu") if large else ""
    return {"command": f"python benchmarks/train.py{only}", "setting": ". ".join(settings)}


def extra_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("trl", "sentence-transformers", "datasets")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--datasets", default=",".join(DATA))
    parser.add_argument("--dtypes", help=f"of {', '.join(DTYPES)}; default: nf4, and the faster of the others here")
    parser.add_argument("--rows", default=",".join(WHAT), help="rows of the throughput table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps of a round")
    parser.add_argument("--quality-minutes", default="10,20,40")
    parser.add_argument("--users", type=int, default=500, help="test users of the quality part")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "train")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"train_{device().type}.json")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.probe:
        return probe(options)
    parts = options.only or [p for p in PARTS if p != "gpu"]
    results = Results(options.out, options.again)
    if set(parts) - {"gpu"}:
        fetch(load_recipe("demo").base.model)
    tables = {"throughput": options.rows.split(","), "ladder": ["E", *LADDER], "step": list(STEP)}
    for data, dtype in product(options.datasets.split(","), (options.dtypes or f"{faster()},nf4").split(",")):
        key = f"{data} {dtype}"
        for part in tables:
            if part in parts and (part == "throughput" or dtype != "nf4"):
                results.part(part, key, lambda p=part, d=data, t=dtype: table_of(p, tables[p], d, t, options))
        if "memory" in parts:
            for row, batch in PROBES + (MORE_PROBES if data == "ml100k" and dtype != "nf4" else []):
                results.part(
                    "memory",
                    f"{key} {row} batch {batch} micro {MICRO}",
                    lambda r=row, d=data, t=dtype, b=batch: probed(r, d, t, b, options),
                )
    if "quality" in parts:
        train_quality.run(results, options)
    if "gpu" in parts:
        train_gpu.run(results)
    print(table(results.values))
    return None


if __name__ == "__main__":
    main()
