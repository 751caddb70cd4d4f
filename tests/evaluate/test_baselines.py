"""The baselines on domains small enough to know the answer."""

import tracemalloc
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from calrec_lite.evaluate.baselines.counting import (
    BASELINES,
    BM25LastBaseline,
    LastItemBaseline,
    PersonalPopularityBaseline,
    PopularityBaseline,
    TransitionsBaseline,
)
from calrec_lite.evaluate.protocol import Protocol, evaluate_system
from calrec_lite.measure.cases import build_cases

# Trained on: [0, 1, 2] and [0, 1, 5]; so 0 and 1 twice, 2 and 5 once, 3 and 4 never.
PAIR = [[0, 1, 2, 3, 4], [0, 1, 5, 3, 4]]


def one(ranker: PopularityBaseline, history: list[int], k: int, exclude_seen: bool) -> list[int]:
    lists = ranker.rank([np.array(history, dtype=np.int32)], k, exclude_seen)
    assert lists.shape == (1, k)
    assert lists.dtype == np.int32
    return lists[0].tolist()


def random_sequences(seed: int, n_users: int = 60, n_items: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(n_items, size=rng.integers(1, 15)).tolist() for _ in range(n_users)]


def test_popularity(make_domain: Any) -> None:
    ranker = PopularityBaseline(make_domain(PAIR, 6), seed=0)
    everything = one(ranker, [2], 6, exclude_seen=False)
    assert [set(everything[:2]), set(everything[2:4]), set(everything[4:])] == [{0, 1}, {2, 5}, {3, 4}]
    assert one(ranker, [0, 2], 6, exclude_seen=True) == [*(i for i in everything if i not in (0, 2)), -1, -1]


def test_ties_follow_the_seed_and_not_the_index(make_domain: Any) -> None:
    domain = make_domain([[n] for n in range(20)], 20)
    orders = [one(PopularityBaseline(domain, seed), [], 20, False) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(20)) != orders[0]
    firsts = {one(PopularityBaseline(domain, seed), [], 1, False)[0] for seed in range(100)}
    assert len(firsts) > 15  # all 20 items are equal: each comes first with some seed


def test_last_item(make_domain: Any) -> None:
    domain = make_domain(PAIR, 6)
    ranker, popularity = LastItemBaseline(domain, seed=0), PopularityBaseline(domain, seed=0)
    rest = [item for item in one(popularity, [], 6, False) if item not in (3, 4, 5)]
    assert one(ranker, [5, 3, 5, 4], 6, exclude_seen=False) == [4, 5, 3, *rest]
    assert one(ranker, [5, 3, 4], 5, exclude_seen=True) == one(popularity, [5, 3, 4], 5, exclude_seen=True)


def test_bm25(make_domain: Any) -> None:
    titles = ["red apple pie", "blue car", "Red apple tart", "green apple", "grey stone", "!"]
    domain = make_domain([[1, 4, 0, 2]], titles)
    ranker = BM25LastBaseline(domain, seed=0)
    assert one(ranker, [1, 0], 3, exclude_seen=False) == [0, 2, 3]  # three, two, and one word in common
    # The rest by popularity: 1 and 4 were trained on.
    assert one(ranker, [0], 5, exclude_seen=True)[:2] == [2, 3]
    assert set(one(ranker, [0], 5, exclude_seen=True)[2:4]) == {1, 4}
    assert one(ranker, [0], 5, exclude_seen=True)[4] == 5
    for silent in ([], [5]):  # no history, no word in the title
        assert one(ranker, silent, 6, False) == one(PopularityBaseline(domain, seed=0), silent, 6, False)


def test_bm25_without_any_word(make_domain: Any) -> None:
    domain = make_domain([[0, 1, 2]], ["!", "?", "..."])
    assert one(BM25LastBaseline(domain, 0), [1], 3, False) == one(PopularityBaseline(domain, 0), [1], 3, False)


def test_transitions_by_hand(make_domain: Any) -> None:
    ranker = TransitionsBaseline(make_domain(PAIR, 6), seed=0)
    # From 0: to 1 twice, 2 / 2^.3 = 1.62; to 2 and 5 once each, 1.
    after = one(ranker, [0], 6, exclude_seen=True)
    assert after[0] == 1
    assert [set(after[1:3]), set(after[3:5]), after[5]] == [{2, 5}, {3, 4}, -1]
    # Before 2: 0 and 1, once each, .5 / 2^.3; 5 never beside 2, yet trained on; then what was never trained on.
    before = one(ranker, [2], 6, exclude_seen=True)
    assert [set(before[:2]), before[2], set(before[3:5])] == [{0, 1}, 5, {3, 4}]


