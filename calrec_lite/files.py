"""Files that are whole or absent: everything is written under a temporary name and renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs


def cache_folder() -> Path:
    """The user's cache folder; `CALREC_LITE_CACHE` moves it."""
    folder = os.environ.get("CALREC_LITE_CACHE") or platformdirs.user_cache_dir("calrec-lite", appauthor=False)
    return Path(folder)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` for a file or a folder; rename it into place if the block succeeds.

    An existing file is replaced in one step. An existing folder is moved aside first, so that at no
    moment a half-written one carries the final name. On an error the temporary is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            temporary.rename(path)
            _remove(old)
        else:
            temporary.replace(path)
    finally:
        _remove(temporary)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
