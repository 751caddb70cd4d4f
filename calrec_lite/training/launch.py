"""Starts several processes that train as one on this machine, by torchrun's own launcher."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from uuid import uuid4

from calrec_lite.errors import LAUNCHED, InputError, RunError

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `python -m calrec_lite ARGUMENTS` in so many processes, and wait for all of them.

    Each takes one GPU; without one they share the threads that a single process would have. Signals are passed on.
    Where a process ends badly, the others are ended.

    Raises:
        InputError, RunError: one of them did; without a text where it has said why.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise InputError(f"--nproc {processes}: this machine has {gpus} GPUs, one a process; start fewer")
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):  # each has its own level; what they report is said below
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(os.environ.get("OMP_NUM_THREADS", 1)) // processes))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle=",".join(name for name in SIGNALS if _handled(name)),
    )
    os.environ[LAUNCHED] = "1"
    try:
        elastic_launch(config, sys.executable)("-m", "calrec_lite", *arguments)
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        raise _ended(codes, processes) from None
    finally:
        del os.environ[LAUNCHED]


def _handled(name: str) -> bool:
    """Whether a signal is there and not ignored, as `nohup` does."""
    return hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN


def _told(code: int) -> int:
    """What is told first of several: what nobody asked for, then a process's own error, last those that were ended."""
    return 1 if code in (1, 2) else 2 if -code in (signal.SIGINT, signal.SIGTERM) else 0


def _ended(codes: dict[int, int], processes: int) -> InputError | RunError:
    """What to raise for the exit codes of processes that ended badly; that of a signal is negative."""
    rank, code = min(codes.items(), key=lambda ended: (_told(ended[1]), -ended[1]))
    if code in (1, 2):
        return InputError() if code == 2 else RunError()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return RunError(
        f"process {rank} of {processes} {how}, and the others were ended; the same command goes on where it stopped"
    )
