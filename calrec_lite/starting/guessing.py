"""Which column of a file is what: by its name, by what it holds, and by how the columns of two files meet."""

from dataclasses import dataclass, replace

import duckdb

from calrec_lite.data.tables import quoted
from calrec_lite.recipe import DomainSpec
from calrec_lite.starting.looking import NEARLY, Column, Looked
from calrec_lite.starting.names import TEXTS, Role, label_of, named, own_label, squeezed

MOST_FIELDS = 4
LONG = 160  # characters of a mean value: a description, not a name
SAME = 1.2  # texts an item may have on average and still be said to have one: names change
MEETING = 0.5  # share of the events' items that an items file should know


@dataclass(frozen=True)
class Guess:
    """What a domain's columns are.

    Attributes:
        user, item: columns of the events. record: the item id's in the items file, None without one.
        time: None where the events have no times.
        time_format: as `columns.time_format`; None: as the reader decides.
        fields: label -> column, in the order of the text.
        doubts: of what a person should be asked: `user`, `item`, `record`, `time`, `time_format`, `fields`.
        reader: of the recipe; one that knows the file by itself needs no columns.
    """

    user: str = ""
    item: str = ""
    record: str | None = None
    time: str | None = None
    time_format: str | None = None
    fields: dict[str, str] | None = None
    doubts: tuple[str, ...] = ()
    reader: str = "table"
    headerless: tuple[str, ...] = ()

    def says_ids_only(self, source: Looked) -> bool:
        """Whether the one text of an item is its id, and that is no name either."""
        columns = list((self.fields or {}).values())
        return columns == [self.record or self.item] and source.columns[columns[0]].words < 1.2

    def spec(self, interactions: str, items: str | None) -> DomainSpec:
        """The domain as a recipe says it."""
        values: dict[str, object] = {"reader": self.reader, "interactions": interactions, "items": items}
        if self.reader != "table":
            return DomainSpec.model_validate(values)
        record = self.record if self.record != self.item else None
        columns = {"user": self.user, "item": self.item, "record": record, "time": self.time}
        columns["time_format"] = self.time_format
        values |= {"headerless": list(self.headerless), "columns": columns, "fields": self.fields}
        return DomainSpec.model_validate(values)


def guess_columns(connection: duckdb.DuckDBPyConnection, events: Looked, items: Looked | None) -> Guess:
    """Guess them; what a name does not say, and the content leaves open, is a doubt."""
    time, formats, time_doubts = _time(events)
    left = [c for c in events.columns.values() if c.is_text and c.name != time and not c.times and c.filled]
    user, item = (_by_name(left, role) for role in ("user", "item"))
    lists = next((c.name for c in left if c.is_list), None)
    item = item or lists
    record, doubts = None, list(time_doubts)
    if items is not None:
        item, record, known = _meeting(connection, events, items, [c for c in left if c.name != user], item)
        doubts += [] if known else ["item", "record"]
    elif item is None:
        item = _that_has_texts(connection, events, [c for c in left if c.name != user])
        doubts += ["item"] if item else []
    user, item, more = _by_place(left, user, item)
    doubts += more
    fields, sure = _fields(connection, events, items, user, item, record)
    if not sure:
        doubts.append("fields")
    headerless = [("interactions", events), *([("items", items)] if items else [])]
    return Guess(
        user,
        item,
        record,
        time,
        formats[0] if formats else None,
        fields,
        tuple(dict.fromkeys(doubts)),
        headerless=tuple(role for role, looked in headerless if not looked.header),
    )


def with_time(guess: Guess, events: Looked, time: str | None) -> Guess:
    """The same with another time column."""
    formats = _formats(events.columns[time]) if time else ()
    doubts = [doubt for doubt in guess.doubts if doubt not in ("time", "time_format")]
    return replace(
        guess,
        time=time,
        time_format=formats[0] if formats else None,
        doubts=(*doubts, *(["time_format"] if len(formats) > 1 else [])),
    )


def _formats(column: Column) -> tuple[str, ...]:
    return () if column.times in (("unix",), ("iso",)) else column.times


def _time(events: Looked) -> tuple[str | None, tuple[str, ...], list[str]]:
    """The column of times, the formats it may be of, and doubts."""
    columns = list(events.columns.values())
    # Numbers and ISO dates before other styles; of lists the content is not looked at.
    able = sorted(
        (c for c in columns if c.times or (c.is_list and named(c.name, "time"))),
        key=lambda c: (-named(c.name, "time"), bool(_formats(c))),
    )
    said = [c.name for c in columns if named(c.name, "time") == 2 and c.filled and not c.is_list]
    if not able:
        return None, (), ["time"] if said else []
    first = able[0]
    formats = _formats(first)
    alone = named(first.name, "time") or len(able) == 1
    doubts = ([] if alone else ["time"]) + (["time_format"] if len(formats) > 1 else [])
    return first.name, formats, doubts


def _by_name(columns: list[Column], role: Role) -> str | None:
    """The column whose name says the role most clearly; the first of equals. No text, and nobody is a list."""
    other: Role = "item" if role == "user" else "user"
    able = [
        (named(c.name, role), -n, c.name)
        for n, c in enumerate(columns)
        if named(c.name, role) > (0 if named(c.name, other) < 2 else 1)
        and c.length <= LONG
        and not (label_of(c.name) and named(c.name, role) < 2)
        and (not c.is_list if role == "user" else True)
    ]
    return max(able, default=(0, 0, None))[2]


