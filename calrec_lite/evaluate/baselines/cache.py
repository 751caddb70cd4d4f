"""A cache for what a baseline takes long to compute, under a key made of everything that the result depends on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calrec_lite.claim import claimed_file
from calrec_lite.files import atomic_path, cache_folder


def cached(name: str, settings: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled for these settings: now, or when it was first needed.

    Args:
        settings: plain data; the domain's fingerprint among it.
        make: writes its files into the empty folder that it is given.
    """
    text = json.dumps(settings, sort_keys=True)
    folder = cache_folder() / "baselines" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    if not folder.is_dir():
        with claimed_file(folder, wait=True):
            if not folder.is_dir():  # another process may just have made it
                _make(folder, settings, make)
    return folder


def _make(folder: Path, settings: Mapping[str, Any], make: Callable[[Path], None]) -> None:
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        make(temporary)
        (temporary / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
