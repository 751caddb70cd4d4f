"""What a user buys again: how often the user bought an item, by how often it is bought again (docs/method.md, 8)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calrec_lite.data.domain import Domain
from calrec_lite.recommend.user_tower import History

DOUBT = 5  # purchases as of the mean item that each item is given beside its own


class Repeats:
    """Scores of the items that are in a history.

    Args:
        again: (N,) share of an item's purchases by users who had bought it before, divided by the mean share.
    """

    def __init__(self, again: NDArray[np.float32]) -> None:
        self.again = again

    @classmethod
    def of(cls, domain: Domain) -> "Repeats":
        """Counted on the domain's training part."""
        bought = domain.train_counts()  # (N,)
        first = np.zeros(len(bought), np.int64)
        for user in range(len(domain.sequences)):
            first[np.unique(domain.train_items(user))] += 1
        repeats = bought - first
        mean = repeats.sum() / max(1, bought.sum())
        share = (repeats + DOUBT * mean) / (bought + DOUBT)
        return cls((share / mean if mean else np.ones(len(bought))).astype(np.float32))

    def scores(self, histories: Sequence[History]) -> Tensor:
        """(U, N) log(1 + times the item stands in the history * again)."""
        n, scores = len(self.again), torch.zeros(len(histories), len(self.again))
        bought = [row * n + history.astype(np.int64) for row, history in enumerate(histories)]
        places, times = np.unique(np.concatenate([np.empty(0, np.int64), *bought]), return_counts=True)
        scores.view(-1)[torch.from_numpy(places)] = torch.from_numpy(np.log1p(times * self.again[places % n])).float()
        return scores