def _meeting(
    connection: duckdb.DuckDBPyConnection, events: Looked, items: Looked, left: list[Column], item: str | None
) -> tuple[str | None, str | None, bool]:
    """The item's column in both files, and whether it is certain: where most values of one stand in the other."""
    keys = [c for c in items.columns.values() if c.is_text and c.distinct >= 0.5 * c.filled > 0 and not c.is_list]
    keys = [c for c in keys if c.length <= LONG]
    candidates = [events.columns[item]] if item else [c for c in left if not c.is_scale]
    found: list[tuple[float, int, int, str, str]] = []
    for column in candidates:
        for place, key in enumerate(keys):
            share = 1.0 if column.is_list else _share_known(connection, events, column, items, key)
            alike = squeezed(column.name) == squeezed(key.name)
            found.append((round(share, 2), 2 * alike + named(key.name, "item"), -place, column.name, key.name))
    if not found or max(found)[0] < MEETING:
        twin = next((c.name for c in keys if item and squeezed(c.name) == squeezed(item)), None)
        return item, twin or (keys[0].name if keys else None), False
    best = max(found)
    return best[3], best[4], True


def _share_known(
    connection: duckdb.DuckDBPyConnection, events: Looked, column: Column, items: Looked, key: Column
) -> float:
    share = connection.execute(
        f"SELECT avg(CAST(value IN (SELECT {quoted(key.name)} FROM {items.view}) AS INT)) FROM "
        f"(SELECT DISTINCT {quoted(column.name)} AS value FROM {events.view}) WHERE value IS NOT NULL"
    ).fetchall()[0][0]
    return float(share or 0)


def _that_has_texts(connection: duckdb.DuckDBPyConnection, events: Looked, left: list[Column]) -> str | None:
    """The column each value of which stands beside one text: the item's id beside its name."""
    texts = [c for c in left if c.words >= 1.5 and c.length <= LONG and not c.is_key]
    ids = [c for c in left if c not in texts and c.distinct >= 2 and not c.is_key and not c.is_scale]
    for column in ids:
        if any(
            text.distinct >= 0.5 * column.distinct and _texts_each(connection, events, column, text) <= SAME
            for text in texts
        ):
            return column.name
    return None


def _texts_each(connection: duckdb.DuckDBPyConnection, events: Looked, item: Column, text: Column) -> float:
    """How many values of a column each item has on average."""
    pair = f"{quoted(item.name)}, {quoted(text.name)}"
    pairs = connection.execute(
        f"SELECT count(*) FROM (SELECT DISTINCT {pair} FROM {events.view} WHERE {quoted(text.name)} IS NOT NULL)"
    ).fetchall()[0][0]
    return float(pairs) / max(1, item.distinct)


def _by_place(left: list[Column], user: str | None, item: str | None) -> tuple[str, str, list[str]]:
    """What is still unknown: of the columns that may be ids the first is the user, the next the item."""
    doubts = [role for role, column in (("user", user), ("item", item)) if column is None]
    able = [c for c in left if c.name not in (user, item) and not c.is_key and not c.is_scale and c.length <= LONG]
    able.sort(key=lambda c: c.words >= 1.5)  # an id before a text; else as they stand
    spare = [*able, *(c for c in left if c.name not in (user, item) and c not in able)]
    names = iter([c.name for c in spare])
    user = user or next(names, None)
    item = item or next(names, None) or user
    return user or "", item or "", doubts


def _fields(
    connection: duckdb.DuckDBPyConnection,
    events: Looked,
    items: Looked | None,
    user: str,
    item: str,
    record: str | None,
) -> tuple[dict[str, str], bool]:
    """Label -> column, and whether the title's name says what it is."""
    source = items or events
    columns = [c for c in source.columns.values() if c.filled and (c.is_text or label_of(c.name)) and not c.times]
    if items is None:
        columns = [c for c in columns if c.name != user and not events.columns[item].is_list]
        key = events.columns.get(item)
        columns = [c for c in columns if key and (c.name == item or _texts_each(connection, events, key, c) <= SAME)]
    id_column = record or item
    fields: dict[str, str] = {}
    for label, usual in TEXTS.items():
        able = [c for c in columns if label_of(c.name) == label and (c.name != id_column or items is None)]
        able.sort(key=lambda c: _order(c.name, usual))
        if able:
            fields[label] = able[0].name
    if "Title" in fields:
        return fields, True
    free = [c for c in columns if c.name not in (id_column, *fields.values()) and c.numbers < NEARLY and not c.is_list]
    texts = sorted((c for c in free if c.length <= LONG and not _is_link(c)), key=lambda c: -c.distinct)
    if not texts:
        return {"Title": id_column, **fields}, items is None and events.columns[item].words >= 1.5
    rest = [c for c in texts[1:] if c.distinct > 1][: MOST_FIELDS - 1 - len(fields)]
    return {"Title": texts[0].name, **fields, **{own_label(c.name): c.name for c in rest}}, False


def _order(name: str, usual: frozenset[str]) -> int:
    """A name, then what is longer: `title` before `description`."""
    preferred = ("title", "name", "category", "brand")
    return preferred.index(squeezed(name)) if squeezed(name) in preferred else len(preferred) + len(squeezed(name))


def _is_link(column: Column) -> bool:
    return any("://" in example for example in column.examples)
