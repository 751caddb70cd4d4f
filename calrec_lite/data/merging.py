"""Which items are one: those that were written alike, not those that a repair has made alike."""

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from calrec_lite.data.clean import EXAMPLES, Tally
from calrec_lite.recipe import Text


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


def merge_texts(connection: duckdb.DuckDBPyConnection, labels: Sequence[str], text: Text | None) -> Tally:
    """Make `texts` (item, own, text) of the items in `names`: equal numbers are one item.

    `own` numbers the texts in their order. `text` is the same, or the first `own` of those that the recipe words alike:
    an item without a brand and one of the brand `Unknown`.

    Returns:
        The texts that only the wording makes equal: their values, and the wording.
    """
    fields = [f"f{i}" for i in range(len(labels))]
    connection.execute(
        f"CREATE TABLE texts AS SELECT *, own AS text FROM (SELECT item, dense_rank() OVER "
        f"(ORDER BY {', '.join(fields) or '1'}) AS own FROM items WHERE item IN (SELECT name FROM names))"
    )
    alike = Tally()
    if text is None or not fields:
        return alike
    values = ", ".join(f"any_value({f})" for f in fields)
    rows = connection.cursor().execute(
        f"SELECT own, {values} FROM texts JOIN items USING (item) GROUP BY own ORDER BY own"
    )
    first: dict[str, int] = {}
    pairs = []
    while chunk := rows.fetchmany(10_000):
        for own, *of_item in chunk:
            words = text.item(dict(zip(labels, of_item, strict=True)), labels)
            if first.setdefault(words, own) != own:
                alike.add(text.separator.join(filter(None, of_item)), words)
                pairs.append((own, first[words]))
    if pairs:
        connection.register("pairs", pa.table(list(zip(*pairs, strict=True)), names=["again", "first"]))
        connection.execute("UPDATE texts SET text = first FROM pairs WHERE own = again")
        connection.unregister("pairs")
    return alike
