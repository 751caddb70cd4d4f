"""A folder on a small disk of its own, where this process may mount one."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

BLOCK = 4096  # bytes of which a tmpfs gives out its room
ROOMY = "1g"


@contextmanager
def disk(folder: Path, room: int = 0) -> Iterator[None]:
    """Make `folder` for the length of the block, anew; on a tmpfs of `room` bytes, 0: where it lies."""
    _remove(folder)
    folder.mkdir()
    if room:
        _mount(folder, f"size={room}")
    try:
        yield
    finally:
        _remove(folder)


def grown(folder: Path) -> None:
    """Make room on the folder's disk."""
    _mount(folder, f"remount,size={ROOMY}")


@cache
def can_mount() -> bool:
    """Whether this process may: as root on Linux it may."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with disk(Path(folder) / "disk", BLOCK):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def used(folder: Path) -> int:
    """Bytes that the folder's files and folders take on a tmpfs."""
    paths = list(folder.rglob("*"))
    return BLOCK * sum(1 + (-(-path.stat().st_size // BLOCK) if path.is_file() else 0) for path in paths)


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)


def _remove(folder: Path) -> None:
    if os.path.ismount(folder):  # a stop may have left it
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
