"""A Parquet file of item vectors, written anew as a whole whenever a row changes."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calrec_lite.claim import claimed_file
from calrec_lite.errors import InputError, RunError
from calrec_lite.files import atomic_path
from calrec_lite.stores.rows import COLUMNS
from calrec_lite.stores.store import foreign

ROWS = 1 << 14  # of a group


class ParquetStore:
    """See `store.Store`. Rows that stay keep their places, new ones and changed ones come last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size: int | None = None
        if path.exists():
            try:
                found = pq.read_schema(path)
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"--to {path}: cannot be read ({error}); remove it, or name another file") from None
            if tuple(found.names) != COLUMNS or not pa.types.is_fixed_size_list(found.field("vector").type):
                raise foreign(str(path))
            self.size = found.field("vector").type.list_size

    def known(self) -> dict[str, str]:
        if self.size is None:
            return {}
        try:
            table = pq.read_table(self.path, columns=["id", "fingerprint"])
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"--to {self.path}: damaged ({error}); remove it, and all is written anew") from None
        return dict(zip(table["id"].to_pylist(), table["fingerprint"].to_pylist()))

    def update(self, chunks: Iterable[pa.Table], changed: Sequence[str], gone: Sequence[str]) -> None:
        try:
            with claimed_file(self.path), atomic_path(self.path) as temporary:
                writer: pq.ParquetWriter | None = None
                for rows in chain(self._without({*changed, *gone}), chunks):
                    writer = writer or pq.ParquetWriter(temporary, rows.schema)
                    writer.write_table(rows, ROWS)
                if writer:
                    writer.close()
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"--to {self.path}: {error}; the same command does it anew") from error

    def _without(self, ids: Collection[str]) -> Iterator[pa.Table]:
        """The rows that stay."""
        if self.size is None:
            return
        left_out = pa.array(ids, pa.string())
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS):
                rows = pa.Table.from_batches([batch])
                yield rows.filter(pc.invert(pc.is_in(rows["id"], value_set=left_out)))

    def close(self) -> None:
        pass
