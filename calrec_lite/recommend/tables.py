"""Histories out of a pandas DataFrame or a `datasets.Dataset`, and lists as one of the same kind."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from calrec_lite.errors import InputError

if TYPE_CHECKING:
    from calrec_lite.recommend.recommender import Recommendation

HISTORY = ("history", "items")  # columns, the first that is there


def read_table(table: Any) -> tuple[list[Any], list[Sequence[Any]], bool]:
    """The users' names, their histories, and whether these are of ids alone (the column `items`).

    Raises:
        InputError: neither a DataFrame nor a Dataset, or without a column of histories.
    """
    columns = list(table.columns) if _is(table, "pandas", "DataFrame") else list(_dataset(table).column_names)
    name = next((column for column in HISTORY if column in columns), None)
    if name is None:
        raise InputError(f"recommend_table: no column `{HISTORY[0]}` among {', '.join(map(str, columns))}")
    users = list(table["user"]) if "user" in columns else list(range(len(table)))
    histories = list(table[name])
    for user, history in zip(users, histories):
        if not isinstance(history, list | tuple | np.ndarray):
            raise InputError(f"recommend_table: `{name}` of user {user}: {history!r} is no list of titles or ids")
    return users, histories, name == "items"


def like_table(table: Any, users: Sequence[Any], lists: "Sequence[Sequence[Recommendation]]") -> Any:
    """A table of the same kind as `table`, one item a row: user, rank (from 1), item, title, score, why."""
    rows = [
        {"user": user, "rank": rank, "item": i.item, "title": i.title, "score": i.score, "why": i.why}
        for user, items in zip(users, lists, strict=True)
        for rank, i in enumerate(items, 1)
    ]
    columns = ("user", "rank", "item", "title", "score", "why")
    if _is(table, "pandas", "DataFrame"):
        return sys.modules["pandas"].DataFrame(rows, columns=columns)
    return type(table).from_dict({column: [row[column] for row in rows] for column in columns})


def _is(table: Any, library: str, name: str) -> bool:
    """Whether it is of that class; if the library is not imported, it cannot be."""
    module = sys.modules.get(library)
    return module is not None and isinstance(table, getattr(module, name))


def _dataset(table: Any) -> Any:
    if not _is(table, "datasets", "Dataset"):
        raise InputError(f"recommend_table: a {type(table).__name__}; give a pandas DataFrame or a datasets.Dataset")
    return table
