"""One raw file as a DuckDB relation: CSV, TSV, JSON lines, Parquet and RecBole's atomic files, gzipped or not.

Nothing about a file is guessed from a sample of its rows (of JSON lines the columns are looked for in all of them):
DuckDB's own CSV sniffer silently skips rows that it takes for a preamble, so the header is read here.
"""

import csv
import difflib
import glob
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from calrec_lite.data.bad_rows import BadRows, sift_json, sift_text
from calrec_lite.data.faults import LONGEST, NOT_UTF8, bad_json_line, check_gzip, explain, is_zipped, open_bytes, shown
from calrec_lite.data.formats.places import Place
from calrec_lite.data.formats.plain import in_json, in_utf8, refuse_spreadsheet, unpacked
from calrec_lite.data.formats.shapes import ANY, KINDS, File, plain_name
from calrec_lite.errors import InputError, RunError

MOMENT = re.compile(r"\bTIMESTAMP(?:_\w+| WITH TIME ZONE)?|\bTIME(?: WITH TIME ZONE|_NS)?\b")  # at any depth of a type
NO_NAME = ("BOOLEAN", "STRUCT", "MAP", "UNION", "INTERVAL", "BIT", "VARIANT", "[")  # of types whose values name nothing


@dataclass(frozen=True)
class Table:
    """A readable file.

    Attributes:
        source: the same file under a name of ours: DuckDB takes a name as a pattern, and its folders as columns.
        kind: `csv`, `atomic` (tab-separated, no quotes, `name:type` headers), `json` or `parquet`.
        columns: name -> DuckDB type, in the file's order; of JSON lines as `with_types` finds them.
        delimiter: of `csv` and `atomic`, and whether they have quotes and a header line.
    """

    path: Path
    source: Path
    kind: str
    columns: dict[str, str]
    delimiter: str = ","
    quotes: bool = True
    header: bool = True

    def is_list(self, column: str) -> bool:
        """Whether the column holds a list in each row."""
        return self.columns[column].endswith("[]")

    def value(self, column: str) -> str:
        """A column's values in SQL, as Python shall see them.

        Of 32-bit floats that is the short decimal that was meant, not the long one of 64 bits; of moments their text,
        for Python knows neither nanoseconds nor, without further packages, time zones.
        """
        kind = self.columns[column]
        if kind.startswith("FLOAT"):
            brackets = kind.removeprefix("FLOAT")
            return f"CAST(CAST({quoted(column)} AS VARCHAR{brackets}) AS DOUBLE{brackets})"
        if MOMENT.search(kind):
            return f"CAST({quoted(column)} AS {MOMENT.sub('VARCHAR', kind)})"
        return quoted(column)

    def text(self, column: str) -> str:
        """A column of ids or times in SQL, as VARCHAR or VARCHAR[]."""
        kind, name = self.columns[column], quoted(column)
        if kind == "BLOB":
            return f"decode({name})"
        if kind == "BLOB[]":
            return f"[decode(part) for part in {name}]"
        return f"CAST({name} AS VARCHAR{'[]' if self.is_list(column) else ''})"

    def check_names(self, connection: duckdb.DuckDBPyConnection, column: str) -> None:
        """Raise InputError unless a column of ids or times (or lists of them) holds texts, numbers or moments."""
        kind = self.columns[column]
        bad = any(word in kind.removesuffix("[]") for word in NO_NAME)
        if kind in ("BLOB", "BLOB[]"):
            damaged = f"{quoted(column)} IS NOT NULL AND TRY({self.text(column)}) IS NULL"
            with self.reading():
                bad = bool(connection.execute(f"SELECT 1 FROM {self.scan({})} WHERE {damaged} LIMIT 1").fetchall())
        if bad:
            raise InputError(
                f"{self.path}: column `{shown(column)}` is of type {shown(kind)} and holds what is no text; "
                "write it as text (UTF-8) or as numbers"
            )

    def scan(self, types: dict[str, str]) -> str:
        """A FROM clause with at least the columns `types`, read as those types where the file itself has none."""
        if self.kind == "parquet":
            return self._read()
        if self.kind == "json":
            columns = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in types.items())
            _refuse_twins(self.path, list(types))
            return self._read(f"format='newline_delimited', columns={{{columns}}}")
        quote = '"' if self.quotes else ""
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in self.columns)
        return self._read(
            f"auto_detect=false, strict_mode=true, header={str(self.header).lower()}, nullstr='', "
            f"delim={literal(self.delimiter)}, "
            f"quote='{quote}', escape='{quote}', max_line_size={LONGEST}, columns={{{columns}}}"
        )

    def with_types(self, connection: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> "Table":
        """Of JSON lines: with the types of these columns, found in all rows; of other files: itself."""
        if self.kind != "json" or not columns:
            return self
        names = list(dict.fromkeys(columns))
        kinds = ", ".join(
            f"list(DISTINCT json_type({c})), flatten(list(DISTINCT list_distinct(json_type({c}, '$[*]'))))"
            for c in map(quoted, names)
        )
        with self.reading():
            found = connection.execute(f"SELECT {kinds} FROM {self.scan(dict.fromkeys(names, 'JSON'))}").fetchall()[0]
        types = {name: _json_type(found[2 * i], found[2 * i + 1]) for i, name in enumerate(names)}
        return replace(self, columns={**self.columns, **types})

    def _read(self, options: str = "", reader: str | None = None) -> str:
        """The call of DuckDB's reader for just this file."""
        place = literal(glob.escape(str(self.source)))  # the folder for temporary files is not of our naming
        zipped = "" if self.kind == "parquet" else f", compression='{'gzip' if is_zipped(self.source) else 'none'}'"
        reader = reader or ("read_csv" if self.kind == "atomic" else f"read_{self.kind}")
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
        hint = f", did you mean `{shown(near[0])}`?" if near else "."
        raise InputError(f"{self.path}: no column `{wanted}` for `{key}`{hint} The columns are: {listed(self.columns)}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what DuckDB says about this file's content into an InputError of one line.

        Raises:
            RunError: memory or disk ran out, which need not be the file's fault.
        """
        try:
            yield
        except duckdb.Error as error:
            text = str(error)
            # Out of disk, DuckDB names its own files, not this one.
            if isinstance(error, duckdb.OperationalError) and str(self.source) not in text:
                raise RunError(f"{self.path}: could not be read: {shown(text)}; or the file is damaged") from None
            raise InputError(explain(self.path, self.kind, text, self.source)) from None


def open_table(
    connection: duckdb.DuckDBPyConnection,
    path: Path | Place,
    folder: Path,
    header: bool = True,
    file: File = ANY,
    encoding: str | None = None,
    bad: BadRows | None = None,
) -> Table:
    """Look at a file's name and header.

    Args:
        folder: for what reading it needs, as long as the table is in use.
        header: whether the first line of a CSV file names the columns; else they are column0, column1, ...
        file: what is known of it beyond its name.
        encoding: of text; None: UTF-8, or what a byte order mark says.
        bad: takes the rows that cannot be read; None: they are errors.

    Raises:
        InputError: unknown kind of file, damaged gzip, zip or zstd, no header, or broken content.
    """
    place = path if isinstance(path, Place) else Place(path)
    named = place.label
    refuse_spreadsheet(named)
    kind = _kind(named, file)
    real = unpacked(place, folder)
    if is_zipped(real):
        check_gzip(real, named)
    if kind == "parquet":
        return _open_parquet(connection, Table(named, _link(real, folder), kind, {}))
    real = in_utf8(real, named, folder, encoding, file.encoding)
    if kind == "json":
        source = _link(in_json(real, named, folder, bad), folder)
        if bad:
            sift_json(source, sifted := _new(folder), named, bad)
            source = sifted
        return _open_json(connection, Table(named, source, kind, {}))
    return _open_text(named, real, folder, replace(file, kind=kind), header, bad)


def _kind(named: Path, file: File) -> str:
    """What kind of table it is, by what is known of it or by its name."""
    ending = PurePath(plain_name(named)).suffix
    kind = file.kind or KINDS.get(ending)
    if kind is None or (is_zipped(named) and kind == "parquet"):
        raise InputError(
            f"{named}: unknown kind of table; its name must end in one of {', '.join(KINDS)} "
            "(or those + .gz, .zst or .zip, but .gz not for Parquet)"
        )
    return kind


def quoted(name: str) -> str:
    """A name as SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL string."""
    return "'" + text.replace("'", "''") + "'"


def listed(names: Iterable[str]) -> str:
    """Names of columns for a message."""
    each = list(map(shown, names))
    return ", ".join(each[:20]) + (f" and {len(each) - 20} more" if len(each) > 20 else "")


def _open_json(connection: duckdb.DuckDBPyConnection, table: Table) -> Table:
    lines = table._read("format='newline_delimited'", "read_json_objects").replace("hive_partitioning=false, ", "")
    # Of a line that is no object the key is NULL.
    keys = "unnest(CASE WHEN json_type(json) = 'OBJECT' THEN json_keys(json) ELSE [NULL] END)"
    with table.reading():
        first = connection.execute(f"SELECT {keys} FROM (SELECT json FROM {lines} LIMIT 1)").fetchall()
        others = connection.execute(f"SELECT DISTINCT {keys} AS key FROM {lines} ORDER BY key").fetchall()
    names = dict.fromkeys(name for (name,) in [*first, *others])
    if None in names or not names:
        raise InputError(bad_json_line(table.path, table.source) or f"{table.path}: holds no usable row")
    return replace(table, columns={name: "JSON" for name in names if name})


def _json_type(kinds: list[str], elements: list[str]) -> str:
    """The type of a column whose values, and the elements of whose lists, are of these JSON types."""
    kind_set, element_set = set(kinds) - {"NULL", None}, set(elements or []) - {"NULL", None}
    if kind_set == {"ARRAY"}:
        return f"{_json_type(list(element_set), [])}[]"
    for kind, name in (("ARRAY", "[] and others"), ("OBJECT", "STRUCT"), ("BOOLEAN", "BOOLEAN")):
        if kind in kind_set:
            return name
    return "VARCHAR"


def _open_parquet(connection: duckdb.DuckDBPyConnection, table: Table) -> Table:
    with table.reading():
        schema = connection.execute(f"DESCRIBE SELECT * FROM {table._read()}").fetchall()
    try:
        _refuse_twins(table.path, pq.read_schema(table.source).names)  # DuckDB would give the second another name
    except (pa.ArrowException, OSError) as error:
        raise InputError(explain(table.path, "parquet", str(error), table.source)) from None
    return replace(table, columns={name: column_type for name, column_type, *_ in schema})


def _refuse_twins(path: Path, names: Sequence[str], line: str = "") -> None:
    """SQL does not tell capitals from small letters."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise InputError(f"{path}{line}: two columns are called `{shown(name)}`; rename one")
        seen.add(name.lower())


def _new(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder)) / "table"


def _link(path: Path, folder: Path) -> Path:
    link = _new(folder).with_suffix(".gz" if is_zipped(path) else "")
    link.symlink_to(path.resolve())
    return link


def _open_text(named: Path, real: Path, folder: Path, file: File, header: bool, bad: BadRows | None) -> Table:
    source = _link(real, folder) if _has_even_lines(real) else _with_even_lines(real, folder)
    tabs = file.kind == "atomic" or plain_name(named).endswith(".tsv")
    quotes, header = file.quotes and file.kind != "atomic", (header or file.kind == "atomic") and not file.columns
    names, delimiter = list(file.columns), file.delimiter or ("\t" if tabs else "")
    if not names:
        names, delimiter = _first_line(named, source, file.kind, delimiter, header)
    if bad:
        sift_text(source, sifted := _new(folder), named, bad, len(names), delimiter, quotes, header)
        source = sifted
    return Table(named, source, file.kind, dict.fromkeys(names, "VARCHAR"), delimiter, quotes, header)


def _first_line(path: Path, source: Path, kind: str, delimiter: str, header: bool) -> tuple[list[str], str]:
    """The columns, as the first line names them if it is a header, and what stands between them."""
    with open_bytes(source) as file:
        lines = _Lines(file)
        try:
            first = next(lines, "")
            delimiter = delimiter or max(",;\t|", key=first.count)
            lines.again = first
            names = (
                first.rstrip("\r\n").split("\t")
                if kind == "atomic"
                else next(csv.reader(lines, delimiter=delimiter), [])
            )
        except UnicodeDecodeError:
            raise InputError(f"{path}:{lines.number}: {NOT_UTF8}") from None
        except csv.Error as error:
            raise InputError(f"{path}:1: the header cannot be read ({error})") from None
    if not any(names):
        raise InputError(f"{path}: holds no usable row (no header line)")
    names = [name.partition(":")[0] if kind == "atomic" else " ".join(name.split()) for name in names]
    names = [name if name and header else f"column{i}" for i, name in enumerate(names)]
    _refuse_twins(path, names, ":1")
    return names, delimiter


class _Lines:
    """The lines of a file, decoded one by one; `again` is given first once more."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.number, self.again = file, 0, ""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.again:
            line, self.again = self.again, ""
            return line
        self.number += 1
        if raw := self.file.readline(LONGEST):
            return raw.decode("utf-8-sig" if self.number == 1 else "utf-8")
        raise StopIteration


def _has_even_lines(path: Path) -> bool:
    """Whether all lines end in LF, or all in CRLF: DuckDB's reader drops rows of a mixture, or gives up."""
    feeds = returns = both = 0
    last = b""
    with open_bytes(path) as file:
        while part := file.read(1 << 20):
            feeds, returns = feeds + part.count(b"\n"), returns + part.count(b"\r")
            both += (last + part).count(b"\r\n")
            last = part[-1:]
    return not returns or feeds == returns == both


def _with_even_lines(path: Path, folder: Path) -> Path:
    """A copy whose lines end in LF, line breaks inside quotes included."""
    copy = _new(folder)
    last = b""
    with open_bytes(path) as file, copy.open("wb") as even:
        while part := file.read(1 << 20):
            if last == b"\r" and part.startswith(b"\n"):
                part = part[1:]
            last = part[-1:] or last
            even.write(part.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    return copy
