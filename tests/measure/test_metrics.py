"""Metrics against closed forms, an independent library, and what a bootstrap must do."""

import tracemalloc
from itertools import permutations

import numpy as np
import pytest

from calrec_lite.measure.metrics import (
    METRICS,
    ndcg_at,
    paired_bootstrap,
    ranks_from_lists,
    ranks_from_scores,
    ranks_in_chunks,
    recall_at,
    reciprocal_rank,
    summarise,
)

TOY = np.array([1, 2, 5, 10, np.inf, 3])
TOY_MEANS = {"recall@1": 0.166667, "recall@10": 0.833333, "ndcg@10": 0.467808, "mrr": 0.355556}


def lists_with(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """Lists in which target 0 stands at the given ranks, (U, k)."""
    lists = np.tile(np.arange(1, k + 1), (len(ranks), 1))
    for row, rank in zip(lists, ranks, strict=True):
        if rank <= k:
            row[int(rank) - 1] = 0
    return lists


def test_toy_means() -> None:
    ranks = ranks_from_lists(lists_with(TOY), np.zeros(6, dtype=int))
    np.testing.assert_array_equal(ranks, TOY)
    metrics = summarise(ranks, bootstrap=100, seed=0)
    assert tuple(metrics) == METRICS == tuple(TOY_MEANS)
    for name, mean in TOY_MEANS.items():
        assert metrics[name]["value"] == pytest.approx(mean, abs=5e-7)


def test_ranks_beyond_the_cut_count_nothing() -> None:
    ranks = np.array([10.0, 11.0, np.inf])
    np.testing.assert_array_equal(recall_at(ranks, 10), [1, 0, 0])
    np.testing.assert_allclose(ndcg_at(ranks, 10), [1 / np.log2(11), 0, 0])
    np.testing.assert_allclose(reciprocal_rank(ranks, 10), [0.1, 0, 0])
    assert summarise(np.array([4.0]), 10, 0, mrr_cut=3)["mrr"]["value"] == 0


def test_a_padded_or_empty_list_holds_no_target() -> None:
    np.testing.assert_array_equal(ranks_from_lists(np.array([[3, -1], [-1, -1]]), np.array([3, 3])), [1, np.inf])
    np.testing.assert_array_equal(ranks_from_lists(np.empty((2, 0), dtype=int), np.array([0, 1])), [np.inf, np.inf])


def test_random_lists_recall_k_of_n() -> None:
    n_users, n_items = 20_000, 40
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(n_items, dtype=float), (n_users, 1)), axis=1)
    targets = rng.integers(n_items, size=n_users)
    ranks = ranks_from_scores(scores, targets)
    for k in (1, 10):
        chance = k / n_items
        assert recall_at(ranks, k).mean() == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / n_users))
    assert ndcg_at(ranks, 10).mean() == pytest.approx((1 / np.log2(np.arange(2, 12))).sum() / n_items, rel=0.05)


def test_scores_and_lists_agree() -> None:
    rng = np.random.default_rng(1)
    scores, targets = rng.random((200, 30)), rng.integers(30, size=200)
    lists = np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(ranks_from_scores(scores, targets), ranks_from_lists(lists, targets))


@pytest.mark.parametrize("constant", [0.0, 1.0, -np.inf, np.nan])
def test_constant_scores_never_help_the_target(constant: float) -> None:
    ranks = ranks_from_scores(np.full((7, 50), constant), np.arange(7))
    np.testing.assert_array_equal(ranks, 50)


def test_excluded_items_do_not_stand_ahead() -> None:
    scores = np.array([[3.0, 2.0, 1.0]] * 3)
    targets, excluded = np.array([2, 2, 2]), [np.array([0]), np.array([], dtype=int), np.array([2])]
    expected = [2, 3, np.inf]  # the third target is excluded itself
    np.testing.assert_array_equal(ranks_from_scores(scores, targets, excluded), expected)
    mask = np.array([[True, False, False], [False] * 3, [False, False, True]])
    np.testing.assert_array_equal(ranks_from_scores(scores, targets, mask), expected)


