"""How a command ends: the signals that stop it, and one line for each way in which its surroundings may fail."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from calrec_lite.errors import LAUNCHED

GO_ON = "the same command goes on where it stopped"
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
# What only another name or place mends, and what may be mended where it is.
WRONG_PLACES = {
    errno.ENAMETOOLONG: "use a shorter one",
    errno.ENOTDIR: "name a place that is not below a file",
    errno.EEXIST: "name another place",
    errno.EISDIR: "name a file",
    errno.ELOOP: "name another place",
}
SURROUNDINGS = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit",
    errno.EROFS: "make it writable",
    errno.EACCES: "see to the rights",
    errno.EPERM: "see to the rights",
    errno.EIO: "see to the disk",
    errno.ENOMEM: "free memory",
    errno.EMFILE: "raise the limit (ulimit -n)",
}
WRITERS = ("inline_container", "PytorchStreamWriter")  # torch does not say what it was that failed


class Stop:
    """Whether a signal asked the command to end."""

    def __init__(self) -> None:
        self.asked = False
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """As Ctrl+C does, so that nothing half-written stays; a process that was forked off just ends."""
        if os.getpid() != self._process:
            os._exit(128 + number)
        # A terminal that is closed sends more than one: they do not disturb the tidying up.
        if not self.asked or number == signal.SIGINT:
            self.asked = True
            raise KeyboardInterrupt


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM and SIGHUP interrupt the block; one that is ignored (as `nohup` does) stays so."""
    stop = Stop()
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers}
    kept = [n for n, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in kept:
        signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number in kept:
            signal.signal(number, before[number])


def interruption() -> str:
    """What is said of being ended by others; nothing where the command that started this process says it."""
    return "" if LAUNCHED in os.environ else f"interrupted; {GO_ON}"


def environment_failed(error: BaseException) -> tuple[str, int] | None:
    """What to say, and the exit code, where disk, memory, rights or names failed a command; None for anything else."""
    if isinstance(error, MemoryError):
        return f"out of memory ({_first_line(error)}); free some, and {GO_ON}", 1
    if isinstance(error, EOFError) and "marshal" in str(error):  # Python < 3.12.8 keeps a .pyc that a full disk cut
        return f"{sys.prefix}: a compiled file is cut short: remove the __pycache__ folders there, and {GO_ON}", 1
    number = error.errno if isinstance(error, OSError) else None
    if number in WRONG_PLACES:
        return f"{_described(error)}: {WRONG_PLACES[number]}", 2
    by_text = [remedy for n, remedy in SURROUNDINGS.items() if os.strerror(n) in str(error)]
    remedy = SURROUNDINGS.get(number or 0) or next(iter(by_text), None)
    if remedy or isinstance(error, OSError) or any(name in str(error) for name in WRITERS):
        return f"{_described(error)}: {remedy or 'mend that'}, and {GO_ON}", 1
    return None


def _described(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:300]
