"""Ranks of targets, the field's metrics of one target per user, and bootstrap intervals over users.

A rank is 1-based; `inf` stands for a target that is not in the list. With one target per user, Recall@K equals Hit@K
and NDCG@K is 1 / log2(rank + 1) (docs/method.md, 7).
"""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.float64]
Copies = NDArray[np.int64]

METRICS = ("recall@1", "recall@10", "ndcg@10", "mrr")
MRR_CUT = 10  # the default; a protocol may say otherwise
CELLS = 4_000_000  # numbers of one temporary matrix: about 32 MB of float64


class Interval(TypedDict):
    """A mean over users and its 95% percentile bootstrap interval."""

    value: float
    low: float
    high: float


class Difference(TypedDict):
    """A mean difference over users, its 95% interval and the two-sided bootstrap p-value."""

    difference: float
    low: float
    high: float
    p: float


def ranks_from_lists(
    lists: NDArray[np.integer[Any]],
    targets: NDArray[np.integer[Any]],
    copies: NDArray[np.integer[Any]] | None = None,
) -> Ranks:
    """Rank of each user's target in the user's list, (U,).

    Args:
        lists: distinct item indices, best first, -1 where a list has ended, (U, K).
        targets: item indices, (U,).
        copies: how many original items each item stands for, (N,). All copies of the items before the target count,
            of the target's copies only one, so this is the best rank that the target can have (see `summarise`).
    """
    hits = lists == targets[:, None]  # (U, K)
    if not hits.size:
        return np.full(len(targets), np.inf)
    position = hits.argmax(axis=1)  # (U,)
    ahead = position
    if copies is not None:
        before = np.cumsum(np.where(lists >= 0, copies[lists], 0), axis=1) - copies[lists]  # (U, K)
        ahead = np.take_along_axis(before, position[:, None], axis=1)[:, 0]
    return np.where(hits.any(axis=1), ahead + 1.0, np.inf)


def ranks_from_scores(
    scores: NDArray[np.floating[Any]],
    targets: NDArray[np.integer[Any]],
    excluded: NDArray[np.bool_] | Sequence[NDArray[np.integer[Any]]] | None = None,
) -> Ranks:
    """Rank of each user's target among all items that are not excluded, (U,).

    Ties never help the target: every other item that does not score below it stands ahead of it, NaN scores too.

    Args:
        scores: higher is better, (U, N). For many users call it chunk by chunk.
        targets: item indices, (U,).
        excluded: items that may not be recommended: a mask (U, N), or one array of indices per user. A target that is
            itself excluded has rank inf.
    """
    users = np.arange(len(targets))
    # (U, N); holds the target itself, which makes ranks 1-based.
    ahead: NDArray[np.bool_] = ~(scores < scores[users, targets][:, None])
    if excluded is None:
        return np.asarray(ahead.sum(axis=1), dtype=np.float64)
    mask = excluded if isinstance(excluded, np.ndarray) else _exclusion_mask(excluded, scores.shape[1])
    ranks = np.asarray((ahead & ~mask).sum(axis=1), dtype=np.float64)
    return np.where(mask[users, targets], np.inf, ranks)


