"""Which items are one: those that were written alike, not those that a repair has made alike."""

import duckdb

from calrec_lite.data.clean import EXAMPLES, Tally


def keep_apart(connection: duckdb.DuckDBPyConnection, n_labels: int) -> Tally:
    """Undo the repairs that would make one item of two.

    The table `items` has columns f0, f1, ... with the repaired texts, and w0, w1, ... with the texts as written, NULL
    where they are the same. Where the former are equal and the latter are not, the latter take their place. They may in
    turn be what another item was repaired to, so this is done until nothing changes.

    Returns:
        The items that stay as written: before, as repaired, and after.
    """
    apart = Tally()
    if not n_labels:
        return apart
    repaired, stood = (", ".join(f"{c}{i}" for i in range(n_labels)) for c in "fw")
    written = ", ".join(f"coalesce(w{i}, f{i})" for i in range(n_labels))
    put_back = ", ".join(f"f{i} = coalesce(w{i}, f{i}), w{i} = NULL" for i in range(n_labels))
    while True:
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE alike AS SELECT item, concat_ws(', ', {repaired}) AS before, "
            f"concat_ws(', ', {written}) AS after FROM items JOIN (SELECT {repaired} FROM items GROUP BY ALL "
            f"HAVING count(DISTINCT [{written}]) > 1) USING ({repaired}) WHERE coalesce({stood}) IS NOT NULL"
        )
        found = connection.execute(f"SELECT before, after FROM alike ORDER BY item LIMIT {EXAMPLES}").fetchall()
        if not found:
            return apart
        for before, after in found:
            apart.add(before, after)
        update = f"UPDATE items SET {put_back} WHERE item IN (SELECT item FROM alike)"
        apart.values += connection.execute(update).fetchall()[0][0] - len(found)
