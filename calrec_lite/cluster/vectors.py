"""`index --engine ray`: a catalogue's item vectors as a folder of Parquet files, each a part of the items in order."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from calrec_lite.cluster.parts import ALONE
from calrec_lite.cluster.ray_engine import Actor, Job, by_ray
from calrec_lite.recommend.vectors import encode_items, model_fingerprint
from calrec_lite.stores.rows import item_rows

LARGEST = 1 << 18  # items of a part: 600 MB of vectors of 576 numbers


@dataclass(frozen=True)
class Items:
    """A stretch of the catalogue's items."""

    first: int
    end: int
    name: str

    def __str__(self) -> str:
        return f"items {self.first:,} to {self.end:,}"


class ItemEncoder(Actor):
    """Encodes the items of a part. It keeps no cache of vectors: processes of one machine would wait for each other."""

    def do(self, part: Items, work: Path) -> Mapping[str, Any]:
        made, encoder = self.recommender, self.recommender.encoder
        items = range(part.first, part.end)
        tokens = [made.catalogue.tokens[i] for i in items]
        vectors = encode_items(made.strategies.towers, tokens, int(encoder.start[0]), encoder.pad)
        file = work / f"{part.name}.parquet"
        pq.write_table(item_rows(made, self._model, items, vectors.cpu().numpy()), file)
        self.place.put(file, file.name)
        return {"items": len(items)}

    @cached_property
    def _model(self) -> str:
        return model_fingerprint(self.recommender.strategies.towers)


def parts_of_items(items: int, count: int | None) -> list[Items]:
    """So many stretches of about the same length, or more where they would be too long; none is empty. Default: 16."""
    count = min(items, max(count or ALONE, -(-items // LARGEST)))
    cuts = [items * part // count for part in range(count + 1)]
    return [Items(*cut, f"part-{n:05d}-of-{count:05d}") for n, cut in enumerate(pairwise(cuts), 1)]


def index_by_ray(
    job: Job,
    items: int,
    workers: int | None = None,
    address: str | None = None,
    parts: int | None = None,
    progress: bool = True,
) -> None:
    """Encode the parts that are left of so many items.

    Args:
        workers, address: as of `by_ray`. parts: default: 16.

    Raises:
        InputError, RunError: as `by_ray`.
    """
    by_ray(ItemEncoder, replace(job, parts=parts_of_items(items, parts)), workers, address, progress)
