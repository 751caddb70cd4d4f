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

from calrec_lite.bars import wait_bar
from calrec_lite.data import events
from calrec_lite.data.domain import Catalogue, Domain, Sequences, moment, read_info
from calrec_lite.data.doubts import twin_ids, untitled
from calrec_lite.data.faults import shown
from calrec_lite.data.formats.known import READERS
from calrec_lite.data.formats.places import source_hash
from calrec_lite.data.merging import keep_apart, merge_texts
from calrec_lite.data.readers import Raw, is_html, read
from calrec_lite.data.report import statistics
from calrec_lite.data.times import SEQUENCE
from calrec_lite.errors import InputError, RunError
from calrec_lite.files import work_folder
from calrec_lite.ram import free_ram
from calrec_lite.recipe import DomainSpec, Holdout, Text
from calrec_lite.sources import fetch
from calrec_lite.threads import cores

FORMAT = 1  # of fingerprints
VERSION = 3  # raise it when the same files and options give another domain than before
LOCATIONS = {"interactions", "items"}
THREAD_MEMORY = 512 << 20  # bytes
RESHAPING = ("drop_repeats", "min_user_events", "min_item_events", "max_users", "max_user_events")


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
    del domain  # not in memory twice
    return Domain.open(folder)


def prepared_in(folder: Path, name: str, spec: DomainSpec, seed: int, text: Text | None = None) -> bool:
    """Whether `prepare_to` would find just this domain in `folder`. Raises InputError as it does."""
    if not (folder / "domain.json").is_file():
        return False
    return _open_if_same(name, _source_key(spec, seed, text, _fetch_all(spec)), folder) is not None


def _fetch_all(spec: DomainSpec) -> dict[str, Path]:
    places = {"interactions": spec.interactions} | ({"items": spec.items} if spec.items else {})
    patterns = READERS[spec.reader].patterns()
    return {role: fetch(location, patterns) for role, location in places.items()}


def _open_if_same(name: str, source_key: str, folder: Path) -> Domain | None:
    try:
        info = read_info(folder)
        return Domain.open(folder) if (info["name"], info["source_key"]) == (name, source_key) else None
    except InputError:  # damaged: it is made anew
        return None


def _source_key(spec: DomainSpec, seed: int, text: Text | None, files: dict[str, Path]) -> str:
    options = spec.model_dump(mode="json", exclude=LOCATIONS)
    hashes = {role: source_hash(READERS[spec.reader], path) for role, path in files.items()}
    wording = text and [text.field, text.separator, text.missing]
    return _sha256_json([VERSION, options, seed, wording, hashes])


def _prepare(
    name: str, spec: DomainSpec, seed: int, text: Text | None, files: dict[str, Path], source_key: str
) -> Domain:
    with database() as (connection, folder), wait_bar(f"prepare {name}", 5, "step") as bar:
        raw = read(connection, folder, spec, files["interactions"], files.get("items"))
        bar.update()
        dropped: events.Dropped = {}
        apart = keep_apart(connection, len(raw.labels))
        doubts = {"untitled": untitled(connection, raw.labels), "twin_ids": twin_ids(connection)}
        timed = events.drop_unusable(connection, len(raw.labels), dropped)
        alike = merge_texts(connection, raw.labels, text)
        merged = events.count(connection, "count(*) - count(DISTINCT text)", "texts")
        bar.update()
        events.order(connection, seed, spec.drop_repeats, timed)
        bar.update()
        events.keep_core(connection, spec, dropped)
        bar.update()
        if not events.count(connection):
            raise InputError(f"{files['interactions']}: no usable row is left of {raw.rows}: {_in_words(dropped)}")
        catalogue, indices = _catalogue(connection, raw)
        events.cap(connection, spec, seed, dropped)
        bar.update()
        sequences = events.sequences(connection, indices, timed)
    if spec.holdout.by == "time" and raw.times == SEQUENCE:
        raise InputError(f"domain `{name}`: holdout.by is `time`, but its events have an order only; use leave_one_out")
    sequences = _hold_out(sequences, name, spec.holdout)
    info: dict[str, Any] = {
        "source_key": source_key,
        "options": {**spec.model_dump(mode="json"), "seed": seed},
        "html": is_html(spec),
        "labels": raw.labels,
        "read": {"rows": raw.rows, "item_records": raw.records, "duplicate_item_records": raw.duplicate_records},
        "times": raw.times,
        "bad_rows": raw.bad.counts,
        "junk_values": {label: tally.values for label, tally in raw.emptied.items()},
        "repairs": {name: asdict(tally) for name, tally in raw.repairs.items()},
        "emptied": {label: asdict(tally) for label, tally in raw.emptied.items()},
        "kept_apart": asdict(apart),
        "labels_left_out": raw.rare,
        "dropped": dropped,
        "merged_items": merged,
        "worded_alike": asdict(alike),
        "doubts": {**doubts, "changing_titles": raw.changing},
        "statistics": statistics(catalogue, sequences, dated=raw.times != SEQUENCE),
    }
    info["fingerprint"] = _fingerprint(
        catalogue, sequences, {key: info["options"][key] for key in (*RESHAPING, "seed")}
    )
    return Domain(name, catalogue, sequences, info, raw.bad.rows)


