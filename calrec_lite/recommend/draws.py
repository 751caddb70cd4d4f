"""Items that an engine drew for a user from the model's own distribution, and the list of them."""

from dataclasses import dataclass

import numpy as np

from calrec_lite.decode.ranked import Ranked


@dataclass(frozen=True)
class Draws:
    """What was drawn for a user.

    Attributes:
        items: (n,) catalogue indices, one more than once where it was drawn more than once.
        logprobs: (n,) log P of each among all items, at temperature 1.
    """

    items: np.ndarray
    logprobs: np.ndarray

    def ranked(self, k: int, allowed: np.ndarray, counts: np.ndarray) -> Ranked:
        """The `k` most probable of those drawn; where too few are `allowed` (N,), those trained on most often follow.

        Args:
            counts: (N,) how often each item was trained on.
        """
        items, first, times = np.unique(self.items, return_index=True, return_counts=True)
        some = np.flatnonzero(allowed[items])
        some = some[np.argsort(-self.logprobs[first[some]], kind="stable")][:k]
        why = [f"log-probability {self.logprobs[first[i]]:.2f}, drawn {times[i]} of {len(self.items)}" for i in some]
        others = allowed.copy()
        others[items] = False
        rest = np.flatnonzero(others)
        fill = rest[np.argsort(-counts[rest], kind="stable")][: k - len(some)]
        scores = np.concatenate([self.logprobs[first[some]], np.full(len(fill), -np.inf)])
        return Ranked(np.concatenate([items[some], fill]), scores, why + ["fill"] * len(fill))
