"""Chosen items of one user, each with all that `strategy: rerank` may weigh (docs/method.md, 6c)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """Items to be put in order; all arrays are (C,).

    Attributes:
        items: catalogue indices.
        logp: exact log-probability after the prompt.
        cosine: of v_U and v_T.
        followed: log of the transition score (`Transitions.FLOOR` added); zeros where there are no transitions.
        near: whether the item is among the closest; the others were added for their transitions alone.
    """

    items: np.ndarray
    logp: np.ndarray
    cosine: np.ndarray
    followed: np.ndarray
    near: np.ndarray

    def scores(self, fusion: float, transitions: float) -> np.ndarray:
        """(C,) `logp + fusion * cosine + transitions * followed`; without transitions -inf where not `near`."""
        scores = self.logp + fusion * self.cosine + transitions * self.followed
        return scores if transitions else np.where(self.near, scores, -np.inf)

    def best(self, fusion: float, transitions: float, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Places and scores of the first `k`; among equals the closer one."""
        scores = self.scores(fusion, transitions)
        order = np.lexsort((-self.cosine, -scores))[:k]
        order = order[scores[order] > -np.inf]
        return order, scores[order]
