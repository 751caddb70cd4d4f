"""One face for all stores, and which one `--to` names."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from calrec_lite.errors import InputError, RunError, one_line

TABLE = "items"  # where none is named
NAMED = re.compile(r"(?P<kind>lancedb|qdrant)://(?P<where>[^#]+)(#(?P<table>[\w.-]+))?")


class Store(Protocol):
    """A table of the columns `rows.COLUMNS`, a row an item.

    Attributes:
        size: length of its vectors; None: there is no such table yet.
    """

    size: int | None

    def known(self) -> dict[str, str]:
        """Id -> fingerprint of every row."""

    def update(self, chunks: Iterable[pa.Table], changed: Sequence[str], gone: Sequence[str]) -> None:
        """Write rows, each in the place of an earlier one of its id (`changed`), then remove the rows of `gone`.

        Raises RunError where the store fails. What was written before stays, or, of a file, nothing.
        """

    def close(self) -> None:
        """Let go of it."""


def open_store(to: str) -> Store:
    """The store that `lancedb://WHERE[#TABLE]`, `qdrant://WHERE[#COLLECTION]` or the name of a `.parquet` file names.

    Raises:
        InputError: for another name, a missing extra, and a table that `calrec-lite index` did not write.
        RunError: it cannot be reached.
    """
    if to.endswith(".parquet") and "://" not in to:
        from calrec_lite.stores.parquet import ParquetStore

        return ParquetStore(Path(to))
    found = NAMED.fullmatch(to)
    if not found:
        example = "lancedb://FOLDER#TABLE, qdrant://HOST:6333#COLLECTION, qdrant://FOLDER#COLLECTION or FILE.parquet"
        raise InputError(f"--to {to}: no store of that name; write {example}")
    where, table = found["where"], found["table"] or TABLE
    if found["kind"] == "lancedb":
        from calrec_lite.stores.lance import LanceStore

        return LanceStore(to, where, table)
    from calrec_lite.stores.qdrant import QdrantStore

    return QdrantStore(to, where, table)


@contextmanager
def reaching(to: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns a library's errors while a store is asked into a RunError that names the store."""
    expected: tuple[type[Exception], ...] = (*errors, OSError, RuntimeError, ValueError)
    try:
        yield
    except expected as error:
        if isinstance(error, InputError | RunError):
            raise
        raise RunError(f"--to {to}: {one_line(error)}; what is written stays, the same command goes on") from error


def missing_extra(to: str, extra: str) -> InputError:
    """What is said where a store's library is not installed."""
    return InputError(f"--to {to}: needs the extra: pip install 'calrec-lite[{extra}]'")


def foreign(to: str) -> InputError:
    """What is said of a table with other columns."""
    return InputError(f"--to {to}: is there, and `calrec-lite index` did not write it; name another one")
