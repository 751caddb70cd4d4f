"""Raw files -> a prepared domain. Rows stay in DuckDB, which spills to disk; only the result is in memory.

The steps, in this order:

 1. drop rows without user or item, rows without a time where others have one, and rows that repeat another's user,
    item and time (without times nothing can be told from a repeated purchase, so nothing is dropped);
 2. drop events of items without a record, and of items without text;
 3. merge items with the same text, or the same wording, into one canonical item (of texts that only a repair has made
    the same, the repair is undone first);
 4. order each user's events by time (to the microsecond, where a file is so exact), ties by a seeded hash of user, item
    and time (never by id or by the input's order, which in public files leaks what came first); where repeats are
    dropped, of the text, so that items of one text in one basket stand together; without times by the input's order;
 5. drop repeats of the previous item (if asked for), users below `min_user_events` and items below `min_item_events`,
    again and again until nothing changes;
 6. number the items that are left by their text: this is the catalogue;
 7. draw `max_users` users by a seeded hash; keep each user's latest `max_user_events` events. The catalogue keeps
    all its items: how hard the ranking is must not depend on how many users are looked at;
 8. with `holdout.by: time` find the days from which events are held out.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from calrec_lite.data.domain import Catalogue, Domain, Sequences, moment, read_info
from calrec_lite.data.faults import shown
from calrec_lite.data.merging import keep_apart, merge_texts
from calrec_lite.data.readers import Raw, read
from calrec_lite.data.report import statistics
from calrec_lite.errors import InputError, RunError
from calrec_lite.files import file_sha256, work_folder
from calrec_lite.recipe import DomainSpec, Holdout, Text
from calrec_lite.sources import fetch
from calrec_lite.threads import cores

FORMAT = 1  # of fingerprints
VERSION = 3  # raise it when the same files and options give another domain than before
LOCATIONS = {"interactions", "items"}
RESHAPING = ("drop_repeats", "min_user_events", "min_item_events", "max_users", "max_user_events")
Dropped = dict[str, dict[str, int]]


def prepare(name: str, spec: DomainSpec, seed: int, text: Text | None = None) -> Domain:
    """Prepare one domain of a recipe.

    The result depends on the files' content, the options and the seed only: not on their place, the number of
    threads, or (with times) the order of the rows.

    Args:
        text: items that it words alike become one; None: only those of equal values.

    Raises:
        InputError: a file cannot be had or read, or nothing is left after cleaning.
    """
    files = _fetch_all(spec)
    return _prepare(name, spec, seed, text, files, _source_key(spec, seed, text, files))


def prepare_to(
    name: str,
    spec: DomainSpec,
    seed: int,
    folder: Path,
    check: Callable[[Domain], None] | None = None,
    text: Text | None = None,
) -> Domain:
    """Open `folder` if it holds just this domain (same files, options and seed), else prepare and save it there.

    Args:
        text: as `prepare` takes it.
        check: sees the domain before what is in `folder` is replaced, and may raise InputError.

    Raises:
        InputError: as `prepare`; or the folder holds something that is no prepared domain.
    """
    files = _fetch_all(spec)
    source_key = _source_key(spec, seed, text, files)
    if (folder / "domain.json").is_file():
        existing = _open_if_same(name, source_key, folder)
        if existing:
            if check:
                check(existing)
            return existing
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is no prepared domain; choose another folder")
    domain = _prepare(name, spec, seed, text, files, source_key)
    if check:
        check(domain)
    domain.save(folder)
    return Domain.open(folder)


def _fetch_all(spec: DomainSpec) -> dict[str, Path]:
    places = {"interactions": spec.interactions} | ({"items": spec.items} if spec.items else {})
    return {role: fetch(location) for role, location in places.items()}


def _open_if_same(name: str, source_key: str, folder: Path) -> Domain | None:
    try:
        info = read_info(folder)
        return Domain.open(folder) if (info["name"], info["source_key"]) == (name, source_key) else None
    except InputError:  # damaged: it is made anew
        return None


def _source_key(spec: DomainSpec, seed: int, text: Text | None, files: dict[str, Path]) -> str:
    options = spec.model_dump(mode="json", exclude=LOCATIONS)
    hashes = {role: file_sha256(path) for role, path in files.items()}
    wording = text and [text.field, text.separator, text.missing]
    return _sha256_json([VERSION, options, seed, wording, hashes])


def _prepare(
    name: str, spec: DomainSpec, seed: int, text: Text | None, files: dict[str, Path], source_key: str
) -> Domain:
    with _database() as (connection, folder):
        raw = read(connection, folder, spec, files["interactions"], files.get("items"))
        dropped: Dropped = {}
        apart = keep_apart(connection, len(raw.labels))
        _drop_unusable(connection, raw, dropped)
        alike = merge_texts(connection, raw.labels, text)
        merged = _count(connection, "count(*) - count(DISTINCT text)", "texts")
        timed = _order(connection, seed, spec.drop_repeats)
        _k_core(connection, spec, dropped)
        catalogue = _catalogue(connection, raw) if _count(connection) else None
        _cap(connection, spec, seed, dropped)
        if catalogue is None:
            raise InputError(f"{files['interactions']}: no usable row is left of {raw.rows}: {_in_words(dropped)}")
        sequences = _hold_out(_sequences(connection, timed), name, spec.holdout)
    info: dict[str, Any] = {
        "source_key": source_key,
        "options": {**spec.model_dump(mode="json"), "seed": seed},
        "labels": raw.labels,
        "read": {"rows": raw.rows, "item_records": raw.records, "duplicate_item_records": raw.duplicate_records},
        "times": raw.times,
        "junk_values": {label: tally.values for label, tally in raw.emptied.items()},
        "repairs": {name: asdict(tally) for name, tally in raw.repairs.items()},
        "emptied": {label: asdict(tally) for label, tally in raw.emptied.items()},
        "kept_apart": asdict(apart),
        "labels_left_out": raw.rare,
        "dropped": dropped,
        "merged_items": merged,
        "worded_alike": asdict(alike),
        "statistics": statistics(catalogue, sequences),
    }
    info["fingerprint"] = _fingerprint(
        catalogue, sequences, {key: info["options"][key] for key in (*RESHAPING, "seed")}
    )
    return Domain(name, catalogue, sequences, info)


@contextmanager
def _database() -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """A database in a temporary folder (TMPDIR), and the folder: tables larger than memory stay on disk.

    An in-memory database spills as well, but measured with a memory limit of 200 MB it gave up on 20 million rows
    that this one went through.
    """
    with work_folder() as folder:
        connection = duckdb.connect(str(folder / "work.duckdb"))
        try:
            connection.execute(f"SET TimeZone = 'UTC'; SET enable_progress_bar = false; SET threads = {cores()}")
            yield connection, folder
        except duckdb.OperationalError as error:  # out of memory or of disk
            raise RunError(
                f"the data could not be prepared in {folder}: {shown(error)}; free memory or disk (TMPDIR names "
                "another folder), and start the same command again"
            ) from None
        finally:
            connection.close()


def _delete(connection: duckdb.DuckDBPyConnection, condition: str, table: str = "events") -> int:
    return int(connection.execute(f"DELETE FROM {table} WHERE {condition}").fetchall()[0][0])


def _count(connection: duckdb.DuckDBPyConnection, what: str = "count(*)", table: str = "ordered") -> int:
    return int(connection.execute(f"SELECT {what} FROM {table}").fetchall()[0][0])


def _drop_unusable(connection: duckdb.DuckDBPyConnection, raw: Raw, dropped: Dropped) -> None:
    """Steps 1 and 2, on `events`."""
    text = " || ".join(f"f{i}" for i in range(len(raw.labels))) or "''"
    connection.execute(
        "CREATE TABLE rows AS SELECT user, item, time, fine, row FROM events;"
        "DROP TABLE events; ALTER TABLE rows RENAME TO events;"
        f"CREATE TABLE textless AS SELECT item FROM items WHERE {text} = ''"
    )
    dropped["no user or item"] = {"events": _delete(connection, "user IS NULL OR item IS NULL")}
    if _count(connection, "count(time)", "events"):
        dropped["no time"] = {"events": _delete(connection, "time IS NULL")}
        order = "row_number() OVER (PARTITION BY user, item, time ORDER BY fine, row)"
        first = f"SELECT row FROM events QUALIFY {order} = 1"
        dropped["same user, item and time"] = {"events": _delete(connection, f"row NOT IN ({first})")}
    for reason, condition in {
        "item without record": "item NOT IN (SELECT item FROM items)",
        "item without text": "item IN (SELECT item FROM textless)",
    }.items():
        items = _count(connection, "count(DISTINCT item)", f"events WHERE {condition}")
        dropped[reason] = {"events": _delete(connection, condition), "items": items}


def _order(connection: duckdb.DuckDBPyConnection, seed: int, drop_repeats: bool) -> bool:
    """Make `ordered` (user, item, time, position) from `events`, item being a text's number; True if it has times."""
    # md5, not DuckDB's own hash, which may change from version to version.
    tie_breaker = f"md5(concat_ws(chr(31), {seed}, name, {'text' if drop_repeats else 'item'}, time))"
    timed = _count(connection, "count(time)", "events") > 0
    connection.execute(
        "CREATE TABLE users AS SELECT name, row_number() OVER (ORDER BY name) - 1 AS user "
        "FROM (SELECT DISTINCT user AS name FROM events);"
        "CREATE TABLE ordered AS SELECT users.user, text AS item, time, "
        f"row_number() OVER (ORDER BY users.user, {f'time, fine, {tie_breaker}' if timed else 'row'}) AS position "
        "FROM events JOIN users ON name = events.user JOIN texts USING (item);"
        "DROP TABLE events"
    )
    return timed


