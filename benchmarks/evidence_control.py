"""What a text encoder that knows no purchases gives in the model's place: MiniLM's cosines beside transition counts.

A mixture of counts and any measure of similar texts beats counts alone. How much of a mixture's gain the trained model
is worth shows only beside this one, weighed on the same validation users.
"""

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calrec_lite.data.domain import Domain
from calrec_lite.data.transitions import Transitions
from calrec_lite.evaluate.baselines.minilm import MiniLMBaseline
from calrec_lite.measure.cases import Cases
from calrec_lite.measure.metrics import ndcg_at, ranks_from_lists
from calrec_lite.recipe import MiniLMSettings

COSINE = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0)
POPULARITY = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


class Mixed:
    """log transitions + `cosine` x MiniLM's cosine + `popularity` x log count, over the whole catalogue."""

    def __init__(self, domain: Domain, seed: int, options: MiniLMSettings, exclude_seen: bool) -> None:
        self.minilm = MiniLMBaseline(domain, seed, options, exclude_seen)
        self.transitions = Transitions.of(domain)
        self.counted = np.log1p(domain.train_counts())  # (N,)
        self.weights = (0.0, 0.0)

    def parts(self, histories: list[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Cosines and log transition scores, (U, N) each."""
        return self.minilm.cosines(histories), np.log(self.transitions.scores(histories) + Transitions.FLOOR)

    def lists(self, parts: Any, histories: list[NDArray[Any]], k: int, exclude_seen: bool) -> NDArray[np.int32]:
        cosine, followed = parts
        scores = followed + self.weights[0] * cosine + self.weights[1] * self.counted
        for row, history in zip(scores, histories, strict=True):
            row[history if exclude_seen else []] = -np.inf
        return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)

    def rank(self, histories: list[NDArray[Any]], k: int, exclude_seen: bool) -> NDArray[np.int32]:
        return self.lists(self.parts(histories), histories, k, exclude_seen)

    def tune(self, cases: Cases, exclude_seen: bool) -> float:
        """Take the weights of the highest NDCG@10 on validation users; returns that."""
        parts, tried = self.parts(cases.histories), {}
        for self.weights in product(COSINE, POPULARITY):
            ranks = ranks_from_lists(self.lists(parts, cases.histories, 10, exclude_seen), cases.targets)
            tried[self.weights] = float(ndcg_at(ranks, 10).mean())
        self.weights = max(tried, key=tried.__getitem__)
        return tried[self.weights]
