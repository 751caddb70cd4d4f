"""What a person should know of the data before anything is trained: counted as `prepare` goes, said by `describe`.

Nothing is changed by it. Of the tables see `readers.py`.
"""

from typing import Any

import duckdb
import numpy as np

from calrec_lite.data.domain import Sequences
from calrec_lite.data.faults import shown

TITLE = "Title"
DAY = 86_400  # seconds
EXAMPLES = 3
NOTABLE = 0.05  # share of users
WHOLE = r"^(-?\d+)\.0+$"  # a whole number written with a point, as of a column with gaps


def untitled(connection: duckdb.DuckDBPyConnection, labels: list[str]) -> dict[str, Any]:
    """Items without a title that have other fields, and how many different texts that makes.

    Returns:
        items, texts, fields (labels of what they have); {} where there are none, or no title at all is asked for.
    """
    if TITLE not in labels:
        return {}
    title = f"f{labels.index(TITLE)}"
    others = [(label, f"f{i}") for i, label in enumerate(labels) if label != TITLE]
    if not others:
        return {}
    filled = ", ".join(f"bool_or({column} <> '')" for _, column in others)
    text = ", ".join(column for _, column in others)
    any_other = " OR ".join(f"{column} <> ''" for _, column in others)
    items, texts, *has = connection.execute(
        f"SELECT count(*), count(DISTINCT [{text}]), {filled} FROM items WHERE {title} = '' AND ({any_other})"
    ).fetchall()[0]
    if not items:
        return {}
    return {"items": items, "texts": texts, "fields": [label for (label, _), yes in zip(others, has) if yes]}


def twin_ids(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    """Ids that stand in the events both as `12` and as `12.0`: user, item -> ids, examples; without those of none."""
    found = {}
    for role in ("user", "item"):
        # Ids are looked at once each; `12.0` is twin to `12` only where both are there.
        twins = (
            f"WITH ids AS (SELECT DISTINCT {role} AS id FROM events WHERE {role} IS NOT NULL) "
            f"SELECT regexp_extract(id, '{WHOLE}', 1) AS whole, id FROM ids WHERE regexp_matches(id, '{WHOLE}') "
            f"AND whole IN (SELECT id FROM ids)"
        )
        n = connection.execute(f"SELECT count(*) FROM ({twins})").fetchall()[0][0]
        if n:
            pairs = connection.execute(f"SELECT whole, id FROM ({twins}) ORDER BY id LIMIT {EXAMPLES}").fetchall()
            found[role] = {"ids": n, "examples": [list(pair) for pair in pairs]}
    return found


def changing_titles(connection: duckdb.DuckDBPyConnection, labels: list[str]) -> dict[str, Any]:
    """Items with several titles in the table `cleaned`, one of which wins in `items` (as `readers.py` chooses).

    Returns:
        items, examples (id, the title that wins, another); {} where there are none.
    """
    if not labels:
        return {}
    title = f"f{labels.index(TITLE) if TITLE in labels else 0}"
    several = (
        f"SELECT item, any_value(items.{title}) AS wins, min(cleaned.{title}) AS other "
        f"FROM cleaned JOIN items USING (item) WHERE cleaned.{title} NOT IN ('', items.{title}) GROUP BY item"
    )
    n = connection.execute(f"SELECT count(*) FROM ({several})").fetchall()[0][0]
    if not n:
        return {}
    examples = connection.execute(f"SELECT * FROM ({several}) ORDER BY item LIMIT {EXAMPLES}").fetchall()
    return {"items": n, "examples": [list(example) for example in examples]}


def other_spelling(connection: duckdb.DuckDBPyConnection, records: str, item: str) -> str:
    """What to add where no record is of any item, if `12.0` in one file is `12` in the other; else "".

    Args:
        records: FROM clause of the items file. item: its id column as text, in SQL.
    """
    cut = r"regexp_replace(trim({}), '\.0+$', '')"
    known = f"SELECT {cut.format('item')} FROM events"
    found = connection.execute(
        f"SELECT trim({item}) FROM {records} WHERE {cut.format(item)} IN ({known}) LIMIT 1"
    ).fetchall()
    return f"; there it is written like `{shown(found[0][0])}`: write both as whole numbers" if found else ""


def one_day(sequences: Sequences) -> float | None:
    """Share of the users with several events all of whose events are of one day (UTC); None without times."""
    if sequences.times is None:
        return None
    several = one = 0
    for part in sequences.parts():
        bounds = sequences.offsets[part.start : part.stop + 1]
        days = sequences.times[bounds[0] : bounds[-1]] // DAY
        lengths = np.diff(bounds)
        first, last = bounds[:-1] - bounds[0], bounds[1:] - bounds[0] - 1
        many = lengths > 1
        several += int(many.sum())
        one += int((days[first[many]] == days[last[many]]).sum())  # events are in the order of their times
    return round(one / several, 4) if several else 0.0


def doubts_in_words(info: dict[str, Any]) -> list[str]:
    """Lines for people about what `prepare` found; [] where nothing is doubtful."""
    doubts, lines = info.get("doubts", {}), []
    if found := doubts.get("untitled"):
        fields = " and ".join(found["fields"])
        lines.append(
            f"{found['items']:,} items have no Title: their text is only {fields}, which makes "
            f"{found['texts']:,} different items of them"
        )
    for role, found in doubts.get("twin_ids", {}).items():
        pair = " and ".join(f"`{shown(text)}`" for text in found["examples"][0])
        lines.append(
            f"{found['ids']:,} {role} ids are written in two ways, such as {pair}, and are two {role}s each"
            f"{' unless their texts are the same' if role == 'item' else ''}; write the column as whole numbers or text"
        )
    if found := doubts.get("changing_titles"):
        item, wins, other = map(shown, found["examples"][0])
        lines.append(
            f"{found['items']:,} items have several titles: that of the record with most fields counts, of equal ones "
            f"the first in the file, such as `{wins}`, not `{other}`, of item `{item}`"
        )
    share = info["statistics"].get("one_day")
    if share and share >= NOTABLE:
        lines.append(
            f"{share:.1%} of the users with several events have them all on one day: little is known of their order"
        )
    return lines