def _k_core(connection: duckdb.DuckDBPyConnection, spec: DomainSpec, dropped: Dropped) -> None:
    """Step 5, again and again until nothing changes."""
    repeats = (
        "position IN (SELECT position FROM ordered QUALIFY item = lag(item) OVER (PARTITION BY user ORDER BY position))"
    )
    few = "{0} IN (SELECT {0} FROM ordered GROUP BY {0} HAVING count(*) < {1})"
    rules = {"repeat of the previous item": (repeats, "")} if spec.drop_repeats else {}
    rules["user with too few events"] = (few.format("user", spec.min_user_events), "user")
    rules["item with too few events"] = (few.format("item", spec.min_item_events), "item")
    for reason, (_, key) in rules.items():
        dropped[reason] = {"events": 0} | ({f"{key}s": 0} if key else {})
    changed = True
    while changed:
        changed = False
        for reason, (condition, key) in rules.items():
            before = _count(connection, f'count(DISTINCT "{key}")') if key else 0
            events = _delete(connection, condition, "ordered")
            dropped[reason]["events"] += events
            if key and events:
                dropped[reason][f"{key}s"] += before - _count(connection, f'count(DISTINCT "{key}")')
            changed = changed or events > 0


def _catalogue(connection: duckdb.DuckDBPyConnection, raw: Raw) -> Catalogue:
    """Number the items that are left, in the order of their text, and renumber `ordered` with them."""
    connection.execute(
        "CREATE TABLE numbered AS SELECT text, row_number() OVER (ORDER BY text) - 1 AS index "
        "FROM (SELECT DISTINCT item AS text FROM ordered);"
        "UPDATE ordered SET item = index FROM numbered WHERE ordered.item = text"
    )
    columns = "".join(f", arg_min(f{i}, own)" for i in range(len(raw.labels)))
    items = connection.execute(
        f"SELECT min(item){columns} FROM texts JOIN numbered USING (text) JOIN items USING (item) "
        "GROUP BY index ORDER BY index"
    ).fetchall()
    aliases = connection.execute("SELECT item, index FROM texts JOIN numbered USING (text) ORDER BY item").fetchall()
    return Catalogue(
        ids=[item for item, *_ in items],
        fields=[{k: v for k, v in zip(raw.labels, values, strict=True) if v} for _, *values in items],
        aliases=dict(aliases),
    )


