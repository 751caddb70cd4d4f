"""A catalogue and histories from Python objects: what `CALRecTrainer` takes in place of files."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from calrec_lite.data.clean import as_written, plain
from calrec_lite.data.domain import Catalogue, Sequences
from calrec_lite.data.faults import shown
from calrec_lite.data.merging import keep_apart
from calrec_lite.errors import InputError

ITEM = "item"


def catalogue_of(records: Iterable[Mapping[str, Any]]) -> Catalogue:
    """Items with their texts; those of the same text become one, and all are numbered in the order of their text.

    Args:
        records: dicts, or rows of a `datasets.Dataset`: `item`, the id, and the text fields in the order of the text.
            A field's name becomes its label (`title` is written `Title`); empty fields are left out.

    Raises:
        InputError: a record without id or text, an id that stands twice, or no record at all.
    """
    texts: dict[str, dict[str, str]] = {}
    stood: dict[str, dict[str, str]] = {}
    for number, record in enumerate(records):
        if not isinstance(record, Mapping) or record.get(ITEM) is None:
            raise InputError(f"catalogue: record {number} has no `{ITEM}`; write {{'item': id, 'title': text, ...}}")
        item = str(record[ITEM])
        if item in texts:
            raise InputError(f"catalogue: record {number}: a second item of id `{item}`; leave out one of both")
        pairs = [(_label(key), _text(number, key, value)) for key, value in record.items() if key != ITEM]
        if len(dict(pairs)) < len(pairs):
            labels = ", ".join(label for label, _ in pairs)
            raise InputError(f"catalogue: record {number}: two fields of the same label among {labels}")
        texts[item] = {label: text for label, text in pairs if text}
        stood[item] = {_label(key): as_written(value) for key, value in record.items() if key != ITEM}
        if not texts[item]:
            raise InputError(f"catalogue: record {number}: item `{item}` has no text; give it a field such as `title`")
    if not texts:
        raise InputError("catalogue: holds no item")
    order = list(dict.fromkeys(label for fields in texts.values() for label in fields))
    if any(stood[item][label] != text for item, fields in texts.items() for label, text in fields.items()):
        texts = _apart(texts, stood, order)
    written = {item: tuple(fields.get(label, "") for label in order) for item, fields in texts.items()}
    distinct = {text: index for index, text in enumerate(sorted(set(written.values())))}
    aliases = {item: distinct[text] for item, text in written.items()}
    first: dict[int, str] = {}
    for item, index in aliases.items():
        first.setdefault(index, item)
    ids = [first[index] for index in range(len(distinct))]
    fields = [{label: texts[item][label] for label in order if label in texts[item]} for item in ids]
    return Catalogue(ids, fields, aliases)


def _text(number: int, key: str, value: Any) -> str:
    try:
        return plain(value)
    except ValueError as error:
        raise InputError(f"catalogue: record {number}: `{key}`: {shown(error)}; give text or a number") from None


def _apart(
    texts: dict[str, dict[str, str]], stood: dict[str, dict[str, str]], labels: list[str]
) -> dict[str, dict[str, str]]:
    """See `keep_apart`."""
    columns: dict[str, list[str | None]] = {"item": list(texts)}
    for i, label in enumerate(labels):
        columns[f"f{i}"] = [fields.get(label, "") for fields in texts.values()]
        columns[f"w{i}"] = [stood[item].get(label) if label in fields else None for item, fields in texts.items()]
    with duckdb.connect() as connection:
        connection.register("records", pa.table({c: pa.array(v, pa.string()) for c, v in columns.items()}))
        connection.execute("CREATE TABLE items AS SELECT * FROM records")
        keep_apart(connection, len(labels))
        rows = connection.execute(
            f"SELECT item, {', '.join(f'f{i}' for i in range(len(labels)))} FROM items"
        ).fetchall()
    kept = {item: dict(zip(labels, values, strict=True)) for item, *values in rows}
    return {item: {label: text for label, text in kept[item].items() if text} for item in texts}


def histories_of(records: Iterable[Mapping[str, Any]], catalogue: Catalogue, what: str) -> Sequences:
    """Users' histories over a catalogue, nothing of them held out.

    Args:
        records: dicts, or rows of a `datasets.Dataset`: `items`, a list of ids, oldest first, and perhaps `user`.
        what: the argument's name, for messages.

    Raises:
        InputError: a record without a list of items, an id that the catalogue does not have, or no record at all.
    """
    users, histories = [], []
    for number, record in enumerate(records):
        items = record.get("items") if isinstance(record, Mapping) else None
        if not isinstance(items, list | tuple | np.ndarray):
            raise InputError(f"{what}: record {number} has no list `items`; write {{'user': id, 'items': [ids]}}")
        user = record.get("user")
        users.append(str(number if user is None else user))
        histories.append(np.array([_index(str(i), catalogue, what, number) for i in items], np.int32))
    if not histories:
        raise InputError(f"{what}: holds no history")
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    return Sequences(users, np.concatenate(histories), offsets, None)


def _index(item: str, catalogue: Catalogue, what: str, number: int) -> int:
    index = catalogue.aliases.get(item)
    if index is None:
        near = difflib.get_close_matches(item, list(catalogue.aliases), 1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise InputError(f"{what}: record {number}: the catalogue has no item `{item}`{hint}")
    return index


def _label(key: str) -> str:
    """`release_year` -> `Release year`; a name that has a capital letter stays as it is."""
    return key.replace("_", " ").capitalize() if key.islower() else key
