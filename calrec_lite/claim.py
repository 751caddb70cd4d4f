"""Which process is at work on a folder, so that no second one is."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from calrec_lite.errors import InputError
from calrec_lite.files import write_json

NAME = "process.json"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Claim a folder for the length of the block; what a killed process claimed is free.

    Raises:
        InputError: another process that is alive has claimed it.
    """
    refuse_claimed(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, _this_process())
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)


def refuse_claimed(folder: Path) -> None:
    """Raise InputError where a living process other than this one is at work on the folder.

    A process of another machine is not seen: on a shared disk two machines have to be kept apart by their users.
    """
    try:
        holder = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if holder == _this_process() or holder["host"] != platform.node():
            return
        alive = psutil.Process(holder["pid"]).create_time() == holder["started"]
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return
    if alive:
        raise InputError(f"{folder}: process {holder['pid']} is at work on it; wait for it, or end it")


def _this_process() -> dict[str, object]:
    started = 0.0
    with suppress(psutil.Error):
        started = psutil.Process().create_time()
    return {"host": platform.node(), "pid": os.getpid(), "started": started}
