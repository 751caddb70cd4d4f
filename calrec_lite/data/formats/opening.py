"""The table of a format's events or items, out of whatever its publisher spreads it over."""

import tempfile
from dataclasses import replace
from pathlib import Path

import duckdb

from calrec_lite.data.bad_rows import BadRows
from calrec_lite.data.formats.places import Found, find, no_table
from calrec_lite.data.formats.shapes import Format
from calrec_lite.data.tables import Table, literal, open_table
from calrec_lite.errors import InputError


def open_role(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    form: Format,
    role: str,
    path: Path,
    encoding: str | None,
    bad: BadRows | None,
    alone: bool = True,
    header: bool = True,
) -> Table | None:
    """The table of `role` (events or items) at a path; None only if not `alone`: the events' folder or zip has none.

    Args:
        folder: for temporary files, as long as the table is in use.
        encoding, bad, header: as `open_table` takes them.
        alone: whether the path was named for this role.

    Raises:
        InputError: none or several files could be meant, one is missing, or one cannot be read.
    """
    found = find(form, role, path, alone)
    if found is None and alone:
        raise no_table(form, role, path)
    if found is None:
        return None
    tables = {
        name: open_table(connection, place, folder, header, found.file(name), encoding, bad)
        for name, place in found.places.items()
    }
    if found.layout.query is None:
        return next(iter(tables.values()))
    query = found.layout.query({name: table.scan({}) for name, table in tables.items()})
    return _composed(connection, found, tables, query, folder)


def _composed(
    connection: duckdb.DuckDBPyConnection, found: Found, tables: dict[str, Table], query: str, folder: Path
) -> Table:
    """One Parquet file of several tables: joined by DuckDB, which spills to disk."""
    for name, table in tables.items():
        if missing := [column for column in found.file(name).needs if column not in table.columns]:
            raise InputError(f"{table.path}: no column `{missing[0]}`; is it the publisher's {name}?")
    first = next(iter(tables.values()))
    target = Path(tempfile.mkdtemp(dir=folder)) / "table.parquet"
    try:
        connection.execute(f"COPY ({query}) TO {literal(str(target))} (FORMAT parquet)")
    except duckdb.Error as error:
        culprit = next((table for table in tables.values() if str(table.source) in str(error)), first)
        with culprit.reading():
            raise
    return replace(open_table(connection, target, folder), path=first.path)
