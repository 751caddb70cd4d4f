"""Thousands of inputs, most of them bad, each run in a process that is killed where it hangs. Goes on after a stop."""

import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tests.campaign.outcome import Outcome, attempt
from tests.campaign.world import World

PATIENCE = 60  # seconds of computing; longer is a hang
WAITING = 900  # seconds in all: others may be at work on the machine
MEMORY = 8 << 30  # bytes of address space beyond what the libraries take
FAULTS = ("traceback", "hang", "crash", "wrong", "lost", "left", "long", "refused")


def mutations(world: World, seed: int, inputs: int, state: Path) -> dict[str, Any]:
    """Run the inputs 0 to `inputs` of a seed. `state` keeps what is done, a line each; another seed's is replaced."""
    done = _read(state, seed)
    began = time.monotonic()
    with state.open("a", encoding="utf-8") as file:
        if not done:
            file.truncate(0)
            file.write(json.dumps({"seed": seed}) + "\n")
        for count, outcome in enumerate(_outcomes(world, seed, [n for n in range(inputs) if n not in done]), 1):
            done[outcome.number] = outcome
            file.write(json.dumps(asdict(outcome)) + "\n")
            file.flush()
            if outcome.result in FAULTS:
                print(f"{outcome.number}: {outcome.result}: {outcome.done}: {outcome.cause}", file=sys.stderr)
            if count % 100 == 0:
                print(
                    f"{len(done)} of {inputs}, {60 * count / (time.monotonic() - began):.0f} a minute", file=sys.stderr
                )
    return summary([done[n] for n in sorted(done) if n < inputs])


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Counts, and each distinct cause with the number of an input that shows it."""
    results = Counter(o.result for o in outcomes)
    causes: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.cause:
            causes.setdefault((outcome.result, outcome.cause), []).append(outcome)
    return {
        "inputs": len(outcomes),
        "ok": results["ok"],
        "clear_errors": results["clear"],
        "failed_runs": results["failed"],
        "tracebacks": results["traceback"] + results["crash"],
        "hangs": results["hang"],
        "wrong_without_word": results["wrong"],
        "files_lost": results["lost"],
        "half_written_left": results["left"],
        "long_errors": results["long"],
        "refused_though_right": results["refused"],
        "by_kind": dict(sorted(Counter(o.kind for o in outcomes).items())),
        "causes": [
            {"result": result, "cause": cause, "count": len(found), "kind": found[0].kind, "input": found[0].number}
            for (result, cause), found in sorted(causes.items(), key=lambda item: -len(item[1]))
        ],
    }


def _read(state: Path, seed: int) -> dict[int, Outcome]:
    if not state.is_file():
        return {}
    lines = []
    for line in state.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # a stop cut it off
            continue
    if not lines or lines[0] != {"seed": seed}:
        return {}
    return {line["number"]: Outcome(**line) for line in lines[1:]}


def _outcomes(world: World, seed: int, numbers: list[int]) -> Iterator[Outcome]:
    """The outcomes of inputs, in turn, by a worker that is replaced when it hangs or dies."""
    context = multiprocessing.get_context("spawn")
    worker, pipe = None, None
    try:
        for number in numbers:
            if worker is None or not worker.is_alive():
                pipe, theirs = context.Pipe()
                worker = context.Process(target=_work, args=(world, seed, theirs), daemon=True)
                worker.start()
                theirs.close()
                pipe.recv()  # it has imported everything
            assert pipe is not None
            pipe.send(number)
            try:
                if _answers(pipe, psutil.Process(worker.pid)):
                    yield pipe.recv()
                    continue
                yield Outcome(number, "?", "", "hang", f"over {PATIENCE} s")
            except EOFError:
                worker.join()
                yield Outcome(number, "?", "", "crash", f"the process died ({worker.exitcode})")
            worker.kill()
            worker.join()
            worker = None
    finally:
        if worker is not None:
            worker.kill()
            worker.join()


def _answers(pipe: Connection, worker: psutil.Process) -> bool:
    """Whether an answer comes (or the pipe's end) before the worker has computed or slept for too long."""
    began, used = time.monotonic(), _computed(worker)
    while not pipe.poll(1):
        if _computed(worker) - used > PATIENCE or time.monotonic() - began > WAITING:
            return False
    return True


def _computed(worker: psutil.Process) -> float:
    """Seconds of computing so far."""
    try:
        times = worker.cpu_times()
    except psutil.NoSuchProcess:  # the pipe will tell
        return 0.0
    return float(times.user + times.system)


def _work(world: World, seed: int, pipe: Connection) -> None:
    """Run the inputs that are asked for. What libraries print past Python's streams goes nowhere."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    prepare_process(world)
    pipe.send(None)
    while True:
        pipe.send(attempt(world, seed, pipe.recv()))


def prepare_process(world: World) -> None:
    """Import what the commands use, once, and set their surroundings: one thread, no network, bounded memory."""
    import resource

    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CALREC_LITE_CACHE": str(world.folder / "cache")}
    import torch

    import calrec_lite.evaluate.evaluate_run
    import calrec_lite.export.bundle
    import calrec_lite.package.hub
    import calrec_lite.page.report
    import calrec_lite.recommend.bulk
    import calrec_lite.training.stage  # noqa: F401

    torch.set_num_threads(1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
