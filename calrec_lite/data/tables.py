"""One raw file as a DuckDB relation: CSV, TSV, JSON lines, Parquet and RecBole's atomic files, gzipped or not.

Nothing about a file is guessed from a sample of its rows (of JSON lines the columns are looked for in all of them):
DuckDB's own CSV sniffer silently skips rows that it takes for a preamble, so the header is read here.
"""

import csv
import difflib
import glob
import gzip
import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import duckdb

from calrec_lite.errors import InputError

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".inter": "atomic",
    ".item": "atomic",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True)
class Table:
    """A readable file.

    Attributes:
        source: the same file under a name of ours: DuckDB takes a name as a pattern, and its folders as columns.
        kind: `csv`, `atomic` (tab-separated, no quotes, `name:type` headers), `json` or `parquet`.
        columns: name -> DuckDB type, in the file's order.
        delimiter: of `csv` and `atomic`.
    """

    path: Path
    source: Path
    kind: str
    columns: dict[str, str]
    delimiter: str = ","

    def is_list(self, column: str) -> bool:
        """Whether the column holds a list in each row."""
        return self.columns[column].endswith("[]")

    def value(self, column: str) -> str:
        """A column's values in SQL: of 32-bit floats the short decimal that was meant, not the long one of 64 bits."""
        kind = self.columns[column]
        if not kind.startswith("FLOAT"):
            return quoted(column)
        brackets = kind.removeprefix("FLOAT")
        return f"CAST(CAST({quoted(column)} AS VARCHAR{brackets}) AS DOUBLE{brackets})"

    def scan(self, types: dict[str, str]) -> str:
        """A FROM clause with at least the columns `types`, read as those types where the file itself has none."""
        if self.kind == "parquet":
            return self._read()
        if self.kind == "json":
            columns = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in types.items())
            return self._read(f"format='newline_delimited', columns={{{columns}}}")
        quote = "" if self.kind == "atomic" else '"'
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in self.columns)
        return self._read(
            f"auto_detect=false, strict_mode=true, header=true, nullstr='', delim={literal(self.delimiter)}, "
            f"quote='{quote}', escape='{quote}', columns={{{columns}}}"
        )

    def _read(self, options: str = "") -> str:
        """The call of DuckDB's reader for just this file."""
        place = literal(glob.escape(str(self.source)))  # the folder for temporary files is not of our naming
        zipped = "" if self.kind == "parquet" else f", compression='{'gzip' if _is_zipped(self.path) else 'none'}'"
        reader = "read_csv" if self.kind == "atomic" else f"read_{self.kind}"
        return f"{reader}({place}, hive_partitioning=false{zipped}{options and ', '}{options})"

    def find(self, key: str, named: str | None, usual: Sequence[str]) -> str:
        """The column that the recipe names, or else the first of the usual names that is there.

        Raises:
            InputError: there is no such column; the message lists those there are.
        """
        for name in usual if named is None else [named]:
            if name in self.columns:
                return name
        wanted = usual[0] if named is None else named
        near = difflib.get_close_matches(wanted, self.columns, 1, cutoff=0.75)
        hint = f", did you mean `{near[0]}`?" if near else "."
        raise InputError(
            f"{self.path}: no column `{wanted}` for `{key}`{hint} The columns are: {', '.join(self.columns)}"
        )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what DuckDB says about this file's content into an InputError of one line."""
        try:
            yield
        except (duckdb.DataError, duckdb.OperationalError, duckdb.ProgrammingError) as error:
            # Out of memory or disk is not the file's fault; such errors do not name it.
            if isinstance(error, duckdb.OperationalError) and str(self.source) not in str(error):
                raise
            raise InputError(_explain(self.path, self.kind, str(error))) from None


