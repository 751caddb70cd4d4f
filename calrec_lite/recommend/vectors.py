"""Dense retrieval v_U -> v_T: the catalogue's item vectors, computed once and kept, and exact search in them."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from calrec_lite.claim import claimed_file
from calrec_lite.files import atomic_path, cache_folder
from calrec_lite.method.batch import ItemChunk, item_chunk

if TYPE_CHECKING:  # it loads PEFT, which takes seconds
    from calrec_lite.method.towers import Towers

CHUNK_TOKENS = 4096  # of item texts encoded at once
CHUNK_ITEMS = 1 << 18  # items compared at once
MODELS = 16  # whose vectors are kept, the latest used
EARLY = 7  # the layer at so much of the depth: 4 of 30
SAMPLED = 4096  # elements of each weight that enter the model's fingerprint


def model_fingerprint(towers: "Towers") -> str:
    """SHA-256 (hex) over every weight's name, shape and 4,096 of its elements, evenly spread.

    Training and merging change nearly every element of a weight, so another model has another fingerprint, and the
    weights in memory decide, wherever they came from.
    """
    digest = hashlib.sha256()
    for name, weight in (*towers.decoder.named_parameters(), ("head", towers.head)):
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ItemVectors:
    """v_T of every item of a catalogue.

    Attributes:
        vectors: (N, D) unit vectors in fp32, on the model's device.
        encoded: how many of them had to be computed.
    """

    vectors: Tensor
    encoded: int = 0

    @classmethod
    def of(
        cls, towers: "Towers", tokens: Sequence[np.ndarray], start: int, pad: int, progress: bool = False
    ) -> "ItemVectors":
        """Computed, or read where they were computed before.

        Vectors lie in the user's cache folder, in one file a model, each under the hash of its item's tokens: a
        changed model finds none of them, a new or changed item is encoded and added, and everything else is read.

        Args:
            towers: the model.
            tokens: ids of each item's text.
            start, pad: ids of the first token and of padding.
            progress: show a bar while encoding.
        """
        vectors, new = _cached("vectors", towers, tokens, start, partial(encode_items, pad=pad, progress=progress))
        return cls(vectors.to(towers.head.device), new)

    def search(self, users: Tensor, allowed: np.ndarray, n: int) -> tuple[Tensor, Tensor]:
        """The `n` allowed items closest to each user, best first: indices and cosines, both (U, n).

        Exact. Where fewer are allowed the rest has cosine -inf.

        Args:
            users: (U, D) unit vectors. allowed: (U, N).
        """
        n = min(n, len(self.vectors))
        best = users.new_full((len(users), 0), -torch.inf)
        items = torch.zeros(len(users), 0, dtype=torch.long, device=users.device)
        for at in range(0, len(self.vectors), CHUNK_ITEMS):
            cosine = users @ self.vectors[at : at + CHUNK_ITEMS].T  # (U, chunk)
            open_ = torch.from_numpy(allowed[:, at : at + CHUNK_ITEMS]).to(users.device)
            top, place = cosine.masked_fill(~open_, -torch.inf).topk(min(n, cosine.shape[1]), 1)
            best, items = torch.cat([best, top], 1), torch.cat([items, place + at], 1)
        best, place = best.topk(n, 1)
        return items.gather(1, place), best

    def cosine(self, user: Tensor, items: np.ndarray) -> np.ndarray:
        """(n,) cosines of one user's (D,) unit vector and chosen items."""
        return (self.vectors[torch.from_numpy(items).to(user.device)] @ user).cpu().numpy()


def text_vectors(
    towers: "Towers", tokens: Sequence[np.ndarray], start: int, pad: int, progress: bool = False
) -> Tensor:
    """(N, 2, D) unit vectors of item texts by `encode_texts`; arguments and cache as of `ItemVectors.of`."""
    return _cached("texts", towers, tokens, start, partial(encode_texts, pad=pad, progress=progress))[0]


def without_start(means: np.ndarray, lengths: np.ndarray, first: np.ndarray) -> np.ndarray:
    """(B, D) unit vectors of texts from the means of all their states, which count the start token's.

    That state is the same of every text, as nothing stands before it: the sum without it is length * mean - first.

    Args:
        means: (B, D). lengths: (B,) tokens, the start token included. first: (D,) the start token's state.
    """
    sums = lengths[:, None] * means.astype(np.float64) - first.astype(np.float64)
    return np.asarray((sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32))