def _cap(connection: duckdb.DuckDBPyConnection, spec: DomainSpec, seed: int, dropped: Dropped) -> None:
    """Step 7."""
    if spec.max_users:
        drawn = (
            "SELECT user FROM users WHERE user IN (SELECT user FROM ordered) "
            f"ORDER BY md5(concat_ws(chr(31), {seed}, name)), name LIMIT {spec.max_users}"
        )
        before = _count(connection, "count(DISTINCT user)")
        events = _delete(connection, f"user NOT IN ({drawn})", "ordered")
        dropped["user not drawn"] = {"events": events, "users": before - _count(connection, "count(DISTINCT user)")}
    if spec.max_user_events:
        older = f"row_number() OVER (PARTITION BY user ORDER BY position DESC) > {spec.max_user_events}"
        condition = f"position IN (SELECT position FROM ordered QUALIFY {older})"
        dropped["older than the user's latest"] = {"events": _delete(connection, condition, "ordered")}


def _sequences(connection: duckdb.DuckDBPyConnection, timed: bool) -> Sequences:
    flat = connection.execute("SELECT item, time FROM ordered ORDER BY position").fetchnumpy()
    users = connection.execute(
        "SELECT name, count(*) FROM ordered JOIN users USING (user) GROUP BY name, user ORDER BY user"
    ).fetchall()
    return Sequences(
        users=[name for name, _ in users],
        items=np.asarray(flat["item"], dtype=np.int32),
        offsets=np.cumsum([0, *(n for _, n in users)], dtype=np.int64),
        times=np.asarray(flat["time"], dtype=np.int64) if timed else None,
    )


