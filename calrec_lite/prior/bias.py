"""A user's prior as tensors: what it adds to the logits of a trie's edges, beyond their popularity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calrec_lite.model.on_device import OnDevice
from calrec_lite.prior.collaborative import CollaborativePrior


@dataclass
class UserBias(OnDevice):
    """What each user's own transitions add to the logits of E edges, where popularity was added to all alike.

    The items with transitions stand in the trie's order, and those below an edge side by side. So their shares are
    summed once, as they stand, and what lies below an edge is a difference of two of these sums: nothing of the size
    users x items, or users x edges, exists.

    Attributes:
        strength: of the logarithm (`loss.prior`).
        items: N.
        popular: (E,) the share of all counts below each edge.
        begin, end: (E,) where in the trie's order the items below it begin and end.
        popularity: (U,) its weight in each user's prior.
        key: (n,) ascending: user * N + place in the trie's order, of each item with transitions.
        running: (n + 1,) the sum of the shares of those before it.
    """

    strength: float
    items: int
    popular: Tensor
    begin: Tensor
    end: Tensor
    popularity: Tensor
    key: Tensor
    running: Tensor

    @classmethod
    def of(
        cls,
        prior: CollaborativePrior,
        histories: Sequence[np.ndarray],
        targets: np.ndarray | None = None,
        edges: np.ndarray | None = None,
    ) -> "UserBias":
        """Of users with these histories, on the CPU; arguments as `CollaborativePrior.mixture`'s.

        Args:
            edges: (E,) that are asked for; None: all.
        """
        mixture = prior.mixture(histories, targets)
        begin, end = prior.trie.begin, prior.trie.end
        if edges is not None:
            begin, end = begin[edges], end[edges]
        below = np.concatenate([[0.0], np.cumsum(prior.popularity)])
        running = np.concatenate([[0.0], np.cumsum(mixture.share)])
        arrays = (below[end] - below[begin], begin, end, mixture.popularity, mixture.key, running)
        return cls(prior.strength, prior.trie.n_items, *map(torch.from_numpy, arrays))

    def __call__(self, users: Tensor, edges: Tensor) -> Tensor:
        """(C,) what is added to the logit of each edge for its user, in fp32; `users`, `edges` (C,)."""
        return (self.strength * self.lift(users, edges).log()).float()

    def lift(self, users: Tensor, edges: Tensor) -> Tensor:
        """(C,) how many times as probable as by popularity alone the items below each edge are to its user."""
        first, last = self.listed(users, edges)
        return self.popularity[users] + (self.running[last] - self.running[first]) / self.popular[edges]

    def listed(self, users: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """(C,), (C,) where in `key` the user's items below each edge begin and end."""
        first, last = (
            torch.searchsorted(self.key, users * self.items + ends[edges]) for ends in (self.begin, self.end)
        )
        return first, last
