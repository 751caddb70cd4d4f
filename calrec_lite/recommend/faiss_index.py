"""Approximate dense search for catalogues of millions, by FAISS (extra `[faiss]`)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from calrec_lite.errors import InputError
from calrec_lite.recommend.vectors import ItemVectors

EXACT_BELOW = 0.1  # below this share of allowed items a user is searched exactly
CLUSTERS_PER_PROBE = 16  # one cluster of so many is searched


class FaissIndex:
    """Item vectors in 4 sqrt(N) clusters, of which the nearest sixteenth is searched for each user.

    Items that are not allowed are left out inside the search, so lists have their full length. Users with few allowed
    items (above all those with their own list of candidates) are searched exactly.

    Raises:
        InputError: if FAISS is not installed.
    """

    def __init__(self, exact: ItemVectors) -> None:
        try:
            import faiss
        except ImportError:
            raise InputError(
                "recommend.index: faiss needs the extra: pip install 'calrec-lite[faiss]'; or set it to exact"
            ) from None
        self.exact = exact
        self.faiss: Any = faiss  # its type stubs lack the Python wrappers of the C++ classes
        vectors = exact.vectors.cpu().numpy()
        clusters = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 40))  # FAISS wants 39 items to learn one
        self.index = faiss.index_factory(vectors.shape[1], f"IVF{clusters},Flat", faiss.METRIC_INNER_PRODUCT)
        self.index.train(vectors)
        self.index.add(vectors)
        self.probes = -(-clusters // CLUSTERS_PER_PROBE)

    def search(self, users: Tensor, allowed: np.ndarray, n: int) -> tuple[Tensor, Tensor]:
        """As `ItemVectors.search`, but now and then it misses an item of a cluster that is further away."""
        n = min(n, len(self.exact.vectors))
        results = [self._search_one(users[u : u + 1], allowed[u : u + 1], n) for u in range(len(users))]
        return torch.cat([items for items, _ in results]), torch.cat([cosine for _, cosine in results])

    def cosine(self, user: Tensor, items: np.ndarray) -> np.ndarray:
        """As `ItemVectors.cosine`."""
        return self.exact.cosine(user, items)

    def _search_one(self, user: Tensor, allowed: np.ndarray, n: int) -> tuple[Tensor, Tensor]:
        if allowed.mean() >= EXACT_BELOW:
            bits = np.packbits(allowed[0], bitorder="little")
            selector = self.faiss.IDSelectorBitmap(bits)
            options = self.faiss.SearchParametersIVF(sel=selector, nprobe=self.probes)
            cosine, items = self.index.search(user.cpu().numpy(), n, params=options)
            if (items >= 0).all():
                return torch.from_numpy(items).to(user.device), torch.from_numpy(cosine).to(user.device)
        return self.exact.search(user, allowed, n)