def _hold_out(sequences: Sequences, name: str, holdout: Holdout) -> Sequences:
    """Step 8."""
    if holdout.by == "leave_one_out":
        return sequences
    if sequences.times is None:
        raise InputError(f"domain `{name}`: holdout.by is `time`, but its events have no times; use leave_one_out")
    sorted_times = np.sort(sequences.times)
    valid, test = (_seconds(when, sorted_times) for when in (holdout.valid_from, holdout.test_from))
    if valid >= test:
        raise InputError(
            f"domain `{name}`: holdout.valid_from ({holdout.valid_from}) comes to {moment(valid)} and test_from "
            f"({holdout.test_from}) to {moment(test)}: nothing is left for validation; move them apart"
        )
    return replace(sequences, cuts=(valid, test))


def _seconds(when: float | date, sorted_times: np.ndarray) -> int:
    """A share of the events becomes the time of the first one beyond it: events of that time are held out."""
    if isinstance(when, float):
        return int(sorted_times[int(when * len(sorted_times))])
    return int(datetime(when.year, when.month, when.day, tzinfo=timezone.utc).timestamp())


def _in_words(dropped: Dropped) -> str:
    parts = [f"{counts['events']} {reason}" for reason, counts in dropped.items() if counts["events"]]
    return "; ".join(parts) + ". Check the columns, or lower min_user_events and min_item_events"


def _fingerprint(catalogue: Catalogue, sequences: Sequences, options: dict[str, Any]) -> str:
    digest = hashlib.sha256(_sha256_json([FORMAT, options, catalogue.fields, sequences.users]).encode())
    for array in (sequences.items.astype("<i4"), sequences.offsets.astype("<i8")):
        digest.update(array.tobytes())
    if sequences.times is not None:
        digest.update(sequences.times.astype("<i8").tobytes())
    if sequences.cuts is not None:
        digest.update(np.array(sequences.cuts, "<i8").tobytes())
    return digest.hexdigest()


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
