"""The rows of a domain in DuckDB: which are used, in which order, and which stay (steps 1, 2, 4, 5 and 7 of `prepare`).

    users     user UINTEGER, name VARCHAR; numbered in the order of the names
    names     item UINTEGER, name VARCHAR; the same of items
    numbers   user, item, time, fine, row: `events` with numbers for names, which take a fraction of their memory
    ordered   user, item (a text's number), time, position; on disk in about the order of `position`

Tables are written anew, without the rows that go: what DELETE and UPDATE note of each row has to stay in memory.
"""

from itertools import compress

import duckdb
import numpy as np
from numpy.typing import NDArray

from calrec_lite.data.domain import Sequences
from calrec_lite.recipe import DomainSpec

Dropped = dict[str, dict[str, int]]
UNKNOWN, TEXTLESS = "item without record", "item without text"
PART = 1 << 20  # rows that Python sees at a time


def count(connection: duckdb.DuckDBPyConnection, what: str = "count(*)", table: str = "ordered") -> int:
    """One number of a table."""
    return int(connection.execute(f"SELECT {what} FROM {table}").fetchall()[0][0])


def drop_unusable(connection: duckdb.DuckDBPyConnection, n_labels: int, dropped: Dropped) -> bool:
    """Make `users`, `names` and `numbers` from `events`, without rows that cannot be used; True if they have times."""
    named = "user IS NOT NULL AND item IS NOT NULL"
    rows, usable, timed = connection.execute(
        f"SELECT count(*), count(*) FILTER ({named}), count(time) FILTER ({named}) FROM events"
    ).fetchall()[0]
    dropped["no user or item"] = {"events": rows - usable}
    text = " || ".join(f"f{i}" for i in range(n_labels)) or "''"
    connection.execute(
        "CREATE TABLE users AS SELECT name, CAST(row_number() OVER (ORDER BY name) - 1 AS UINTEGER) AS user "
        "FROM (SELECT DISTINCT user AS name FROM events WHERE user IS NOT NULL);"
        "CREATE TABLE names AS SELECT name, CAST(row_number() OVER (ORDER BY name) - 1 AS UINTEGER) AS item, "
        f"CASE WHEN items.item IS NULL THEN '{UNKNOWN}' WHEN {text} = '' THEN '{TEXTLESS}' END AS lack "
        "FROM (SELECT DISTINCT item AS name FROM events WHERE item IS NOT NULL) LEFT JOIN items ON items.item = name;"
        "CREATE TABLE numbers AS SELECT users.user, names.item, time, fine, row FROM events "
        "JOIN users ON users.name = events.user JOIN names ON names.name = events.item"
        f"{' WHERE time IS NOT NULL' if timed else ''};"
        "DROP TABLE events"
    )
    if timed:
        dropped["no time"] = {"events": usable - timed}
        # Of rows that say the same the earliest within the second counts.
        first = "SELECT user, item, time, min(fine) AS fine FROM numbers GROUP BY user, item, time"
        connection.execute(f"CREATE TABLE firsts AS {first}; DROP TABLE numbers; ALTER TABLE firsts RENAME TO numbers")
        dropped["same user, item and time"] = {"events": timed - count(connection, table="numbers")}
    for reason in (UNKNOWN, TEXTLESS):
        what = f"numbers WHERE item IN (SELECT item FROM names WHERE lack = '{reason}')"
        events, items = (count(connection, one, what) for one in ("count(*)", "count(DISTINCT item)"))
        dropped[reason] = {"events": events, "items": items}
    connection.execute(
        "CREATE OR REPLACE TABLE names AS SELECT item, name FROM names "
        "WHERE lack IS NULL AND item IN (SELECT DISTINCT item FROM numbers)"
    )
    return bool(timed)


def order(connection: duckdb.DuckDBPyConnection, seed: int, drop_repeats: bool, timed: bool) -> None:
    """Make `ordered` from `numbers` and `texts`."""
    # md5, not DuckDB's own hash, which may change from version to version; of it the first half.
    said = f"concat_ws(chr(31), {seed}, users.name, {'text' if drop_repeats else 'names.name'}, time)"
    tie_breaker = f"CAST('0x' || left(md5({said}), 16) AS UBIGINT)"
    by = f"time, fine, {tie_breaker}" if timed else "row"
    connection.execute(
        "CREATE TABLE ordered AS SELECT user, CAST(text AS UINTEGER) AS item, time, "
        f"row_number() OVER (ORDER BY user, {by}) AS position "
        "FROM numbers JOIN users USING (user) JOIN names USING (item) JOIN texts ON texts.item = names.name;"
        "DROP TABLE numbers"
    )


