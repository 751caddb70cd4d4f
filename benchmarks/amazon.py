"""The shared Amazon domains and the short wording, as plain data for a recipe."""

from pathlib import Path
from typing import Any

WORDING = {"first": "Bought in this order:", "next": "Next:", "field": "{value}"}
TARGETS = {"scientific": "amazon18_scientific", "office": "amazon14_office"}  # of the evidence

UNTIMED = tuple(TARGETS.values())  # whose files tell order only
TITLE = {"Title": "title"}


def domain(
    data: Path, folder: str, max_users: int | None = None, fields: dict[str, str] | None = None
) -> dict[str, Any]:
    """The domain in `data/folder`; `max_users` drawn by the seed, None: all; items as `fields`, None: titles.

    Where the file has times, events of the same time get an order drawn by the seed: in the file they stand by ASIN.
    """
    time = {} if folder in UNTIMED else {"time": "ts"}
    return {
        "interactions": str(data / folder / "seqs.jsonl.gz"),
        "items": str(data / folder / "items.jsonl.gz"),
        "columns": {"user": "user", "item": "items", **time},
        "fields": fields or TITLE,
        "html": True,
        "max_users": max_users,
    }
