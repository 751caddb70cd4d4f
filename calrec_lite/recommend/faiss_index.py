"""Approximate dense search for catalogues of millions, by FAISS (extra `[faiss]`)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from calrec_lite.errors import InputError
from calrec_lite.recommend.vectors import ItemVectors

FEW = 0.1  # below this share of allowed items a user is searched exactly
PROBED = 16  # one cluster of so many is searched


class FaissIndex:
    """Item vectors in 4 sqrt(N) clusters, of which the nearest sixteenth is searched for each user.

    Items that are not allowed are left out inside the search, so lists have their full length. Users with few allowed
    items, candidates of their own above all, are searched exactly.

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
        self.faiss: Any = faiss  # its stubs are those of the C++ classes, without the Python wrappers
        vectors = exact.vectors.cpu().numpy()
        clusters = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 40))  # FAISS wants 39 items to learn one
        self.index = faiss.index_factory(vectors.shape[1], f"IVF{clusters},Flat", faiss.METRIC_INNER_PRODUCT)
        self.index.train(vectors)
        self.index.add(vectors)
        self.probes = -(-clusters // PROBED)

    def search(self, users: Tensor, allowed: np.ndarray, n: int) -> tuple[Tensor, Tensor]:
        """As `ItemVectors.search`, but now and then without an item that lies in a cluster further away."""
        n = min(n, len(self.exact.vectors))
        found = [self._one(users[u : u + 1], allowed[u : u + 1], n) for u in range(len(users))]
        return torch.cat([items for items, _ in found]), torch.cat([cosine for _, cosine in found])

    def cosine(self, user: Tensor, items: np.ndarray) -> np.ndarray:
        """As `ItemVectors.cosine`."""
        return self.exact.cosine(user, items)

    def _one(self, user: Tensor, allowed: np.ndarray, n: int) -> tuple[Tensor, Tensor]:
        if allowed.mean() >= FEW:
            bits = np.packbits(allowed[0], bitorder="little")
            wanted = self.faiss.IDSelectorBitmap(bits)
            options = self.faiss.SearchParametersIVF(sel=wanted, nprobe=self.probes)
            cosine, items = self.index.search(user.cpu().numpy(), n, params=options)
            if (items >= 0).all():
                return torch.from_numpy(items).to(user.device), torch.from_numpy(cosine).to(user.device)
        return self.exact.search(user, allowed, n)