def test_agrees_with_ir_measures() -> None:
    ir_measures = pytest.importorskip("ir_measures", reason="ir-measures is not installed")
    rng = np.random.default_rng(2)
    lists = np.stack([rng.permutation(25)[:15] for _ in range(1000)])
    targets = rng.integers(25, size=1000)
    run = [
        ir_measures.ScoredDoc(str(u), str(item), float(-place))
        for u, row in enumerate(lists)
        for place, item in enumerate(row)
    ]
    qrels = [ir_measures.Qrel(str(u), str(target), 1) for u, target in enumerate(targets)]
    measures = dict(zip(METRICS, map(ir_measures.parse_measure, ["R@1", "R@10", "nDCG@10", "RR@10"]), strict=True))
    theirs = ir_measures.calc_aggregate(measures.values(), qrels, run)
    ours = summarise(ranks_from_lists(lists, targets), bootstrap=10, seed=0)
    for name, measure in measures.items():
        assert ours[name]["value"] == pytest.approx(theirs[measure], abs=1e-9)
        assert 0 < ours[name]["value"] < 1


def test_expected_credit_is_the_mean_over_all_orders_of_equal_texts() -> None:
    """Two items of one text before the target, three with the target's own: the target may stand at 3, 4 or 5."""
    lists, targets, copies = np.array([[0, 1, 2, 3]]), np.array([1]), np.array([2, 3, 1, 1])
    best = ranks_from_lists(lists, targets, copies)
    assert best.tolist() == [3]
    ours = summarise(best, 5, 0, mrr_cut=4, copies=copies[targets])
    # By hand: originals a, b | c, d, target | e | f in every order within a text.
    expanded = [(*first, *second, "e", "f") for first in permutations("ab") for second in permutations(["c", "d", "t"])]
    ranks = np.array([order.index("t") + 1.0 for order in expanded])
    assert ours["ndcg@10"]["value"] == pytest.approx(ndcg_at(ranks, 10).mean())
    assert ours["mrr"]["value"] == pytest.approx(reciprocal_rank(ranks, 4).mean())
    assert ours["recall@1"]["value"] == 0


def test_expected_credit_without_copies_is_the_plain_metric_and_a_catalogue_of_copies_is_chance() -> None:
    plain, credited = summarise(TOY, 20, 0), summarise(TOY, 20, 0, copies=np.ones(6, dtype=np.int64))
    for metric in METRICS:
        assert credited[metric] == pytest.approx(plain[metric])
    everything = summarise(np.array([1.0]), 5, 0, copies=np.array([40]))
    assert everything["recall@10"]["value"] == pytest.approx(10 / 40)
    alone = paired_bootstrap(TOY, TOY - 1 + (TOY == 1), 20, 0, copies=np.full(6, 2))
    assert alone["ndcg@10"]["difference"] > 0


def test_many_users_and_items_in_little_memory() -> None:
    """10,000 users x 10,000 items are 400 MB of scores; what is held at once may be a few chunks of 32 MB."""
    rng = np.random.default_rng(8)
    users, items = rng.normal(size=(2, 10_000, 8)).astype(np.float32)
    targets = rng.integers(10_000, size=10_000)
    seen = list(rng.integers(10_000, size=(10_000, 5)))
    tracemalloc.start()
    ranks = ranks_in_chunks(lambda part: users[part] @ items.T, targets, 10_000, seen)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
    few = slice(4000, 4020)
    np.testing.assert_array_equal(ranks[few], ranks_from_scores(users[few] @ items.T, targets[few], seen[few]))
    assert len(ranks) == 10_000
    assert ranks_in_chunks(lambda part: users[part] @ items.T, targets[:0], 10_000).shape == (0,)


