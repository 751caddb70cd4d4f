"""A user's prior over the whole trie, with what it promises below each edge: for searches."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from calrec_lite.prior.bias import UserBias
from calrec_lite.prior.collaborative import CollaborativePrior


@dataclass
class OwnBias(UserBias):
    """`UserBias` of all edges, and the most probable item below each.

    Attributes:
        largest: (L, n + 1) at [l, i] the largest probability of the 2^l items listed from i on (a sparse table).
    """

    largest: Tensor

    @classmethod
    def after(cls, prior: CollaborativePrior, histories: Sequence[np.ndarray]) -> "OwnBias":
        """Of users with these histories, on the CPU."""
        bias = UserBias.of(prior, histories)
        user, place = bias.key // bias.items, bias.key % bias.items
        by_popularity = bias.popularity[user] * torch.from_numpy(prior.popularity)[place]
        levels = [torch.cat([bias.running.diff() + by_popularity, bias.running.new_zeros(1)])]
        longest = int(torch.bincount(user, minlength=1).max())
        while (step := 2 ** len(levels)) <= longest:
            level = levels[-1].clone()
            torch.maximum(level[: -step // 2], levels[-1][step // 2 :], out=level[: -step // 2])
            levels.append(level)
        return cls(**{f.name: getattr(bias, f.name) for f in fields(bias)}, largest=torch.stack(levels))

    def promise(self, users: Tensor, edges: Tensor, share: Tensor) -> Tensor:
        """(C,) log of the largest share that an item has of what its user's prior gives to each edge.

        Args:
            users, edges: (C,). share: (C,) the same by popularity alone.
        """
        first, last = self.listed(users, edges)
        level = (torch.frexp((last - first).double()).exponent - 1).clamp(min=0).long()
        listed = torch.maximum(self.largest[level, first], self.largest[level, last - 2**level])
        listed = torch.where(last > first, listed, 0.0) / self.popular[edges]
        return (torch.maximum(listed, self.popularity[users] * share.exp()) / self.lift(users, edges)).log()
