"""A recipe's raw files -> two tables in DuckDB, the same for every format.

    events  user VARCHAR, item VARCHAR, time BIGINT (unix seconds) or NULL, fine BIGINT (the same in microseconds),
            row BIGINT (order of the input)
    items   item VARCHAR, row BIGINT, f0 VARCHAR, f1 ... one column for each label, "" where there is no value;
            w0, w1 ... the same as written, NULL where it is the same; one row an item, only items that have events

What each reader expects where the recipe names no columns, and how it tidies, `formats/known.py` says.

A list in the item column is a user's whole history in one row, oldest first; times then are a list as well, or absent.
How times are read, `times.py` decides.
The id column of the items file is called as `columns.record` says, or `columns.item`, or the reader's usual name.
Without an items file the text columns are looked for beside the events, or in the items file of the same folder or zip.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from calrec_lite.data.bad_rows import BadRows
from calrec_lite.data.clean import Tally, is_given, plain, repaired
from calrec_lite.data.doubts import changing_titles, other_spelling
from calrec_lite.data.faults import shown
from calrec_lite.data.formats.known import READERS
from calrec_lite.data.formats.opening import open_role
from calrec_lite.data.formats.shapes import Format
from calrec_lite.data.tables import Table, listed
from calrec_lite.data.times import Times, read_as
from calrec_lite.errors import InputError
from calrec_lite.recipe import Columns, DomainSpec

RARE = 0.05  # a label of the default fields that fewer items have is left out: `Price: Unknown` teaches nothing
CHUNK = 20_000  # items cleaned at a time
HTML, CHARACTERS = "HTML taken out", "characters replaced by plain ones, or invisible"
UNTIMED = Times("CAST(NULL AS BIGINT)", "CAST(NULL AS BIGINT)", "")


def is_html(spec: DomainSpec) -> bool:
    """Whether a domain's texts are HTML: as the recipe says, or else as the reader's format has it."""
    return READERS[spec.reader].html if spec.html is None else spec.html


@dataclass(frozen=True)
class Raw:
    """What was read.

    Attributes:
        labels: of the columns f0, f1, ... of `items`.
        rows: events in the file, lists counted by their entries.
        records: records of items that have events.
        duplicate_records: those of them that repeat an item id; the fullest is kept, the first of equals.
        times: what the time column holds, in words; None without times.
        emptied: label -> values that were no text but markup, scripts or fillers.
        repairs: what was done -> the values that it changed.
        rare: label left out -> share of items that have it.
        changing: of items with several titles, as `doubts.py` says.
        bad: rows that were left out because they cannot be read.
    """

    labels: list[str]
    rows: int
    records: int
    duplicate_records: int
    times: str | None
    emptied: dict[str, Tally]
    repairs: dict[str, Tally]
    rare: dict[str, float]
    changing: dict[str, Any]
    bad: BadRows


def read(
    connection: duckdb.DuckDBPyConnection, folder: Path, spec: DomainSpec, interactions: Path, items: Path | None
) -> Raw:
    """Make the tables `events` and `items`; `folder` is for temporary files.

    Raises:
        InputError: a file is damaged, lacks a column, has no usable row, or knows none of the other's items.
    """
    form = READERS[spec.reader]
    left_out = BadRows()
    bad = left_out if spec.on_bad_rows == "drop" else None
    table, source = _open(connection, folder, spec, interactions, items, bad)
    ids = _id_columns(table, spec.columns, form)
    fields = _fields(source or table, spec.fields, form.fields)
    named = [c for c in (ids.user, ids.item, ids.time) if c]
    table = table.with_types(connection, named + ([] if source else list(fields.values())))
    for column in named:
        table.check_names(connection, column)
    usual_time = form.time_format if ids.time in form.time else None
    time_format = spec.columns.time_format or usual_time
    times = _read_events(connection, table, ids, [] if source else list(fields.values()), time_format, bad)
    rows = _count(connection, "events")
    id_column = ids.item
    if source:
        usual = [*filter(None, [spec.columns.item]), *(form.item_id or form.item)]
        id_column = source.find("columns.record" if spec.columns.record else "the item id", spec.columns.record, usual)
        source = source.with_types(connection, [id_column])
        source.check_names(connection, id_column)
        _read_records(connection, source, id_column, list(fields.values()))
        if not _count(connection, "records"):
            example = connection.execute("SELECT min(item) FROM events").fetchall()[0][0]
            otherwise = other_spelling(connection, source.scan({id_column: "VARCHAR"}), source.text(id_column))
            raise InputError(
                f"{source.path}: has no record of any item in {table.path.name}, such as `{shown(example)}`{otherwise}"
            )
    else:
        source = table
        columns = ", ".join(f"t{i}" for i in range(len(fields)))
        connection.execute(
            f"CREATE TABLE records AS SELECT item, min(row) AS row, {columns} FROM events "
            f"WHERE item IS NOT NULL GROUP BY ALL"
        )
    records = _count(connection, "records")
    # JSON values come as JSON, but for a column that is the item id as well.
    decode = [source.kind == "json" and column != id_column for column in fields.values()]
    cleaning = _Cleaning(source, fields, is_html(spec), form.tidy)
    cleaning.clean(connection, decode)
    rare = {} if spec.fields else _leave_out_rare(connection, list(fields))
    labels = [label for label in fields if label not in rare]
    emptied = {label: tally for label, tally in cleaning.emptied.items() if tally.values}
    repairs = {name: tally for name, tally in cleaning.repairs.items() if tally.values}
    repeated = records - _count(connection, "items")
    return Raw(labels, rows, records, repeated, times, emptied, repairs, rare, cleaning.changing, left_out)


def _open(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    spec: DomainSpec,
    interactions: Path,
    items: Path | None,
    bad: BadRows | None,
) -> tuple[Table, Table | None]:
    """The tables of events and of items; without the latter the events hold the texts."""
    form = READERS[spec.reader]
    reading = (spec.encoding, bad)
    named = {role: role not in spec.headerless for role in ("interactions", "items")}
    table = open_role(connection, folder, form, "events", interactions, *reading, header=named["interactions"])
    assert table is not None
    source = None
    if items:
        source = open_role(connection, folder, form, "items", items, *reading, header=named["items"])
    elif interactions.is_dir() or interactions.suffix.lower() == ".zip":
        source = open_role(connection, folder, form, "items", interactions, *reading, alone=False)
    if source is None and not (form.own_text or spec.fields):
        names = " or ".join(layout.files[0].name for layout in form.items)
        raise InputError(f"{table.path}: holds no texts of items; name the file that does by `items` ({names})")
    return table, source


@dataclass(frozen=True)
class _IdColumns:
    """Columns of the interactions file."""

    user: str
    item: str
    time: str | None


def _id_columns(table: Table, given: Columns, form: Format) -> _IdColumns:
    user = table.find("columns.user", given.user, form.user)
    item = table.find("columns.item", given.item, form.item)
    timed = bool(given.time or given.time_format) or any(name in table.columns for name in form.time)
    time = table.find("columns.time", given.time, form.time) if timed or form.timed else None
    return _IdColumns(user, item, time)


def _fields(source: Table, given: dict[str, str] | None, usual: dict[str, list[str]]) -> dict[str, str]:
    """Label -> column. Of the usual ones only the title must be there."""
    if given:
        return {label: source.find(f"fields.{label}", column, ()) for label, column in given.items()}
    # A label's first usual column that is there; the order of the labels is the order of the text.
    columns = {label: next((c for c in names if c in source.columns), None) for label, names in usual.items()}
    if columns["Title"] is None:
        raise InputError(
            f"{source.path}: no column `{usual['Title'][0]}`; name the columns with the items' text by "
            f"`fields: {{Title: COLUMN}}`. The columns are: {listed(source.columns)}"
        )
    return {label: column for label, column in columns.items() if column is not None}


def _read_events(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    ids: _IdColumns,
    texts: list[str],
    time_format: str | None,
    bad: BadRows | None,
) -> str | None:
    """Make `events`, with the text columns t0, t1, ... beside them, and return what the times are, in words."""
    lists = table.is_list(ids.item)
    _check_lists(table, ids, texts, lists)
    brackets = "[]" if lists else ""
    types = dict.fromkeys(texts, f"JSON{brackets}") | {ids.user: "VARCHAR", ids.item: f"VARCHAR{brackets}"}
    columns = [f"{table.text(ids.user)} AS user", f"{table.text(ids.item)} AS item"]
    if ids.time:
        types[ids.time] = f"VARCHAR{brackets}"
        columns.append(f"{table.text(ids.time)} AS said")
    columns += [f"{table.value(text)} AS t{i}" for i, text in enumerate(texts)]
    with table.reading():
        connection.execute(
            f"CREATE TABLE source AS SELECT row_number() OVER () AS line, {', '.join(columns)} FROM {table.scan(types)}"
        )
    beside = (["said"] if ids.time else []) + [f"t{i}" for i in range(len(texts))]
    if lists:
        _unnest(connection, table, beside)
    times = read_as(connection, table, ids.time, time_format, bad) if ids.time else UNTIMED
    connection.execute(
        f"CREATE TABLE events AS SELECT nullif(trim(user), '') AS user, nullif(trim(item), '') AS item, "
        f"{times.seconds} AS time, {times.microseconds} AS fine, {'row' if lists else 'line'} AS row"
        f"{''.join(f', t{i}' for i in range(len(texts)))} FROM source"
    )
    connection.execute("DROP TABLE source")
    if not connection.execute("SELECT 1 FROM events WHERE user IS NOT NULL AND item IS NOT NULL LIMIT 1").fetchall():
        raise InputError(f"{table.path}: holds no usable row: none has both `{ids.user}` and `{ids.item}`")
    return times.words if ids.time and _count(connection, "events WHERE time IS NOT NULL") else None


def _check_lists(table: Table, ids: _IdColumns, texts: list[str], lists: bool) -> None:
    if table.is_list(ids.user):
        raise InputError(f"{table.path}: column `{ids.user}` holds lists, but a row has one user")
    if lists:
        wrong = [c for c in ([ids.time] if ids.time else []) + texts if not table.is_list(c)]
        if wrong:
            raise InputError(f"{table.path}: column `{ids.item}` holds lists, so `{wrong[0]}` must hold lists as long")
    elif ids.time and table.is_list(ids.time):
        raise InputError(f"{table.path}: column `{ids.time}` holds lists, but `{ids.item}` does not")


def _unnest(connection: duckdb.DuckDBPyConnection, table: Table, beside: list[str]) -> None:
    """One row an entry; `row` is in the order of the rows and of their lists."""
    for name in beside:
        wrong = connection.execute(
            f"SELECT line, len(item), len({name}) FROM source WHERE len(item) <> coalesce(len({name}), len(item)) "
            "ORDER BY line LIMIT 1"
        ).fetchall()
        if wrong:
            line, n, m = wrong[0]
            raise InputError(f"{table.path}: row {line}: a list of {n} items stands beside a list of {m}")
    unnested = "".join(f", unnest({name}) AS {name}" for name in beside)
    connection.execute(
        f"CREATE OR REPLACE TABLE source AS SELECT (line << 32) + place AS row, * FROM "
        f"(SELECT line, user, unnest(item) AS item{unnested}, generate_subscripts(item, 1) AS place FROM source)"
    )


def _read_records(connection: duckdb.DuckDBPyConnection, table: Table, item: str, texts: list[str]) -> None:
    """Make `records`: item, row and the raw text columns, of items that have events."""
    if table.is_list(item):
        raise InputError(f"{table.path}: column `{item}` holds lists, but a row has one item")
    types = dict.fromkeys(texts, "JSON") | {item: "VARCHAR"}
    values = ", ".join(f"{table.value(text)} AS t{i}" for i, text in enumerate(texts))
    with table.reading():
        connection.execute(
            f"CREATE TABLE records AS SELECT * FROM (SELECT nullif(trim({table.text(item)}), '') AS item, "
            f"row_number() OVER () AS row, {values} FROM {table.scan(types)}) "
            "WHERE item IN (SELECT DISTINCT item FROM events)"
        )


class _Cleaning:
    """Makes `items` from `records`: values as plain text (f0, f1, ...) and, where it differs, as written (w0, ...).

    Attributes:
        emptied: label -> values that held nothing but junk.
        repairs: what was done -> the values that it changed.
        changing: of items with several titles, as `doubts.py` says.
    """

    def __init__(self, source: Table, fields: dict[str, str], is_html: bool, tidy: Callable[[str, str], str]) -> None:
        self.source, self.fields, self.is_html, self.tidy = source, fields, is_html, tidy
        self.emptied = {label: Tally() for label in fields}
        self.repairs = {HTML: Tally(), CHARACTERS: Tally()}
        self.changing: dict[str, Any] = {}

    def clean(self, connection: duckdb.DuckDBPyConnection, decode: list[bool]) -> None:
        """Of several records of an item the fullest is kept; `decode` says of each field whether it is JSON."""
        n = len(self.fields)
        columns = [*(f"f{i}" for i in range(n)), *(f"w{i}" for i in range(n))]
        schema = pa.schema([("item", pa.string()), ("row", pa.int64()), *((c, pa.string()) for c in columns)])
        types = ", ".join(f"{c} VARCHAR" for c in columns)
        connection.execute(f"CREATE TABLE cleaned (item VARCHAR, row BIGINT, {types})")
        reader = connection.cursor()
        reader.execute(f"SELECT item, row, {', '.join(f't{i}' for i in range(n))} FROM records")
        while chunk := reader.fetchmany(CHUNK):
            ids, rows, *raw = (list(column) for column in zip(*chunk, strict=True))
            pairs = [self._values(label, ids, raw[i], decode[i]) for i, label in enumerate(self.fields)]
            texts, written = ([list(column) for column in side] for side in zip(*pairs, strict=True))
            connection.register("chunk", pa.table([ids, rows, *texts, *written], schema=schema))
            connection.execute("INSERT INTO cleaned SELECT * FROM chunk")
            connection.unregister("chunk")
        filled = " + ".join(f"CAST(f{i} <> '' AS INT)" for i in range(n))
        connection.execute(
            "CREATE TABLE items AS SELECT * FROM cleaned QUALIFY row_number() OVER "
            f"(PARTITION BY item ORDER BY {filled} DESC, row) = 1"
        )
        self.changing = changing_titles(connection, list(self.fields))
        connection.execute("DROP TABLE cleaned")

    def _values(
        self, label: str, ids: list[str], values: list[Any], is_json: bool
    ) -> tuple[list[str], list[str | None]]:
        """The texts of a chunk, and the texts as written where they differ."""
        texts, as_written = [], []
        for item, value in zip(ids, values, strict=True):
            try:
                text, written = self._value(label, json.loads(value) if is_json and value is not None else value)
                "".join((text, written)).encode()
            except (ValueError, RecursionError) as error:
                raise InputError(self._no_text(label, item, error)) from None
            texts.append(text)
            as_written.append(None if written == text else written)
        return texts, as_written

    def _no_text(self, label: str, item: str, error: Exception) -> str:
        column = self.fields[label]
        reason = "is not UTF-8" if isinstance(error, UnicodeError) else shown(error)
        if isinstance(error, RecursionError):
            reason = "is nested too deep"
        return (
            f"{self.source.path}: column `{shown(column)}` ({shown(self.source.columns[column])}), item "
            f"`{shown(item)}`: {reason}; write it as text (UTF-8), or choose other columns by `fields`"
        )

    def _value(self, label: str, value: Any) -> tuple[str, str]:
        repairs = self.repairs
        repaired_text, written = repaired(value, self.is_html, repairs[HTML], repairs[CHARACTERS])
        text = self.tidy(self.fields[label], repaired_text)
        if not text:
            if is_given(value):
                self.emptied[label].add(plain(value), "")
            return "", ""  # junk tells nothing apart
        return text, text if written == repaired_text else written


def _leave_out_rare(connection: duckdb.DuckDBPyConnection, labels: list[str]) -> dict[str, float]:
    """Drop the columns of labels that hardly any item has; return them with the share of items that have them."""
    averages = ", ".join(f"avg(CAST(f{i} <> '' AS INT))" for i in range(len(labels)))
    shares = connection.execute(f"SELECT {averages} FROM items").fetchall()[0]
    common = [i for i, share in enumerate(shares) if share >= RARE]
    columns = "".join(f", f{i} AS f{j}, w{i} AS w{j}" for j, i in enumerate(common))
    connection.execute(f"CREATE OR REPLACE TABLE items AS SELECT item, row{columns} FROM items")
    return {label: round(share, 4) for label, share in zip(labels, shares, strict=True) if share < RARE}


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])