def open_table(connection: duckdb.DuckDBPyConnection, path: Path, folder: Path) -> Table:
    """Look at a file's name and header.

    Args:
        folder: for what reading it needs, as long as the table is in use.

    Raises:
        InputError: unknown kind of file, damaged gzip, no header, or broken content.
    """
    suffixes, zipped = [suffix.lower() for suffix in path.suffixes], _is_zipped(path)
    kind = KINDS.get(suffixes[-2 if zipped else -1]) if len(suffixes) > zipped else None
    if kind is None:
        raise InputError(
            f"{path}: unknown kind of table; its name must end in one of {', '.join(KINDS)} (or those + .gz)"
        )
    if zipped:
        _check_gzip(path)
    if kind in ("csv", "atomic"):
        return _open_text(path, _link(path, folder), kind, "\t" if kind == "atomic" or ".tsv" in suffixes else None)
    table = Table(path, _link(path, folder), kind, {})
    options = "format='newline_delimited', sample_size=-1" if kind == "json" else ""  # a field may come late
    with table.reading():
        schema = connection.execute(f"DESCRIBE SELECT * FROM {table._read(options)}").fetchall()
    columns = {name: column_type for name, column_type, *_ in schema}
    if kind == "json" and list(columns) == ["json"]:  # what DuckDB says of lines that are no objects, and of no lines
        raise InputError(_bad_json_line(path) or f"{path}: holds no usable row")
    return replace(table, columns=columns)


def quoted(name: str) -> str:
    """A name as SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL string."""
    return "'" + text.replace("'", "''") + "'"


def shown(value: object) -> str:
    """A foreign text for a message: one short line without control characters."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)[:81])
    return text if len(text) <= 80 else text[:77] + "..."


def _is_zipped(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _link(path: Path, folder: Path) -> Path:
    link = Path(tempfile.mkdtemp(dir=folder)) / "table"
    link.symlink_to(path.resolve())
    return link


def _open_text(path: Path, source: Path, kind: str, delimiter: str | None) -> Table:
    try:
        with _open(path) as file:
            header = file.readline().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise InputError(f"{path}:1: is not UTF-8 text; convert it first") from None
    delimiter = delimiter or max(",;\t|", key=header.count)
    names = header.split("\t") if kind == "atomic" else next(csv.reader([header], delimiter=delimiter), [])
    if not any(names):
        raise InputError(f"{path}: holds no usable row (no header line)")
    names = [name.partition(":")[0] if kind == "atomic" else name.strip() for name in names]
    names = [name or f"column{i}" for i, name in enumerate(names)]
    for i, name in enumerate(names):
        if name.lower() in [other.lower() for other in names[:i]]:
            raise InputError(f"{path}:1: two columns are called `{name}`; rename one")
    return Table(path, source, kind, dict.fromkeys(names, "VARCHAR"), delimiter)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if _is_zipped(path) else path.open("rb")  # type: ignore[return-value]


def _check_gzip(path: Path) -> None:
    """Read the file once to its end: a reader that stops after some rows would not see that the rest is missing."""
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except EOFError:
        raise InputError(f"{path}: the gzip file ends too early (truncated); download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: not a sound gzip file ({error}); download it again") from None


def _explain(path: Path, kind: str, message: str) -> str:
    if kind == "json":
        at_line = re.search(r"in line (\d+): (.*)", message)
        return _bad_json_line(path) or (f"{path}:{at_line[1]}: {at_line[2]}" if at_line else f"{path}: {message}")
    at_line = re.search(r"CSV Error on Line: (\d+)", message)
    if at_line is None:
        return f"{path}: not a readable {kind} file: {message.splitlines()[0]}"
    if "not utf-8" in message:
        return f"{path}:{at_line[1]}: is not UTF-8 text; convert it first"
    reason = re.search(r"Expected Number of Columns: .*|Value with unterminated quote.*|.*quote.*", message)
    return f"{path}:{at_line[1]}: {reason[0] if reason else message.splitlines()[0]}"


def _bad_json_line(path: Path) -> str | None:
    """Where and how the JSON breaks. DuckDB's line numbers are one too high where a line ends early."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line.rstrip()) if line.strip() else {}
            except UnicodeDecodeError:
                return f"{path}:{number}: is not UTF-8 text; convert it first"
            except json.JSONDecodeError as error:
                return f"{path}:{number}: malformed JSON at column {error.colno}: {error.msg}"
            if not isinstance(value, dict):
                return f"{path}:{number}: each line must be one JSON object, not {line.decode().strip()[:40]}"
    return None