def _share() -> tuple[int, int]:
    """Bytes that DuckDB may hold before it spills, and its threads: no more of them than these bytes do for.

    Half of what is free at most: the other half is for the result.
    """
    limit = min(cores() * THREAD_MEMORY, free_ram() // 2)
    return limit, max(1, min(cores(), 2 * limit // THREAD_MEMORY))


@contextmanager
def database() -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """A database in a temporary folder (TMPDIR), and the folder: tables larger than memory stay on disk.

    An in-memory database spills as well, but measured with a memory limit of 200 MB it gave up on 20 million rows
    that this one went through.
    """
    with work_folder() as folder:
        connection = duckdb.connect(str(folder / "work.duckdb"))
        try:
            limit, threads = _share()
            connection.execute(f"SET TimeZone = 'UTC'; SET threads = {threads}; SET memory_limit = '{limit}B'")
            if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
                # A notebook without ipywidgets has no bar, and raises where one is switched off.
                connection.execute("SET enable_progress_bar = false")
            yield connection, folder
        except duckdb.OperationalError as error:  # out of memory or of disk
            raise RunError(
                f"the data could not be prepared in {folder}: {shown(error)}; free memory or disk (TMPDIR names "
                "another folder), and start the same command again"
            ) from None
        finally:
            connection.close()


def _catalogue(connection: duckdb.DuckDBPyConnection, raw: Raw) -> tuple[Catalogue, np.ndarray]:
    """The items that are left, numbered in the order of their text, and that number (int32) of each text's number."""
    connection.execute(
        "CREATE TABLE numbered AS SELECT text, row_number() OVER (ORDER BY text) - 1 AS index "
        "FROM (SELECT DISTINCT item AS text FROM ordered)"
    )
    columns = "".join(f", arg_min(f{i}, own)" for i in range(len(raw.labels)))
    items = connection.execute(
        f"SELECT min(item){columns} FROM texts JOIN numbered USING (text) JOIN items USING (item) "
        "GROUP BY index ORDER BY index"
    ).fetchall()
    aliases = connection.execute("SELECT item, index FROM texts JOIN numbered USING (text) ORDER BY item").fetchall()
    catalogue = Catalogue(
        ids=[item for item, *_ in items],
        fields=[{k: v for k, v in zip(raw.labels, values, strict=True) if v} for _, *values in items],
        aliases=dict(aliases),
    )
    numbers = connection.execute("SELECT text, index FROM numbered").fetchnumpy()
    indices = np.zeros(int(numbers["text"].max()) + 1, np.int32)
    indices[numbers["text"]] = numbers["index"]
    return catalogue, indices


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


def _in_words(dropped: events.Dropped) -> str:
    parts = [f"{counts['events']} {reason}" for reason, counts in dropped.items() if counts["events"]]
    return "; ".join(parts) + ". Check the columns, or lower min_user_events and min_item_events"


def _fingerprint(catalogue: Catalogue, sequences: Sequences, options: dict[str, Any]) -> str:
    digest = hashlib.sha256(_content_sha256(catalogue, sequences, options).encode())
    for array in (sequences.items.astype("<i4", copy=False), sequences.offsets.astype("<i8", copy=False)):
        digest.update(array.data)
    if sequences.times is not None:
        digest.update(sequences.times.astype("<i8", copy=False).data)
    if sequences.cuts is not None:
        digest.update(np.array(sequences.cuts, "<i8").data)
    return digest.hexdigest()


def _content_sha256(catalogue: Catalogue, sequences: Sequences, options: dict[str, Any]) -> str:
    """The hash of [FORMAT, options, fields, users] as JSON, the users part by part: as one text they are gigabytes."""
    digest = hashlib.sha256(_json([FORMAT, options, catalogue.fields]).removesuffix("]").encode())
    between = ", ["
    for part in sequences.parts():
        digest.update((between + _json(sequences.users[part])[1:-1]).encode())
        between = ", "
    digest.update(b"]]")
    return digest.hexdigest()


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
