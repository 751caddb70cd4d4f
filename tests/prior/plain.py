"""The prior of docs/method.md, 5b, one pair of events and one item at a time."""

from collections.abc import Sequence

import numpy as np

from calrec_lite.data.domain import Domain


def draw_histories(items: int, users: int, seed: int = 0) -> list[np.ndarray]:
    """Random ones; a user may take an item again."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, items, rng.integers(2, 9)) for _ in range(users)]


def plain_weights(
    histories: Sequence[np.ndarray], counts: np.ndarray, without: tuple[int, int] | None = None
) -> np.ndarray:
    """(N, N) what an item of a history (row) adds to each item's score (column).

    Args:
        without: a history and a place in it: of the pairs with what came before that event, nothing is added to it.
    """
    weights = np.zeros((len(counts), len(counts)))
    for u, items in enumerate(histories):
        for i, one in enumerate(items):
            for j in range(i + 1, min(i + 4, len(items))):
                other, left_out = items[j], without == (u, j)
                if not left_out:
                    weights[one, other] += max(1, counts[other]) ** -0.3
                if not (left_out and one == other):
                    weights[other, one] += 0.5 * max(1, counts[one]) ** -0.3
    return weights


def plain_prior(weights: np.ndarray, counts: np.ndarray, history: np.ndarray, share: float) -> np.ndarray:
    """(N,) p_u after a history, with `share` of the transitions."""
    popularity = (counts + 1) / (counts + 1).sum()
    scores = np.zeros(len(counts))
    for age, item in enumerate(history[::-1][:5]):
        scores += 0.6**age * weights[item]
    return (1 - share) * popularity + share * scores / scores.sum() if scores.sum() > 1e-9 else popularity


def trained(domain: Domain) -> list[np.ndarray]:
    """Each user's training part."""
    return [domain.train_items(u) for u in range(len(domain.sequences))]