def ranks_in_chunks(
    score: Callable[[slice], NDArray[np.floating[Any]]],
    targets: NDArray[np.integer[Any]],
    n_items: int,
    excluded: Sequence[NDArray[np.integer[Any]]] | None = None,
) -> Ranks:
    """`ranks_from_scores` of any number of users in the memory of a few, (U,).

    Args:
        score: scores of all items for a slice of the users, (u, n_items).
        targets: item indices, (U,).
        excluded: for each user, indices of the items that may not be recommended.
    """
    step = max(1, CELLS // n_items)
    chunks = [slice(start, min(start + step, len(targets))) for start in range(0, len(targets), step)]
    ranks = [ranks_from_scores(score(chunk), targets[chunk], excluded and excluded[chunk]) for chunk in chunks]
    return np.concatenate([*ranks, np.empty(0)])


def recall_at(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """1 where the target is among the first k, else 0, (U,)."""
    return (ranks <= k).astype(np.float64)


def ndcg_at(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """1 / log2(rank + 1) where the target is among the first k, else 0, (U,)."""
    return np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)


def reciprocal_rank(ranks: Ranks, cut: int) -> NDArray[np.float64]:
    """1 / rank where the target is among the first `cut`, else 0, (U,)."""
    return np.where(ranks <= cut, 1 / ranks, 0.0)


def summarise(
    ranks: Ranks, bootstrap: int, seed: int, mrr_cut: int = MRR_CUT, copies: Copies | None = None
) -> dict[str, Interval]:
    """Each metric's mean over users with a 95% percentile interval of `bootstrap` resamples of the users.

    Args:
        ranks: (U,), or (R, U) of R repetitions: a user then counts with the mean of the repetitions.
        copies: how many items have the target's text, itself included, (U,). They stand in the list one after the
            other in random order: `ranks` are then the best possible ones, and a metric is its mean over such orders
            (the expected-rank credit of collision-aware metrics, which neither helps nor harms the target).

    Raises:
        ValueError: there is no user.
    """
    values = _per_user(ranks, mrr_cut, copies)
    low, high = np.quantile(_resampled_means(values, bootstrap, seed), [0.025, 0.975], axis=0)
    means = values.mean(axis=0)
    return {
        name: Interval(value=float(means[m]), low=float(low[m]), high=float(high[m])) for m, name in enumerate(METRICS)
    }


def paired_bootstrap(
    ranks_a: Ranks, ranks_b: Ranks, bootstrap: int, seed: int, mrr_cut: int = MRR_CUT, copies: Copies | None = None
) -> dict[str, Difference]:
    """Each metric of system b minus that of system a, on the same users in the same order; arguments as `summarise`'s.

    p is twice the share of resamples on that side of zero where fewer are (those at zero count on both sides), with one
    resample added so that it is never 0. Exchanging a and b changes the sign of the difference and nothing else.

    Raises:
        ValueError: there is no user, or the two have different numbers of users.
    """
    if ranks_a.shape[-1] != ranks_b.shape[-1]:
        raise ValueError(f"a paired test needs the same users: {ranks_a.shape[-1]} and {ranks_b.shape[-1]} given")
    values = _per_user(ranks_b, mrr_cut, copies) - _per_user(ranks_a, mrr_cut, copies)
    means = values.mean(axis=0)
    resampled = _resampled_means(values, bootstrap, seed)  # (B, M)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    tail = np.minimum((resampled <= 0).sum(axis=0), (resampled >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * (tail + 1) / (bootstrap + 1))
    return {
        name: Difference(difference=float(means[m]), low=float(low[m]), high=float(high[m]), p=float(p[m]))
        for m, name in enumerate(METRICS)
    }


def _per_user(ranks: Ranks, mrr_cut: int, copies: Copies | None) -> NDArray[np.float64]:
    if not ranks.size:
        raise ValueError("no user to take a mean over")
    runs = np.atleast_2d(ranks)  # (R, U)
    columns = []
    for metric, cut in ((recall_at, 1), (recall_at, 10), (ndcg_at, 10), (reciprocal_rank, mrr_cut)):
        column = metric(runs, cut) if copies is None else _expected_metric(metric, cut, runs, copies)  # (R, U)
        columns.append(column.mean(axis=0))
    return np.stack(columns, axis=1)  # (U, M)


def _expected_metric(
    metric: Callable[[Ranks, int], NDArray[np.float64]], cut: int, ranks: Ranks, copies: Copies
) -> NDArray[np.float64]:
    """Mean of a metric over the ranks from `ranks` to `ranks + copies - 1`, of the shape of `ranks`."""
    gains = np.concatenate([[0.0], np.cumsum(metric(np.arange(1.0, cut + 1), cut))])  # [n]: of the ranks up to n
    first, end = (np.minimum(rank, cut).astype(np.int64) for rank in (ranks - 1, ranks - 1 + copies))
    return np.asarray((gains[end] - gains[first]) / copies)


def _resampled_means(values: NDArray[np.float64], bootstrap: int, seed: int) -> NDArray[np.float64]:
    """Means of `bootstrap` resamples of the rows of `values` (U, M) -> (B, M)."""
    # Many users have equal rows (with lists of 10 only 11 rows are possible), and how often each distinct row is drawn
    # is multinomial: the exact bootstrap at the cost of a few columns. Distinct rows are taken in the order of their
    # first user, which a change of sign does not alter: this makes the paired test symmetric.
    _, first, counts = np.unique(values, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    rows, shares = values[first[order]], counts[order] / len(values)  # (G, M), (G,)
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // len(rows))
    draws = [min(step, bootstrap - drawn) for drawn in range(0, bootstrap, step)]
    return np.concatenate([rng.multinomial(len(values), shares, size=n) @ rows for n in draws]) / len(values)


def _exclusion_mask(excluded: Sequence[NDArray[np.integer[Any]]], n_items: int) -> NDArray[np.bool_]:
    mask = np.zeros((len(excluded), n_items), dtype=np.bool_)
    rows = np.repeat(np.arange(len(excluded)), [len(items) for items in excluded])
    mask[rows, np.concatenate([*excluded, np.empty(0, dtype=np.int64)]).astype(np.int64)] = True
    return mask
