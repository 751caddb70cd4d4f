"""Small raw files, written by hand."""

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepare
from calrec_lite.errors import InputError
from calrec_lite.recipe import DomainSpec

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


def made(interactions: Path, items: Path | None = None, **options: Any) -> Domain:
    """A domain of these files, of users with one event or more."""
    spec = {"min_user_events": 1, **options}
    return prepare("d", DomainSpec(interactions=str(interactions), items=str(items) if items else None, **spec), 0)


def failing(interactions: Path, items: Path | None = None, **options: Any) -> str:
    """What is said of these files, in one line."""
    with pytest.raises(InputError) as error:
        made(interactions, items, **options)
    message = str(error.value)
    assert "\n" not in message
    return message
