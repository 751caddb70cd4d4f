"""Parts of inputs and what came of them, wherever they lie: paths, and by fsspec `s3://`, `gs://` and the like.

Of each part OUT has `NAME.parquet`, of lists bad lines in `_rejected/NAME.jsonl`, and at last
`_state/NAME.json`: a part that has the last one is done.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from calrec_lite.errors import InputError, one_line
from calrec_lite.files import atomic_path
from calrec_lite.recommend.shards import SUFFIXES, Shard

ALONE = 16  # parts of a single file, or of a catalogue


@dataclass(frozen=True)
class Part:
    """A shard of an input file, the whole of it where there are many, and what its lists are called."""

    source: str
    shard: Shard
    name: str

    def __str__(self) -> str:
        return f"{self.source}, {self.name}"


def inputs_of(users: str) -> list[tuple[str, int]]:
    """(address, bytes) of the file, of those in the folder, or of those that a pattern (`*`) names, in order.

    Raises InputError where there are none.
    """
    try:
        files, path = fsspec.core.url_to_fs(users)
        pattern = f"{path}/*" if files.isdir(path) else path
        found = files.glob(pattern) if "*" in pattern else [path]
        names = sorted(name for name in found if name.endswith(SUFFIXES))
        sizes = [int(files.size(name) or 0) for name in names]
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--users {users}: cannot be read ({one_line(error)})") from None
    if not names:
        raise InputError(f"--users {users}: no file of a name that ends in {', '.join(SUFFIXES)}")
    return [(str(files.unstrip_protocol(name)), size) for name, size in zip(names, sizes)]


def parts_of(sources: list[str], count: int | None) -> list[Part]:
    """Each file in so many shards; default: 1 of many files, 16 of a single one."""
    count = count or (ALONE if len(sources) == 1 else 1)
    shards = [(source, Shard(index, count)) for source in sources for index in range(count)]
    return [Part(source, shard, f"part-{n:05d}-of-{len(shards):05d}") for n, (source, shard) in enumerate(shards, 1)]


class Place:
    """A folder, here or far away. Files in it are whole or absent. In messages it is called by an option's name."""

    def __init__(self, address: str, option: str = "--out") -> None:
        self.address, self.called = address, f"{option} {address}"
        try:
            self.files, self.path = fsspec.core.url_to_fs(address.rstrip("/"))
        except (ValueError, ImportError) as error:
            raise InputError(f"{self.called}: {one_line(error)}") from None
        self.absolute = str(self.files.unstrip_protocol(self.path))
        self.local = isinstance(self.files, LocalFileSystem)
        if self.local and Path(self.path).is_file():
            raise InputError(f"{self.called}: is a file; --engine ray writes a folder")

    def put(self, file: Path, name: str) -> None:
        """A copy of a file under a name."""
        if self.local:
            with atomic_path(Path(self.path, name)) as temporary:
                shutil.copy(file, temporary)
        else:
            self.files.put_file(str(file), f"{self.path}/{name}")  # stores of objects show whole ones only

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """A JSON object under a name."""
        text = json.dumps(value, ensure_ascii=False, indent=1).encode()
        if self.local:
            with atomic_path(Path(self.path, name)) as temporary:
                temporary.write_bytes(text)
        else:
            self.files.pipe_file(f"{self.path}/{name}", text)

    def read(self, name: str) -> dict[str, Any] | None:
        """The JSON object under a name; None: there is none. Raises InputError for something else."""
        try:
            value = json.loads(self.files.cat_file(f"{self.path}/{name}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.called}: {name} cannot be read ({one_line(error)}); remove it") from None
        if not isinstance(value, dict):
            raise InputError(f"{self.called}: {name} holds no JSON object; remove it")
        return value


def local_copy(source: str, folder: Path) -> Path:
    """The file itself where it is here; else a copy, the only one in `folder`."""
    files, path = fsspec.core.url_to_fs(source)
    if isinstance(files, LocalFileSystem):
        return Path(path)
    name = hashlib.sha256(source.encode()).hexdigest()[:16]  # in two folders there may be files of one name
    copy = folder / f"{name}-{Path(path).name}"
    if not copy.exists():
        for other in folder.glob("*-*"):
            other.unlink()
        with atomic_path(copy) as temporary:
            files.get_file(path, str(temporary))
    return copy
