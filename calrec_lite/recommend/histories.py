"""Histories from a file of any length, one after the other; a line that cannot be used is returned with the reason."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from calrec_lite.errors import InputError

LONGEST = 1 << 24  # bytes of a line; the rest of a longer line is skipped
SHOWN = 1000  # characters kept of a line that was too long
ROWS = 1024  # rows of a Parquet file held at a time


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

    def read(self, skip: int = 0) -> Iterator[tuple[int, User | Rejected | None]]:
        """(line number, user) from line `skip` + 1 on; None for an empty line."""
        rows: Iterator[Any] = self._rows() if self.path.suffix == ".parquet" else self._lines()
        number = 0
        try:
            for number, entry in enumerate(rows, 1):
                if number > skip:
                    yield number, _parse(number, entry)
        except (OSError, EOFError, zlib.error, pa.ArrowException, ValueError, OverflowError) as error:
            raise InputError(f"--users {self.path}: damaged after line {number} ({error})") from None

    def _lines(self) -> Iterator[bytes]:
        """Lines, each cut to LONGEST bytes."""
        with self.path.open("rb") as raw:
            file: IO[bytes] = gzip.GzipFile(fileobj=raw) if self.path.suffix == ".gz" else raw  # type: ignore[assignment]
            while line := file.readline(LONGEST):
                rest = line
                while not rest.endswith(b"\n") and (rest := file.readline(LONGEST)):
                    pass
                self._position = raw.tell()
                yield line

    def _rows(self) -> Iterator[dict[str, Any]]:
        with pq.ParquetFile(self.path) as file:
            self._size = max(1, file.metadata.num_rows)
            columns = [c for c in ("user", "history", "candidates") if c in file.schema_arrow.names]
            self._position = 0
            for batch in file.iter_batches(ROWS, columns=columns):
                for row in batch.to_pylist():
                    self._position += 1
                    yield row


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
