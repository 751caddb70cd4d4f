"""What lies on disk is looked at before it is trusted: JSON that may be damaged, files that may be others by now."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from calrec_lite.errors import InputError, one_line
from calrec_lite.files import file_sha256, size_and_time, write_json

MANIFEST = "manifest.json"


def read_object(file: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        remedy: what the message ends with.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({one_line(error, 200)}); {remedy}") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: holds no JSON object; {remedy}")
    return value


def write_manifest(folder: Path, patterns: Sequence[str]) -> None:
    """Record size, time of change and SHA-256 of the files in `folder` of some patterns, for `require_unchanged`."""
    files = sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())
    write_json(folder / MANIFEST, {"files": {file.relative_to(folder).as_posix(): _entry(file) for file in files}})


def record_also(folder: Path, name: str) -> None:
    """Add one more file to the folder's manifest, where it has one."""
    if (folder / MANIFEST).is_file():
        manifest = read_object(folder / MANIFEST, "remove it, and nothing is compared")
        manifest["files"][name] = _entry(folder / name)
        write_json(folder / MANIFEST, manifest)


def require_unchanged(folder: Path, part: str = ".", remedy: str = "", whole: bool = True) -> None:
    """Compare a part of a folder with its manifest. Contents are read only of files whose time of change is another.

    Without a manifest (of an earlier version) there is nothing to compare.

    Args:
        whole: whether a file may not be missing either; where only some are needed, who needs them says so.

    Raises:
        InputError: a file is missing, or is not the one that was written.
    """
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_object(folder / MANIFEST, "remove it, and nothing is compared")
    entries = {n: entry for n, entry in _entries(manifest, folder, part) if whole or (folder / n).is_file()}
    touched = [name for name, entry in entries.items() if _was_read(folder / name, entry, remedy)]
    if touched:  # and found equal: a copy, say; the next command need not read it
        for name in touched:
            manifest["files"][name]["time"] = size_and_time(folder / name)[1]
        with suppress(OSError):  # a run may be kept where nobody writes
            write_json(folder / MANIFEST, manifest)


def _entries(manifest: dict[str, Any], folder: Path, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        for name, entry in manifest["files"].items():
            values = {key: entry[key] for key in ("size", "time", "sha256")}
            size, changed, digest = values.values()
            inside = (
                not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and "\0" not in name
            )
            if not (isinstance(size, int) and isinstance(changed, int) and isinstance(digest, str) and inside):
                raise TypeError
            if part in (".", name) or name.startswith(f"{part}/"):
                yield name, values
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{folder / MANIFEST}: is no manifest; remove it, and nothing is compared") from None


def _entry(file: Path) -> dict[str, Any]:
    size, time = size_and_time(file)
    return {"size": size, "time": time, "sha256": file_sha256(file)}


def _was_read(file: Path, entry: dict[str, Any], remedy: str) -> bool:
    """Whether the file had to be read to be compared. Raises InputError where it is another than `entry` says."""
    if not file.is_file():
        raise InputError(f"{file}: is missing; {remedy}")
    size, time = size_and_time(file)
    if size != entry["size"]:
        raise InputError(f"{file}: has {size:,} bytes, not the {entry['size']:,} that were written; {remedy}")
    if time == entry["time"]:
        return False
    if file_sha256(file) != entry["sha256"]:
        raise InputError(f"{file}: its content is not what was written; {remedy}")
    return True
