"""Small raw files, written by hand, and domains prepared from them."""

import csv
import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from calrec_lite import recipe
from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepare

TITLES = {"a": "Apple", "b": "Bread", "c": "Cheese", "d": "Dates", "e": "Eggs"}
Events = Iterable[tuple[Any, ...]]


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, gzipped if its name says so."""
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def write_csv(path: Path, header: list[str], rows: Events) -> Path:
    """Write a CSV file as Python's own writer quotes it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def histories(domain: Domain) -> dict[str, list[str]]:
    """User -> titles, oldest first."""
    titles = domain.catalogue.titles
    return {user: [titles[i] for i in domain.sequences.of(u)] for u, user in enumerate(domain.sequences.users)}


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., Domain]:
    """Prepare a domain from events (user, item, time) or (user, item), and titles by item id."""

    def make(events: Events, titles: dict[str, str] | None = None, seed: int = 0, **options: Any) -> Domain:
        events = list(events)
        header = ["user", "item", "time"][: max(len(event) for event in events)]
        interactions = write_csv(tmp_path / "events.csv", header, events)
        items = write_csv(tmp_path / "items.csv", ["item", "title"], list((titles or TITLES).items()))
        options = {"min_user_events": 1, **options}
        spec = recipe.Domain(interactions=str(interactions), items=str(items), **options)
        return prepare("shop", spec, seed)

    return make