def keep_core(connection: duckdb.DuckDBPyConnection, spec: DomainSpec, dropped: Dropped) -> None:
    """Step 5, again and again until nothing changes."""
    least = {"user": spec.min_user_events, "item": spec.min_item_events}
    repeats = "QUALIFY item IS DISTINCT FROM lag(item) OVER (PARTITION BY user ORDER BY position)"
    if spec.drop_repeats:
        dropped["repeat of the previous item"] = {"events": 0}
    for key in least:
        dropped[f"{key} with too few events"] = {"events": 0, f"{key}s": 0}
    changed = True
    while changed:
        changed = False
        if spec.drop_repeats:
            events = _keep(connection, repeats)
            dropped["repeat of the previous item"]["events"] += events
            changed = events > 0
        for key, n in least.items():
            few = f"SELECT {key} FROM ordered GROUP BY {key} HAVING count(*) < {n}"
            connection.execute(f"CREATE OR REPLACE TABLE few AS {few}")
            if gone := count(connection, table="few"):
                dropped[f"{key} with too few events"][f"{key}s"] += gone
                events = _keep(connection, f"WHERE {key} NOT IN (SELECT {key} FROM few)")
                dropped[f"{key} with too few events"]["events"] += events
                changed = True


def cap(connection: duckdb.DuckDBPyConnection, spec: DomainSpec, seed: int, dropped: Dropped) -> None:
    """Step 7."""
    if spec.max_users:
        drawn = (
            "SELECT user FROM users WHERE user IN (SELECT DISTINCT user FROM ordered) "
            f"ORDER BY md5(concat_ws(chr(31), {seed}, name)), name LIMIT {spec.max_users}"
        )
        before = count(connection, "count(DISTINCT user)")
        events = _keep(connection, f"WHERE user IN ({drawn})")
        dropped["user not drawn"] = {"events": events, "users": before - count(connection, "count(DISTINCT user)")}
    if spec.max_user_events:
        latest = f"row_number() OVER (PARTITION BY user ORDER BY position DESC) <= {spec.max_user_events}"
        dropped["older than the user's latest"] = {"events": _keep(connection, f"QUALIFY {latest}")}


def _keep(connection: duckdb.DuckDBPyConnection, which: str) -> int:
    """Leave only these rows in `ordered`; return how many went."""
    before = count(connection)
    connection.execute(
        f"CREATE TABLE kept AS SELECT * FROM ordered {which}; DROP TABLE ordered; ALTER TABLE kept RENAME TO ordered"
    )
    return before - count(connection)


def sequences(connection: duckdb.DuckDBPyConnection, indices: NDArray[np.int32], timed: bool) -> Sequences:
    """What `ordered` holds; `indices` are the canonical ones of the texts' numbers."""
    n, last = (count(connection, what) for what in ("count(*)", "max(position)"))
    items, times = np.empty(n, np.int32), np.empty(n if timed else 0, np.int64)
    lengths = np.zeros(count(connection, table="users"), np.int64)
    end = 0
    for start in range(0, last + 1, PART):
        part = connection.execute(
            f"SELECT user, item, time FROM ordered WHERE position BETWEEN {start} AND {start + PART - 1} "
            "ORDER BY position"
        ).fetchnumpy()
        here = slice(end, end := end + len(part["item"]))
        items[here] = indices[part["item"]]
        if timed:
            times[here] = part["time"]
        if len(part["user"]):
            first, final = int(part["user"][0]), int(part["user"][-1])
            lengths[first : final + 1] += np.bincount(part["user"] - first)
    has_events = lengths > 0
    offsets = np.concatenate([[0], np.cumsum(lengths[has_events])])
    return Sequences(_names(connection, has_events), items, offsets, times if timed else None)


def _names(connection: duckdb.DuckDBPyConnection, wanted: NDArray[np.bool_]) -> list[str]:
    names: list[str] = []
    for start in range(0, len(wanted), PART):
        part = connection.execute(
            f"SELECT name FROM users WHERE user BETWEEN {start} AND {start + PART - 1} ORDER BY user"
        ).fetchall()
        names += [name for (name,) in compress(part, wanted[start : start + PART])]
    return names
