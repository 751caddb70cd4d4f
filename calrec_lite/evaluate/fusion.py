"""The weight of the similarity in `strategy: rerank`, chosen on validation users (METHOD 6c)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calrec_lite.evaluate.metrics import Ranks, ndcg_at, ranks_from_lists, recall_at
from calrec_lite.evaluate.protocol import Cases
from calrec_lite.recommend.recommender import Recommender, batches

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
Parts = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]  # items, log-probabilities, cosines


@dataclass(frozen=True)
class Tried:
    """One weight on validation users."""

    fusion: float
    recall10: float
    ndcg10: float


def tune_fusion(recommender: Recommender, cases: Cases, exclude_seen: bool) -> list[Tried]:
    """What each of `WEIGHTS` gives on `cases`, the best NDCG@10 first, the smaller weight among equals.

    The model runs once: the weights only order the same candidates anew.

    Args:
        cases: of the validation split; a weight chosen on test users would be no result.
    """
    parts = _parts(recommender, cases, exclude_seen)
    tried = []
    for weight in WEIGHTS:
        ranks = np.array([_rank(*own, target, weight) for own, target in zip(parts, cases.targets, strict=True)])
        tried.append(Tried(weight, float(recall_at(ranks, 10).mean()), float(ndcg_at(ranks, 10).mean())))
    return sorted(tried, key=lambda t: (-t.ndcg10, t.fusion))


def _parts(recommender: Recommender, cases: Cases, exclude_seen: bool) -> list[Parts]:
    tokens = recommender.catalogue.tokens
    prompts = [recommender.encoder.prompt([tokens[i] for i in history]) for history in cases.histories]
    found: dict[int, Parts] = {}
    for users in batches(prompts, recommender.options.batch_tokens):
        allowed = np.ones((len(users), len(tokens)), np.bool_)
        for row, u in zip(allowed, users, strict=True):
            row[cases.histories[u]] = not exclude_seen
        found |= zip(users, recommender.strategies.rerank_parts([prompts[u] for u in users], allowed), strict=True)
    return [found[u] for u in range(len(prompts))]


def _rank(
    items: NDArray[np.int64], logp: NDArray[np.float64], cosine: NDArray[np.float64], target: int, weight: float
) -> float:
    order = np.lexsort((-cosine, -(logp + weight * cosine)))
    ranks: Ranks = ranks_from_lists(items[order][None], np.array([target]))
    return float(ranks[0])
