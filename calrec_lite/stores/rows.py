"""What a store holds of an item, and which items' rows are new, changed or gone."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from calrec_lite.recommend.recommender import Recommender

COLUMNS = ("id", "title", "text", "vector", "model", "fingerprint")


def schema(size: int) -> pa.Schema:
    """Columns of a store of vectors of this length."""
    texts = {name: pa.string() for name in COLUMNS}
    return pa.schema({**texts, "vector": pa.list_(pa.float32(), size)})


def item_fingerprint(model: str, title: str, text: str, tokens: np.ndarray) -> str:
    """32 hex digits that change with the model, with what it reads of an item, and with what is stored beside it."""
    digest = hashlib.sha256(f"{model}\n{title}\n{text}\n".encode())
    digest.update(tokens.astype(np.int64).tobytes())
    return digest.hexdigest()[:32]


def fingerprints_of(made: Recommender, model: str, items: Sequence[int] | None = None) -> list[str]:
    """`item_fingerprint` of some items of a recommender, or of all; `model` is the model's."""
    catalogue = made.catalogue
    every = range(len(catalogue)) if items is None else items
    return [item_fingerprint(model, catalogue.titles[i], catalogue.texts[i], catalogue.tokens[i]) for i in every]


def item_rows(made: Recommender, model: str, items: Sequence[int], vectors: np.ndarray) -> pa.Table:
    """The rows of some items of a recommender; `vectors` are theirs, `model` the model's fingerprint."""
    catalogue, size = made.catalogue, vectors.shape[1]
    columns = {
        "id": [made.ids[i] for i in items],
        "title": [catalogue.titles[i] for i in items],
        "text": [catalogue.texts[i] for i in items],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), size),
        "model": [model] * len(items),
        "fingerprint": fingerprints_of(made, model, items),
    }
    return pa.table(columns, schema=schema(size))


@dataclass(frozen=True)
class Changes:
    """From what a store holds to a catalogue.

    Attributes:
        new, changed: indices of items in the catalogue. gone: ids in the store.
        same: how many rows stay as they are.
    """

    new: list[int]
    changed: list[int]
    gone: list[str]
    same: int

    @classmethod
    def between(cls, known: Mapping[str, str], ids: Sequence[str], fingerprints: Iterable[str]) -> "Changes":
        """Of a store's id -> fingerprint, and a catalogue's."""
        new, changed = [], []
        for i, (item, fingerprint) in enumerate(zip(ids, fingerprints, strict=True)):
            if item not in known:
                new.append(i)
            elif known[item] != fingerprint:
                changed.append(i)
        there = set(ids)
        gone = [item for item in known if item not in there]
        return cls(new, changed, gone, len(ids) - len(new) - len(changed))

    @property
    def to_write(self) -> list[int]:
        """Items whose rows are written, in the catalogue's order."""
        return sorted([*self.new, *self.changed])
