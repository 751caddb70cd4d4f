"""Files that are whole or absent: everything is written under a temporary name and renamed."""

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs
import psutil

from calrec_lite.bars import wait_bar

TERMS = ("LICENSE*", "NOTICE*", "Notice*")  # what whoever passes a model on has to pass on with it
WEEK = 7 * 24 * 3600  # seconds
WORK = "calrec-lite"  # what folders for the length of a command are called
BLOCK = 1 << 20  # bytes hashed at once
SEAL = "sha256"  # of all the rest of a JSON object
BESIDE_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja", *TERMS)  # a model's config, tokenizer, templates, terms


def cache_folder() -> Path:
    """The user's cache folder; `CALREC_LITE_CACHE` moves it."""
    folder = os.environ.get("CALREC_LITE_CACHE") or platformdirs.user_cache_dir("calrec-lite", appauthor=False)
    return Path(folder)


def copy_matching(source: Path, to: Path, patterns: Sequence[str]) -> None:
    """Copy the files of a folder (not of those below it) whose names match one of `patterns` into another."""
    for file in (f for pattern in patterns for f in source.glob(pattern) if f.is_file()):
        shutil.copy(file, to / file.name)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        wait_bar(f"read {path.name}", path.stat().st_size, "B", unit_scale=True) as bar,
    ):
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of change (nanoseconds): equal where a file is the same, without reading it."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` for a file or a folder; rename it into place if the block succeeds.

    An existing file is replaced in one step. An existing folder is moved aside first, so that at no
    moment a half-written one carries the final name. On an error the temporary is removed; what a killed
    process left, which may be gigabytes, is removed by the next that writes the same path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path, "tmp")
    temporary = path.with_name(f".{path.name}.{_process()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():
            old = path.with_name(f".{path.name}.{_process()}.old")
            path.rename(old)
            temporary.rename(path)
            _remove(old)
        else:
            temporary.replace(path)
        _remove_stale(path, "old")  # only now: until here it may have been the one whole copy
    finally:
        _remove(temporary)


@contextmanager
def work_folder(place: Path | None = None) -> Iterator[Path]:
    """Give a new folder in `place`, or in the system's folder for temporary files (TMPDIR), and remove it at the end.

    What killed processes left there, which may be gigabytes, is removed first.
    """
    place = place or Path(tempfile.gettempdir())
    with suppress(OSError):  # another user's, or one that another process removes as well
        _remove_stale(place / WORK, "work")
    with tempfile.TemporaryDirectory(prefix=f".{WORK}.{_process()}.", suffix=".work", dir=place) as folder:
        yield Path(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:  # a file's name may be no UTF-8: JSON writes such a character as this does
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with a hash of itself, for `unsealed`."""
    return {**content, SEAL: _digest(json.loads(json.dumps(content)))}  # as it is read back


def unsealed(content: dict[str, Any]) -> bool:
    """Take the hash out; returns whether the content is what it was made of. Without a hash nothing is compared."""
    seal = content.pop(SEAL, None)
    return seal is None or seal == _digest(content)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _process() -> str:
    """This machine's name and the process's id: on a shared disk other machines have the same ids."""
    return f"{_host()}-{os.getpid()}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node())


def _remove_stale(path: Path, kind: str) -> None:
    """Remove `.NAME.HOST-PID.kind` (or `.NAME.HOST-PID.RANDOM.kind`) beside `path` where this machine has no process of
    that id any more (a reused id keeps it a while), and another machine's (or a container's, whose name is another each
    time) after a week."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\w+)-(\d+)(?:\.\w+)?\.{kind}")
    for sibling in list(path.parent.iterdir()):
        if match := pattern.fullmatch(sibling.name):
            here = match[1] == _host()
            if not psutil.pid_exists(int(match[2])) if here else time.time() - sibling.lstat().st_mtime > WEEK:
                _remove(sibling)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