def test_interval_is_the_binomial_one() -> None:
    ranks = np.where(np.arange(2000) < 600, 1.0, np.inf)  # a mean of .3
    interval = summarise(ranks, bootstrap=4000, seed=0)["recall@1"]
    half = 1.96 * np.sqrt(0.3 * 0.7 / 2000)
    assert interval["low"] == pytest.approx(0.3 - half, abs=0.1 * half)
    assert interval["high"] == pytest.approx(0.3 + half, abs=0.1 * half)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    truth = np.array([1, 2, 6, np.inf])
    mean = reciprocal_rank(truth, 10).mean()
    intervals = [summarise(rng.choice(truth, 300), bootstrap=400, seed=n)["mrr"] for n in range(300)]
    covered = np.mean([interval["low"] <= mean <= interval["high"] for interval in intervals])
    assert 0.90 <= covered <= 0.99


def test_bootstrap_is_seeded() -> None:
    assert summarise(TOY, 50, seed=1) == summarise(TOY, 50, seed=1)
    assert summarise(TOY, 50, seed=1) != summarise(TOY, 50, seed=2)


def test_bootstrap_in_chunks_makes_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = summarise(TOY, 101, seed=1)
    monkeypatch.setattr("calrec_lite.measure.metrics.CELLS", 7)
    assert summarise(TOY, 101, seed=1) == whole


def test_paired_bootstrap_of_a_system_with_itself() -> None:
    for difference in paired_bootstrap(TOY, TOY, 100, 0).values():
        assert difference == {"difference": 0, "low": 0, "high": 0, "p": 1}


def test_paired_bootstrap_is_b_minus_a_and_symmetric() -> None:
    rng = np.random.default_rng(4)
    a = rng.integers(1, 20, size=400).astype(float)
    b = np.maximum(1, a - rng.integers(0, 4, size=400))
    forth, back = paired_bootstrap(a, b, 999, 0), paired_bootstrap(b, a, 999, 0)
    for metric in METRICS:
        assert forth[metric]["low"] > 0  # b is better for everyone
        assert forth[metric]["p"] == pytest.approx(0.002)  # the smallest: 2 / (999 + 1)
        assert back[metric]["difference"] == pytest.approx(-forth[metric]["difference"])
        assert back[metric]["low"] == pytest.approx(-forth[metric]["high"])
        assert back[metric]["p"] == forth[metric]["p"]


def test_paired_bootstrap_seldom_finds_a_difference_where_there_is_none() -> None:
    rng = np.random.default_rng(5)
    draws = rng.choice([1, 3, 8, np.inf], size=(300, 2, 200))
    significant = [paired_bootstrap(a, b, 400, n)["ndcg@10"]["p"] < 0.05 for n, (a, b) in enumerate(draws)]
    assert 0.01 <= np.mean(significant) <= 0.10


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no user"):
        summarise(np.empty(0), 10, 0)
    with pytest.raises(ValueError, match="same users"):
        paired_bootstrap(TOY, TOY[1:], 10, 0)


def test_repetitions_are_averaged_within_a_user() -> None:
    """Of two seeds a user counts once, with the mean; the interval is as wide as the users' spread makes it."""
    random = np.random.default_rng(0)
    a, b = (random.integers(1, 30, (2, 200)).astype(float) for _ in range(2))
    mean = (ndcg_at(a[0], 10).mean() + ndcg_at(a[1], 10).mean()) / 2
    assert summarise(a, 100, 0)["ndcg@10"]["value"] == pytest.approx(mean)
    assert summarise(np.stack([a[0], a[0]]), 100, 0) == summarise(a[0], 100, 0)
    shift = paired_bootstrap(a, b, 100, 0)["recall@10"]["difference"]
    assert shift == pytest.approx(recall_at(b, 10).mean() - recall_at(a, 10).mean())
    with pytest.raises(ValueError, match="the same users: 200 and 199"):
        paired_bootstrap(a, b[:, 1:], 100, 0)