def test_transitions_reach_three_steps_and_five_items(make_domain: Any) -> None:
    domain = make_domain([[0, 1, 2, 3, 4, 9, 9]], 10)
    order = one(TransitionsBaseline(domain, 0), [0], 5, exclude_seen=True)
    assert set(order[:3]) == {1, 2, 3}  # 4 is four steps from 0
    popular = one(PopularityBaseline(domain, 0), [0, 5, 6, 7, 8, 9], 4, True)
    assert (
        one(TransitionsBaseline(domain, 0), [0, 5, 6, 7, 8, 9], 4, True) == popular
    )  # 0 lies six events back: forgotten


def test_transitions_equal_a_plain_count(make_domain: Any) -> None:
    sequences = random_sequences(0)
    domain = make_domain(sequences, 30)
    counts: dict[tuple[int, int], float] = defaultdict(float)
    popularity: Counter[int] = Counter()
    for items in sequences:
        train = items[:-2] if len(items) >= 3 else items
        popularity.update(train)
        for i, before in enumerate(train):
            for after in train[i + 1 : i + 4]:
                counts[before, after] += 1
                counts[after, before] += 0.5
    histories = [np.array(items, dtype=np.int32) for items in random_sequences(1)]
    lists = TransitionsBaseline(domain, 0).rank(histories, 10, exclude_seen=True)
    for history, found in zip(histories, lists, strict=True):
        scores = [
            sum(0.6**age * counts[int(seen), item] for age, seen in enumerate(history[::-1][:5]))
            / max(popularity[item], 1) ** 0.3
            for item in range(30)
        ]
        allowed = sorted((scores[item] for item in range(30) if item not in history), reverse=True)
        np.testing.assert_allclose([scores[item] for item in found], allowed[:10], rtol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_only_the_training_part_is_fitted(make_domain: Any, name: str) -> None:
    sequences = [items for items in random_sequences(2) if len(items) >= 6]
    titles = [f"word{n % 7} word{n % 3}" for n in range(30)]
    histories = [np.array(items[:3], dtype=np.int32) for items in sequences]
    held_out = [[*items[:-2], (items[-2] + 7) % 30, (items[-1] + 5) % 30] for items in sequences]
    training = [[0, *items[1:]] for items in sequences]
    first, second = (
        BASELINES[name](make_domain(s, titles), 0).rank(histories, 10, True) for s in (sequences, held_out)
    )
    np.testing.assert_array_equal(first, second)
    other = BASELINES[name](make_domain(training, titles), 0).rank(histories, 10, True)
    assert (other != first).any()  # so the test can fail


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("name", BASELINES)
def test_lists_keep_the_rankers_promise(make_domain: Any, name: str, exclude_seen: bool) -> None:
    domain = make_domain(random_sequences(3), 30)
    cases = build_cases(domain, "test", None, 0)
    ranker = BASELINES[name](domain, 0)
    result = evaluate_system(ranker, cases, Protocol(exclude_seen=exclude_seen, bootstrap=5))
    assert (result.lists >= 0).all()  # 30 items are enough for ten
    longer = ranker.rank(cases.histories, 40, exclude_seen)
    np.testing.assert_array_equal(longer[:, :10], result.lists)
    assert {-1, *range(30)} >= set(longer.ravel().tolist())


@pytest.mark.parametrize("name", BASELINES)
def test_chunks_change_nothing(make_domain: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = make_domain(random_sequences(4), 30)
    ranker, cases = BASELINES[name](domain, 0), build_cases(domain, "test", None, 0)
    whole = ranker.rank(cases.histories, 10, True)
    monkeypatch.setattr("calrec_lite.evaluate.baselines.counting.CELLS", 100)
    np.testing.assert_array_equal(ranker.rank(cases.histories, 10, True), whole)
    assert ranker.rank([], 10, True).shape == (0, 10)


def test_large_lists_are_made_in_little_memory(make_domain: Any) -> None:
    """2,000 users x 20,000 items are 160 MB of scores and 320 MB of sort keys; only a chunk of them is held at once."""
    rng = np.random.default_rng(9)
    domain = make_domain(rng.integers(20_000, size=(2000, 8)).tolist(), 20_000)
    cases, ranker = build_cases(domain, "test", None, 0), TransitionsBaseline(domain, 0)
    tracemalloc.start()
    evaluate_system(ranker, cases, Protocol(bootstrap=5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250e6


def test_personal_popularity(make_domain: Any) -> None:
    domain = make_domain(PAIR, 6)
    ranker, popularity = PersonalPopularityBaseline(domain, seed=0), PopularityBaseline(domain, seed=0)
    bought = sorted((3, 4), key=one(popularity, [], 6, False).index)
    rest = [item for item in one(popularity, [], 6, False) if item not in (3, 4, 5)]
    assert one(ranker, [5, 3, 5, 4], 6, exclude_seen=False) == [5, *bought, *rest]
    assert one(ranker, [5, 3, 4], 5, exclude_seen=True) == one(popularity, [5, 3, 4], 5, exclude_seen=True)
