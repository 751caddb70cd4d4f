"""Thousands of inputs, most of them bad, each run in a process that is killed where it hangs. Goes on after a stop."""

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import psutil

from tests.campaign.outcome import Outcome, attempt
from tests.campaign.state import Lines, described_commit
from tests.campaign.world import World

PATIENCE = 60  # seconds of computing; longer is a hang
WAITING = 300  # seconds in all, but for pauses of all processes: others may be at work on the machine
MEMORY = 8 << 30  # bytes of address space beyond what the libraries take
FAULTS = ("traceback", "hang", "crash", "wrong", "lost", "left", "long", "refused")


def mutations(world: World, seed: int, inputs: int, mended: bool = False) -> dict[str, Any]:
    """Run the inputs 0 to `inputs` of a seed. What is done is kept, a line each.

    Args:
        mended: take over what earlier states of the code did without a fault; only the rest is run.
    """
    began, commit = time.monotonic(), described_commit()
    lines = Lines(world, f"inputs-{seed}.jsonl")
    done = {o.number: o for o in (Outcome(**line) for line in lines.read())}
    if mended:
        earlier = [Outcome(**line) for line in lines.earlier()]
        done = {o.number: o for o in earlier if o.result not in FAULTS} | done
    for count, new in enumerate(_outcomes(world, seed, [n for n in range(inputs) if n not in done]), 1):
        outcome = replace(new, commit=commit)
        done[outcome.number] = outcome
        lines.add(asdict(outcome))
        if outcome.result in FAULTS:
            print(f"{outcome.number}: {outcome.result}: {outcome.done}: {outcome.cause}", file=sys.stderr)
        if count % 100 == 0:
            print(f"{len(done)} of {inputs}, {60 * count / (time.monotonic() - began):.0f} a minute", file=sys.stderr)
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
        "inputs_by_commit": dict(Counter(o.commit for o in outcomes)),
        "inputs_by_kind": dict(sorted(Counter(o.kind for o in outcomes).items())),
        "causes": [
            {"result": result, "cause": cause, "count": len(found), "kind": found[0].kind, "input": found[0].number}
            for (result, cause), found in sorted(causes.items(), key=lambda item: -len(item[1]))
        ],
    }


def _outcomes(world: World, seed: int, numbers: list[int]) -> Iterator[Outcome]:
    """The outcomes of inputs, in turn, by as many workers as there are cores."""
    workers = [Worker(world, seed) for _ in range(os.cpu_count() or 1)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def outcome(number: int) -> Outcome:
        worker = idle.get()
        try:
            return worker.attempt(number)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            yield from pool.map(outcome, numbers)
        finally:
            pool.shutdown(cancel_futures=True)
            for worker in workers:
                worker.end()


class Worker:
    """A process that runs one input after another, and is replaced when it hangs or dies."""

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._seed = world, seed
        self._process: BaseProcess | None = None

    def attempt(self, number: int) -> Outcome:
        """The outcome of an input."""
        if self._process is None:
            self._start()
        assert self._process is not None
        self._pipe.send(number)
        try:
            if _answers(self._pipe, psutil.Process(self._process.pid)):
                return cast(Outcome, self._pipe.recv())
            result = Outcome(number, "?", "", "hang", f"over {PATIENCE} s")
        except EOFError:
            self._process.join()
            result = Outcome(number, "?", "", "crash", f"the process died ({self._process.exitcode})")
        self.end()
        return result

    def end(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(self._world, self._seed, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it has imported everything


def _answers(pipe: Connection, worker: psutil.Process) -> bool:
    """Whether an answer comes (or the pipe's end) before the worker has computed or slept for too long."""
    used = _computed(worker)
    for _ in range(WAITING):
        if pipe.poll(1):
            return True
        if _computed(worker) - used > PATIENCE:
            break
    return False


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
