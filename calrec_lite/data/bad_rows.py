"""`on_bad_rows: drop`: rows that cannot be read are left out, counted, and written down."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from calrec_lite.data.faults import LONGEST, bad_json, open_bytes, shown
from calrec_lite.errors import InputError

KEPT = 10_000  # of the rows left out, so many are written down; all are counted
LONGEST_RECORD = 1 << 20  # bytes of a CSV record over several lines: a quote that never closes ends here
MOST = 0.1  # of a file's rows: if more are bad, the file is read in a wrong way
TEXT = 500  # characters of a row that are written down


@dataclass
class BadRows:
    """The rows that were left out.

    Attributes:
        counts: file -> how many.
        rows: the first of them: `file`, `line` (of the file, from 1) or `row` (without the header), `reason`, `text`.
    """

    counts: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, str | int]] = field(default_factory=list)

    def add(self, path: Path, line: int, reason: str, text: bytes | str, number: str = "line") -> None:
        """One row that goes."""
        self.counts[path.name] = self.counts.get(path.name, 0) + 1
        if len(self.rows) < KEPT:
            text = text[: 4 * TEXT].decode(errors="backslashreplace") if isinstance(text, bytes) else text
            text = text.rstrip("\r\n")[:TEXT].encode(errors="backslashreplace").decode()
            self.rows.append({"file": path.name, number: line, "reason": shown(reason), "text": text})

    def count(self, path: Path, n: int) -> None:
        """More rows that go, beyond those written down."""
        self.counts[path.name] = self.counts.get(path.name, 0) + n

    def check(self, path: Path, rows: int) -> None:
        """Raise InputError where so many of a file's rows are bad that something else must be wrong."""
        n = self.counts.get(path.name, 0)
        if n > MOST * rows:
            first = next(row for row in self.rows if row["file"] == path.name)
            place = f"{'line' if 'line' in first else 'row'} {first.get('line', first.get('row'))}"
            raise InputError(
                f"{path}: on_bad_rows: {n:,} of {rows:,} rows cannot be read, more than {MOST:.0%}, such as {place} "
                f"({first['reason']}); see whether reader, columns and encoding are right"
            )


def sift_json(source: Path, target: Path, path: Path, bad: BadRows) -> None:
    """Copy the lines that are JSON objects."""
    rows = 0
    with open_bytes(source) as lines, target.open("wb") as kept:
        for number, line in _lines(lines):
            if not line.strip():
                continue
            rows += 1
            if reason := bad_json(line):
                bad.add(path, number, reason, line)
            else:
                kept.write(line if line.endswith(b"\n") else line + b"\n")
    bad.check(path, rows)


def sift_text(
    source: Path, target: Path, path: Path, bad: BadRows, columns: int, delimiter: str, quotes: bool, header: bool
) -> None:
    """Copy the records that have so many columns; `path` is the file's own name."""
    sifter = _Sifter(columns, delimiter, quotes)
    rows = 0
    with open_bytes(source) as file, target.open("wb") as kept, _long_fields():
        queue = _Queue(file)
        if header:
            kept.write(queue.take_record(sifter))
        while line := queue.next():
            number, first = line
            if not first.strip(b"\r\n"):
                continue
            rows += 1
            record, reason = sifter.record(first, queue)
            if reason:
                bad.add(path, number, reason, first)
            else:
                kept.write(record if record.endswith(b"\n") else record + b"\n")
    bad.check(path, rows)


class _Queue:
    """The lines of a file with their numbers; those that were looked at too far ahead come again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.lines, self.again = _lines(file), list[tuple[int, bytes]]()

    def next(self) -> tuple[int, bytes] | None:
        return self.again.pop(0) if self.again else next(self.lines, None)

    def take_record(self, sifter: "_Sifter") -> bytes:
        """The header, which was found to be sound before."""
        line = self.next()
        return sifter.record(line[1], self)[0] if line else b""


class _Sifter:
    def __init__(self, columns: int, delimiter: str, quotes: bool) -> None:
        self.columns, self.delimiter, self.quotes = columns, delimiter, quotes

    def record(self, first: bytes, queue: _Queue) -> tuple[bytes, str]:
        """A record that begins with this line and takes what it needs of those behind it; or why there is none."""
        reason = self._wrong(first)
        if reason != UNCLOSED:
            return first, reason
        taken: list[tuple[int, bytes]] = []
        size = len(first)
        while size < LONGEST_RECORD and (line := queue.next()):
            taken.append(line)
            size += len(line[1])
            if line[1].count(b'"') % 2:  # only then may the quote have closed
                record = first + b"".join(more for _, more in taken)
                if not self._wrong(record):
                    return record, ""
                break
        queue.again[:0] = taken
        return first, UNCLOSED

    def _wrong(self, record: bytes) -> str:
        try:
            text = record.decode()
        except UnicodeDecodeError:
            return "is not UTF-8 text"
        if not self.quotes:
            return self._count(text.count(self.delimiter) + 1)
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            return UNCLOSED if "unexpected end" in str(error) else str(error)
        return self._count(len(rows[0])) if len(rows) == 1 else UNCLOSED

    def _count(self, found: int) -> str:
        return "" if found == self.columns else f"Expected Number of Columns: {self.columns} Found: {found}"


UNCLOSED = "Value with unterminated quote found."


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        yield number, line


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module's limit is the process's, and short."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)
