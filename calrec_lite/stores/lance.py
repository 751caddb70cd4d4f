"""A LanceDB table: a folder, a bucket (`s3://`, `gs://`) or the vendor's cloud (`db://`). Extra `[lancedb]`."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from calrec_lite.stores.rows import COLUMNS
from calrec_lite.stores.store import foreign, missing_extra, reaching

NAMES = 1000  # ids of a condition


class LanceStore:
    """See `store.Store`."""

    def __init__(self, to: str, where: str, table: str) -> None:
        try:
            import lancedb
        except ImportError:
            raise missing_extra(to, "lancedb") from None
        self.to, self.name = to, table
        self.table: Any = None
        self.size: int | None = None
        with reaching(to):
            self.database = lancedb.connect(where)
            try:
                self.table = self.database.open_table(table)
            except ValueError as error:
                if "was not found" not in str(error):
                    raise
        if self.table is not None:
            found = self.table.schema
            if set(found.names) != set(COLUMNS) or not pa.types.is_fixed_size_list(found.field("vector").type):
                raise foreign(to)
            self.size = found.field("vector").type.list_size

    def known(self) -> dict[str, str]:
        if self.table is None:
            return {}
        with reaching(self.to):
            rows = self.table.search().select(["id", "fingerprint"]).limit(None).to_arrow()
        return dict(zip(rows["id"].to_pylist(), rows["fingerprint"].to_pylist()))

    def update(self, chunks: Iterable[pa.Table], changed: Sequence[str], gone: Sequence[str]) -> None:
        for chunk in chunks:
            with reaching(self.to):
                if self.table is None:
                    self.table = self.database.create_table(self.name, schema=chunk.schema)
                self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(chunk)
        with reaching(self.to):
            for at in range(0, len(gone), NAMES):
                self.table.delete(f"id IN ({', '.join(map(_quoted, gone[at : at + NAMES]))})")
            self.table.optimize()  # an index that there is takes the new rows in

    def close(self) -> None:
        pass


def _quoted(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"
