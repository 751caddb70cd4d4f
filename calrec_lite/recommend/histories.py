"""Histories from a file of any length, one after the other; a line that cannot be used is returned with the reason."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calrec_lite.errors import InputError
from calrec_lite.files import size_and_time
from calrec_lite.recommend.shards import Shard

LONGEST = 1 << 24  # bytes of a line; the rest of a longer line is skipped
SHOWN = 1000  # characters kept of a line that was too long
ROWS = 1024  # rows of a Parquet file held at a time
EVERY = 1 << 14  # lines whose beginning is remembered: a part of a file is read from near where it begins
PIECE = 1 << 22  # bytes that are searched for line ends at once


@dataclass(frozen=True)
class User:
    """One line: the user's name, the history oldest first, the only items to choose from (None: all), its text."""

    name: str
    history: list[str]
    candidates: list[str] | None
    text: str


@dataclass(frozen=True)
class Rejected:
    """A line that cannot be used: its number (from 1), the reason, and its text."""

    line: int
    reason: str
    text: str


class Histories:
    """Streams users from JSON lines (`.jsonl`, `.jsonl.gz`) or Parquet.

    A line (a row) is `{"user": "u1", "history": ["title or id", ...], "candidates": ["title or id", ...]}`; `user` may
    be missing (the line's number stands for it), and `candidates` too.

    Raises:
        InputError: if the file cannot be read at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position, self._size = 0, 1
        try:
            self._size = max(1, path.stat().st_size)
            if path.suffix == ".parquet" and "history" not in pq.read_schema(path).names:
                raise InputError(f"--users {path}: has no column `history`")
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"--users {path}: cannot be read ({error})") from None

    @property
    def share(self) -> float:
        """How much of the file has been read, 0 to 1."""
        return min(1.0, self._position / self._size)

    def lines_of(self, shard: Shard, block: int) -> tuple[int, int]:
        """Which lines a part has of the file's blocks: after the first number, up to the second one."""
        try:
            if self.path.suffix == ".parquet":
                lines = int(pq.read_metadata(self.path).num_rows)
            else:
                lines, _ = _line_starts(self.path, *size_and_time(self.path))
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise InputError(f"--users {self.path}: damaged ({error})") from None
        first, end = shard.bounds(-(-lines // block))
        return min(lines, first * block), min(lines, end * block)

    def read(self, skip: int = 0) -> Iterator[tuple[int, User | Rejected | None]]:
        """(line number, user) from line `skip` + 1 on; None for an empty line."""
        number = skip
        try:
            entries: Iterator[Any] = self._rows(skip) if self.path.suffix == ".parquet" else self._lines(skip)
            for number, entry in enumerate(entries, skip + 1):
                yield number, _parse(number, entry)
        except (OSError, EOFError, zlib.error, pa.ArrowException, ValueError, OverflowError) as error:
            raise InputError(f"--users {self.path}: damaged after line {number} ({error})") from None

    def _lines(self, skip: int) -> Iterator[bytes]:
        """Lines from `skip` + 1 on, each cut to LONGEST bytes."""
        with self.path.open("rb") as raw:
            file: IO[bytes] = gzip.GzipFile(fileobj=raw) if self.path.suffix == ".gz" else raw  # type: ignore[assignment]
            if file is raw and skip >= EVERY:
                _, starts = _line_starts(self.path, *size_and_time(self.path))
                at = min(skip // EVERY, len(starts) - 1)
                raw.seek(starts[at])
                skip -= at * EVERY
            while line := file.readline(LONGEST):
                rest = line
                while not rest.endswith(b"\n") and (rest := file.readline(LONGEST)):
                    pass
                if skip:
                    skip -= 1
                    continue
                self._position = raw.tell()
                yield line

    def _rows(self, skip: int) -> Iterator[dict[str, Any]]:
        """Rows from `skip` + 1 on; groups of rows before it are not read."""
        with pq.ParquetFile(self.path) as file:
            metadata = file.metadata
            self._size = max(1, metadata.num_rows)
            columns = [c for c in ("user", "history", "candidates") if c in file.schema_arrow.names]
            self._position = group = 0
            while group < metadata.num_row_groups and (rows := metadata.row_group(group).num_rows) <= skip:
                self._position, skip, group = self._position + rows, skip - rows, group + 1
            for batch in file.iter_batches(ROWS, [*range(group, metadata.num_row_groups)], columns):
                left = batch.slice(min(skip, len(batch)))
                self._position, skip = self._position + len(batch) - len(left), skip - (len(batch) - len(left))
                for row in left.to_pylist():
                    self._position += 1
                    yield row


@lru_cache(16)
def _line_starts(path: Path, size: int, time: int) -> tuple[int, list[int]]:
    """How many lines a file of text has, and where (bytes) the first, and each EVERY-th after it, begins.

    Args:
        size, time: of the file: changed, it is looked through again.
    """
    lines, at, starts, last = 0, 0, [0], b"\n"
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while piece := file.read(PIECE):
            ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n"))
            starts += (at + 1 + ends[(EVERY - 1 - lines) % EVERY :: EVERY]).tolist()
            lines, at, last = lines + len(ends), at + len(piece), piece[-1:]
    return lines + (last != b"\n"), starts


def _parse(number: int, entry: bytes | dict[str, Any]) -> User | Rejected | None:
    if not isinstance(entry, bytes):
        text = json.dumps(entry, default=str)
    elif not entry.strip():
        return None
    else:
        text = entry.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
    try:
        if isinstance(entry, bytes) and len(entry) == LONGEST and not entry.endswith(b"\n"):
            text = text[:SHOWN]
            raise ValueError(f"longer than {LONGEST >> 20} MB")
        return _user(number, json.loads(entry.decode("utf-8-sig")) if isinstance(entry, bytes) else entry, text)
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except UnicodeEncodeError:
        reason = "holds half a character (a lone surrogate)"
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg} at character {error.pos + 1})"
    except RecursionError:
        reason = "not JSON (nested too deep)"
    except ValueError as error:
        reason = str(error)
    return Rejected(number, reason, text)


def _user(number: int, entry: Any, text: str) -> User:
    if not isinstance(entry, dict) or "history" not in entry:
        raise ValueError('not {"user": ..., "history": [titles or ids]}')
    name = entry.get("user")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise ValueError("`user` is neither text nor a whole number")
    name = str(number if name is None else name)
    history, candidates = _texts(entry["history"], "history"), entry.get("candidates")
    if candidates is not None:
        candidates = _texts(candidates, "candidates")
        if not candidates:
            raise ValueError("`candidates` is an empty list; leave it out to choose from all items")
    "".join([name, *history, *(candidates or [])]).encode()  # what is read must be writable
    return User(name, history, candidates, text)


def _texts(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or any(isinstance(t, bool) or not isinstance(t, str | int) for t in value):
        raise ValueError(f"`{key}` is not a list of titles or ids")
    return [str(t) for t in value]
