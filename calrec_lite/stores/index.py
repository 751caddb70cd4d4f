"""An export's items into a store: only what is new or changed is encoded and written, what is gone is removed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from calrec_lite.errors import InputError
from calrec_lite.model.device import dtype_here
from calrec_lite.package.layout import locate
from calrec_lite.recommend.recommender import Recommender
from calrec_lite.recommend.vectors import ItemVectors, model_fingerprint
from calrec_lite.stores.rows import Changes, fingerprints_of, item_rows
from calrec_lite.stores.store import Store
from calrec_lite.text.encoding import Tokens

Encode = Callable[[Sequence[Tokens]], np.ndarray]  # item texts -> (N, D) v_T

CHUNK = 1 << 16  # items encoded and written together: what a stopped command has to do again
MOST_CHUNKS = 16  # the cache of vectors is written as a whole after each


def index_items(source: str | Path, store: Store, to: str, quantised: bool = False, by_vllm: bool = False) -> Changes:
    """Bring a store to what an export's catalogue and model are now. Stopped, the same call goes on.

    Args:
        source: an export's folder or Hub id. to: the store's name in messages.
        quantised: encode with a model in 4 bits. by_vllm: encode with vLLM.

    Raises:
        InputError: it is no export, or the store has vectors of another length, or of other items only.
        RunError: the store fails.
    """
    known = store.known()
    recommender = _opened(source, quantised, by_vllm)
    towers, ids = recommender.strategies.towers, recommender.ids
    size = int(towers.head.shape[1])
    if store.size not in (None, size):
        raise InputError(f"--to {to}: its vectors have {store.size} numbers, this model's {size}; name another table")
    if known and not known.keys() & set(ids):
        raise InputError(f"--to {to}: has {len(known):,} items, none of this catalogue; name another table")
    model = model_fingerprint(towers)
    changes = Changes.between(known, ids, fingerprints_of(recommender, model))
    if changes.to_write or changes.gone:
        encode = _by_vllm(source, recommender) if by_vllm and changes.to_write else _by_towers(recommender)
        chunks = _chunks(recommender, model, changes.to_write, encode)
        store.update(chunks, [ids[i] for i in changes.changed], changes.gone)
    return changes


def _opened(source: str | Path, quantised: bool, by_vllm: bool) -> Recommender:
    """With vLLM the model is on the CPU, in the number type of the GPU: its fingerprint is all that is wanted."""
    if not by_vllm:
        return Recommender.from_pretrained(source, quantised, strategy="dense")
    dtype = dtype_here(locate(source)).dtype
    return Recommender.from_pretrained(source, strategy="dense", dtype=dtype, device="cpu")


def _by_towers(made: Recommender) -> Encode:
    def encode(tokens: Sequence[Tokens]) -> np.ndarray:
        start = int(made.encoder.start[0])
        vectors = ItemVectors.of(made.strategies.towers, tokens, start, made.encoder.pad, progress=True).vectors
        return np.asarray(vectors.cpu().numpy())

    return encode


def _by_vllm(source: str | Path, made: Recommender) -> Encode:
    from calrec_lite.recommend.vllm_vectors import PooledVectors

    return PooledVectors(source, made.strategies.towers.head.dtype).items


def _chunks(made: Recommender, model: str, items: Sequence[int], encode: Encode) -> Iterator[pa.Table]:
    """Rows of some items, encoded when they are asked for."""
    step = max(CHUNK, -(-len(items) // MOST_CHUNKS))
    for at in range(0, len(items), step):
        some = items[at : at + step]
        yield item_rows(made, model, some, encode([made.catalogue.tokens[i] for i in some]))
