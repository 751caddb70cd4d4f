"""Which process is at work on a folder or a file, so that no second one is."""

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from calrec_lite.errors import InputError

NAME = "process.json"
BEAT = 60.0  # seconds from one sign of life to the next
SILENT = 15 * 60.0  # seconds without one after which a process of another machine counts as dead
BEING_WRITTEN = 10.0  # seconds for which a lock that says nothing is taken for one that is being written
PAUSE = 0.5  # seconds between two looks at another's lock


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Claim a folder for the length of the block; what a killed process claimed is free.

    A process of another machine that shares the disk counts as killed after a quarter of an hour without a sign of
    life.

    Raises:
        InputError: another process that is alive has claimed it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _held(folder / NAME, folder):
            yield
    finally:
        if made:
            with suppress(OSError):  # something was put into it
                folder.rmdir()


@contextmanager
def claimed_file(path: Path, wait: bool = False) -> Iterator[None]:
    """As `claimed`, for a file or a folder that is written as a whole; the lock lies beside it.

    Args:
        wait: say whose it is, and wait until it is free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.{NAME}")
    if wait and (other := _other(lock)):
        print(f"{path}: being made by {other}; waiting for it", flush=True)
        while _other(lock):
            time.sleep(PAUSE)
    with _held(lock, path):
        yield


def refuse_claimed(folder: Path) -> None:
    """Raise InputError where a living process other than this one is at work on the folder."""
    _refuse(folder / NAME, folder)


def _refuse(lock: Path, target: Path) -> None:
    if other := _other(lock):
        raise InputError(f"{target}: {other} is at work on it; wait for it, or end it")


@contextmanager
def _held(lock: Path, target: Path) -> Iterator[None]:
    me = _this_process()
    if _read(lock) == me:  # claimed by whoever called this
        yield
        return
    with _one_after_another(lock.parent):
        _refuse(lock, target)
        lock.unlink(missing_ok=True)  # a dead process's
        if not _taken(lock, me):  # possible only where the disk does not know one after another
            raise InputError(f"{target}: another process has begun to work on it; wait for it, or end it")
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(lock, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        if _read(lock) == me:
            lock.unlink(missing_ok=True)


def _taken(lock: Path, me: dict[str, Any]) -> bool:
    """Make the lock; False where there is one: of two processes one alone can."""
    try:
        with lock.open("x", encoding="utf-8") as file:
            json.dump(me, file)
    except FileExistsError:
        return False
    return True


@contextmanager
def _one_after_another(folder: Path) -> Iterator[None]:
    """Among processes that look at a lock and take it, so that none takes what another has just taken."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(ImportError, OSError):  # Windows; disks without such locks
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _beat(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(lock)


def _other(lock: Path) -> str | None:
    """The living process that holds the lock, in words; None where none does, or this one."""
    try:
        silent = time.time() - lock.stat().st_mtime
    except OSError:
        return None
    holder = _read(lock)
    if holder == _this_process():
        return None
    pid, host = holder.get("pid"), holder.get("host")
    if not isinstance(pid, int):
        return "another process" if silent < BEING_WRITTEN else None
    if host != platform.node():
        return f"process {pid} of {host}" if silent < SILENT else None
    with suppress(psutil.Error):
        if psutil.Process(pid).create_time() == holder.get("started"):
            return f"process {pid}"
    return None


def _read(lock: Path) -> dict[str, Any]:
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _this_process() -> dict[str, Any]:
    started = 0.0
    with suppress(psutil.Error):
        started = psutil.Process().create_time()
    return {"host": platform.node(), "pid": os.getpid(), "started": started}
