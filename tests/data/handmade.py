"""Small raw files, written by hand."""

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from calrec_lite.data.domain import Domain

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
