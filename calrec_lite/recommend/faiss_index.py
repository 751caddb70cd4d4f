"""Approximate dense search for catalogues of millions, by FAISS (extra `[faiss]`)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from calrec_lite.errors import InputError
from calrec_lite.recommend.vectors import ItemVectors

EXACT_BELOW = 0.1  # below this share of allowed items a user is searched exactly
CLUSTERS_PER_PROBE = 16  # one cluster of so many is searched
APART = 1024  # items of others that one user may not get, at most, for all to be searched together


class FaissIndex:
    """Item vectors in 4 sqrt(N) clusters, of which the nearest sixteenth is searched for each user.

    Users are searched together among the items that any of them may get, for as many more as one of them may not, so
    that lists have their full length. Users with few allowed items (above all those with their own list of candidates)
    are searched exactly.

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
        items = torch.zeros(len(users), n, dtype=torch.long, device=users.device)
        cosine = users.new_full((len(users), n), -torch.inf)
        counts = np.array([np.count_nonzero(row) for row in allowed])  # faster than a sum over the rows
        rest = counts < EXACT_BELOW * allowed.shape[1]
        for together in _alike(np.flatnonzero(~rest), allowed, counts):
            found, near, full = self._search_together(users[together], allowed[together], counts[together], n)
            items[together], cosine[together] = found.to(users.device), near.to(users.device)
            rest[together] = ~full
        if rest.any():
            items[rest], cosine[rest] = self.exact.search(users[rest], allowed[rest], n)
        return items, cosine

    def cosine(self, user: Tensor, items: np.ndarray) -> np.ndarray:
        """As `ItemVectors.cosine`."""
        return self.exact.cosine(user, items)

    def _search_together(
        self, users: Tensor, allowed: np.ndarray, counts: np.ndarray, n: int
    ) -> tuple[Tensor, Tensor, np.ndarray]:
        """One search for users (U, D) of much the same `allowed` items: (U, n) each; (U,) whether all n were found."""
        anyone = np.logical_or.reduce(allowed, 0)
        more = int(np.count_nonzero(anyone) - counts.min())
        selector = self.faiss.IDSelectorBitmap(np.packbits(anyone, bitorder="little"))
        options = self.faiss.SearchParametersIVF(sel=selector, nprobe=self.probes)
        cosine, items = self.index.search(users.cpu().numpy(), min(n + more, len(anyone)), params=options)
        own = (items >= 0) & np.take_along_axis(allowed, items.clip(0), 1)
        best = np.argsort(~own, 1, kind="stable")[:, :n]  # they come best first
        found, near = (torch.from_numpy(np.take_along_axis(values, best, 1)) for values in (items, cosine))
        return found, near, own.sum(1) >= n


def _alike(users: np.ndarray, allowed: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """The users in parts that are searched together: all who may get nearly what any may, and each other one alone.

    Args:
        users: (u,) of U. allowed: (U, N). counts: (U,) how many they may get.
    """
    near = counts[users] + APART >= np.count_nonzero(allowed[users].any(0))
    return [part for part in (users[near], *users[~near, None]) if len(part)]
