"""What the columns of a raw file hold: of its first rows, before anything is known of them."""

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import duckdb

from calrec_lite.data.tables import Table, literal, open_table, quoted
from calrec_lite.data.times import COMPACT, UNITS
from calrec_lite.errors import InputError
from calrec_lite.starting.names import is_known

ROWS = 200_000  # that are looked at
NEARLY = 0.98  # of a column's values
EARLIEST = 473_385_600  # 1985, in unix seconds: what is smaller is no time of a purchase
STYLES = [
    f"{day}{clock}"
    for day in ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d/%m/%y", "%m/%d/%y", "%Y/%m/%d")
    for clock in ("", " %H:%M", " %H:%M:%S")
] + ["%b %d, %Y", "%B %d, %Y", "%d %b %Y", "%d %B %Y", "%m %d, %Y", "%a %b %d %H:%M:%S %z %Y"]


@dataclass(frozen=True)
class Column:
    """Facts of one column.

    Attributes:
        rows: that were looked at; filled, distinct: values of them that are there, and different ones.
        is_list: each row holds a list.
        is_text: it holds values that can be read as ids or text, and no objects.
        numbers: share of the values that are numbers.
        low, high: of these.
        words, length: means over the values; of the length in characters.
        examples: up to three different values.
        times: how it may be read as moments: `unix`, `iso`, or formats; () if not at all.
    """

    name: str
    rows: int
    filled: int
    distinct: int
    is_list: bool
    is_text: bool
    numbers: float
    low: float
    high: float
    words: float
    length: float
    examples: tuple[str, ...]
    times: tuple[str, ...]

    @property
    def is_key(self) -> bool:
        """Whether each row has a value of its own."""
        return 0 < self.rows == self.filled and self.distinct >= NEARLY * self.rows

    @property
    def is_scale(self) -> bool:
        """Whether it looks like ratings or quantities: few numbers, and small ones."""
        return self.numbers >= NEARLY and self.distinct <= 20 and self.low >= 0 and self.high <= 100


@dataclass(frozen=True)
class Looked:
    """A file that was looked at; its first rows stand in the table `view`, all as text.

    Attributes:
        header: whether its first line names the columns.
    """

    path: Path
    view: str
    table: Table
    header: bool
    columns: dict[str, Column]


def look(connection: duckdb.DuckDBPyConnection, path: Path, folder: Path, view: str) -> Looked:
    """Read a file's first rows into the table `view`.

    Raises:
        InputError: it cannot be read.
    """
    table = _opened(connection, path, folder)
    names = list(table.columns)
    table = table.with_types(connection, names)
    values = ", ".join(f"{_as_text(table, name)} AS {quoted(name)}" for name in names)
    source = table.scan(dict.fromkeys(names, "VARCHAR"))
    with table.reading():
        connection.execute(f"CREATE OR REPLACE TABLE {view} AS SELECT {values} FROM {source} LIMIT {ROWS}")
    return Looked(path, view, table, table.header, {name: _column(connection, view, table, name) for name in names})


def _opened(connection: duckdb.DuckDBPyConnection, path: Path, folder: Path) -> Table:
    """The table, with names for its columns if its first line holds any."""
    try:
        table = open_table(connection, path, folder)
    except InputError as error:
        if "two columns are called" in str(error):
            bare = open_table(connection, path, folder, header=False)
            if _first_has_a_number(connection, bare):
                return bare
        raise
    is_bare = table.kind == "csv" and _is_a_row(connection, table)
    return open_table(connection, path, folder, header=False) if is_bare else table


def _is_a_row(connection: duckdb.DuckDBPyConnection, table: Table) -> bool:
    """Whether the names are values: a number in a column of numbers, or a text that comes again below."""
    if any(map(is_known, table.columns)):
        return False
    numbers = [name for name in table.columns if _number(name)]
    tests = [f"count({_cast(n)}) >= {NEARLY} * count({quoted(n)}) AND count({quoted(n)}) > 0" for n in numbers]
    tests += [f"bool_or({quoted(n)} = {literal(n)})" for n in table.columns if n not in numbers]
    found = f"SELECT {', '.join(tests)} FROM (SELECT * FROM {table.scan({})} LIMIT {ROWS})"
    with table.reading():
        return any(connection.execute(found).fetchall()[0])


def _first_has_a_number(connection: duckdb.DuckDBPyConnection, table: Table) -> bool:
    with table.reading():
        first = connection.execute(f"SELECT * FROM {table.scan({})} LIMIT 1").fetchall()
    return any(map(_number, first[0]))


def _number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True


def _cast(name: str) -> str:
    return f"TRY_CAST({quoted(name)} AS DOUBLE)"


def _as_text(table: Table, name: str) -> str:
    kind = table.columns[name]
    value = f"TRY(decode({quoted(name)}))" if kind == "BLOB" else f"CAST({quoted(name)} AS VARCHAR)"
    return f"nullif(trim({value}), '')"


def _column(connection: duckdb.DuckDBPyConnection, view: str, table: Table, name: str) -> Column:
    value, number = quoted(name), _cast(name)
    iso = f"CASE WHEN {number} IS NULL THEN TRY_CAST({value} AS TIMESTAMPTZ) END"
    facts = connection.execute(
        f"SELECT count(*), count({value}), count(DISTINCT {value}), count({number}), "
        f"min({number}) FILTER (isfinite({number})), max({number}) FILTER (isfinite({number})), "
        f"avg(len(string_split({value}, ' '))), avg(length({value})), count({iso}) FROM {view}"
    ).fetchall()[0]
    rows, filled, distinct, numbers, low, high, words, length, dates = (fact or 0 for fact in facts)
    examples = connection.execute(
        f"SELECT {value} FROM (SELECT {value}, row_number() OVER () AS row FROM {view}) WHERE {value} IS NOT NULL "
        f"GROUP BY {value} ORDER BY min(row) LIMIT 3"
    ).fetchall()
    share = numbers / max(1, filled)
    kind = table.columns[name]
    times: tuple[str, ...] = ()
    if filled and share >= NEARLY:
        times = ("unix",) if _is_unix(low, high) else ()
    elif dates >= NEARLY * max(1, filled):
        times = ("iso",)
    elif filled and not table.is_list(name) and 6 <= length <= 32:
        times = _styles(connection, view, value, filled)
    return Column(
        name,
        rows,
        filled,
        distinct,
        table.is_list(name),
        not any(word in kind for word in ("STRUCT", "MAP", "UNION", "and others", "BOOLEAN")),
        share,
        low,
        high,
        words,
        length,
        tuple(text for (text,) in examples),
        times,
    )


def _is_unix(low: float, high: float) -> bool:
    """Whether all numbers are moments of 1985 to next year in one unit, or dates such as 20240131."""
    now = datetime.now(timezone.utc)
    end = datetime(now.year + 2, 1, 1, tzinfo=timezone.utc).timestamp()
    if any(EARLIEST * n <= low and high < end * n for n in UNITS.values()):
        return True
    zeros = [10 ** (len(now.strftime(form)) - 4) for form in COMPACT]
    return any(1985 * n <= low and high < (now.year + 2) * n for n in zeros)


def _styles(connection: duckdb.DuckDBPyConnection, view: str, value: str, filled: int) -> tuple[str, ...]:
    """The formats that nearly all values are of; of day and month first perhaps both."""
    counts = ", ".join(f"count(try_strptime({value}, {literal(style)}))" for style in STYLES)
    found = connection.execute(f"SELECT {counts} FROM {view}").fetchall()[0]
    return tuple(style for style, n in zip(STYLES, found, strict=True) if n >= NEARLY * filled)