def encode_items(
    towers: "Towers", tokens: Sequence[np.ndarray], start: int, pad: int, progress: bool = False
) -> Tensor:
    """(N, D) v_T of item texts, those of similar length together."""
    return _encode(towers, tokens, start, pad, progress, towers.items)


def encode_texts(
    towers: "Towers", tokens: Sequence[np.ndarray], start: int, pad: int, progress: bool = False
) -> Tensor:
    """(N, 2, D) unit vectors of item texts: v_T, and the same mean of an early layer's states.

    The early layer knows the words, the last one what they are about: for whitened vectors both together are better
    than either (docs/method.md, 8).
    """

    def both(chunk: ItemChunk) -> Tensor:
        with torch.autocast(chunk.ids.device.type, torch.bfloat16, enabled=towers.autocast):
            states = towers.decoder(input_ids=chunk.ids, use_cache=False, output_hidden_states=True).hidden_states
        early = max(1, round((len(states) - 1) / EARLY))
        return torch.stack([towers.pooled(states[layer], chunk.ends) for layer in (-1, early)], 1)

    return _encode(towers, tokens, start, pad, progress, both)


@torch.no_grad()
def _encode(
    towers: "Towers",
    tokens: Sequence[np.ndarray],
    start: int,
    pad: int,
    progress: bool,
    vectors_of: Callable[[ItemChunk], Tensor],
) -> Tensor:
    """(N, ...) of all texts from those of a chunk, (M, ...)."""
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    device = towers.head.device
    vectors = torch.empty(0)
    at = 0
    with tqdm(total=len(order), desc="item vectors", unit="item", leave=False, disable=not progress) as bar:
        while at < len(order):
            size = max(1, CHUNK_TOKENS // (1 + len(tokens[order[min(at + 64, len(order) - 1)]])))
            part = order[at : at + size]
            encoded = vectors_of(item_chunk([tokens[i] for i in part], start, pad).to(device))
            if not at:
                vectors = encoded.new_zeros(len(tokens), *encoded.shape[1:])
            vectors[part] = encoded
            at += size
            bar.update(len(part))
    return vectors


def _cached(
    kind: str, towers: "Towers", tokens: Sequence[np.ndarray], start: int, encode: Callable[..., Tensor]
) -> tuple[Tensor, int]:
    """(N, ...) vectors on the CPU, computed where they are not in the cache's folder `kind`; and how many were."""
    file = cache_folder() / kind / f"{model_fingerprint(towers)}.safetensors"
    known, stored = _read(file)
    names = [hashlib.sha256(np.array([start, *t], np.int64).tobytes()).digest()[:16] for t in tokens]
    new: list[int] = []
    if not known.keys() >= set(names):
        with claimed_file(file, wait=True):
            known, stored = _read(file)  # anew: another process may just have made them
            new = [i for i, name in enumerate(names) if name not in known]
            if new:
                fresh = encode(towers, [tokens[i] for i in new], start).cpu()
                stored = torch.cat([stored, fresh]) if len(known) else fresh
                known |= {names[i]: at for at, i in enumerate(new, len(known))}
                _write(file, known, stored)
    return stored[torch.tensor([known[name] for name in names])], len(new)


def _read(file: Path) -> tuple[dict[bytes, int], Tensor]:
    try:
        found = load_file(file)
        with suppress(OSError):  # a cache that may not be written to
            os.utime(file)  # used now
        names = found["names"].numpy()  # (M, 16) bytes
        return {row.tobytes(): at for at, row in enumerate(names)}, found["vectors"]
    except (OSError, KeyError, SafetensorError):  # not there, or damaged: made anew
        return {}, torch.empty(0)


def _write(file: Path, known: dict[bytes, int], vectors: Tensor) -> None:
    names = torch.from_numpy(np.frombuffer(b"".join(known), np.uint8).reshape(-1, 16).copy())
    with atomic_path(file) as temporary:
        save_file({"names": names, "vectors": vectors.contiguous()}, temporary)
    with suppress(OSError):  # another process may remove the same ones
        by_use = sorted(file.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in by_use[MODELS:]:
            old.unlink()
