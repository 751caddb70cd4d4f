"""Cases, the check of rankers, and slices."""

from typing import Any

import numpy as np
import pytest

from calrec_lite.errors import InputError
from calrec_lite.evaluate.protocol import Protocol, evaluate_system, slices
from calrec_lite.measure.cases import build_cases
from calrec_lite.recipe.file import check_recipe


class Fixed:
    """A ranker that always gives the same lists."""

    def __init__(self, lists: Any) -> None:
        self.lists = np.array(lists, dtype=np.int32)

    def rank(self, histories: list[np.ndarray], k: int, exclude_seen: bool) -> np.ndarray:
        return self.lists


def test_leave_one_out(make_domain: Any) -> None:
    domain = make_domain([[0, 1, 2, 3], [4, 5], [6, 5, 4]], 7)
    test, validation = build_cases(domain, "test", None, 0), build_cases(domain, "validation", None, 0)
    assert test.users.tolist() == validation.users.tolist() == [0, 2]  # two events make no case
    assert [history.tolist() for history in test.histories] == [[0, 1, 2], [6, 5]]
    assert [history.tolist() for history in validation.histories] == [[0, 1], [6]]
    assert test.targets.tolist() == [3, 4]
    assert validation.targets.tolist() == [2, 5]
    assert domain.train_counts().tolist() == [1, 1, 0, 0, 1, 1, 1]


def test_time_split(make_domain: Any) -> None:
    """Validation from 10, test from 20: only a user's first event of each part is a target, after some history."""
    sequences = [[0, 1, 2, 3, 4, 5], [6, 5], [1, 2, 3], [4, 6], [0, 1, 2]]
    times = [1, 9, 10, 12, 20, 25, 20, 21, 1, 2, 3, 9, 30, 11, 12, 20]
    domain = make_domain(sequences, 7, times=times, cuts=(10, 20))
    test, validation = build_cases(domain, "test", None, 0), build_cases(domain, "validation", None, 0)
    assert test.users.tolist() == [0, 3, 4]  # 1 has no history, 2 nothing from 20 on
    assert [history.tolist() for history in test.histories] == [[0, 1, 2, 3], [4], [0, 1]]
    assert test.targets.tolist() == [4, 6, 2]
    assert validation.users.tolist() == [0]  # 4 begins within the validation part
    assert [history.tolist() for history in validation.histories] == [[0, 1]]
    assert validation.targets.tolist() == [2]
    trained = [domain.train_items(u).tolist() for u in range(5)]
    assert trained == [[0, 1], [], [1, 2, 3], [4], []]
    assert domain.train_counts().tolist() == [1, 2, 1, 1, 1, 0, 0]
    cases = [(domain.case(u, "validation"), domain.case(u, "test")) for u in range(5)]
    assert [[case and case[1] for case in both] for both in cases] == [
        [2, 4], [None, None], [None, None], [None, 6], [None, 2],
    ]  # fmt: skip
    days = "validation from 1970-01-01 00:00:10, test from 1970-01-01 00:00:20"
    assert domain.holdout == test.holdout == f"global time split ({days})"
    with pytest.raises(InputError, match="the events before and after the cut that a test case needs by global time"):
        build_cases(make_domain([[0, 1]], 2, times=[1, 2], cuts=(5, 6)), "test", None, 0)


def test_ties_in_time_are_told_and_sliced(make_domain: Any) -> None:
    times = [1, 2, 3, 1, 5, 5, 7, 7, 7, 1, 2, 2]
    domain = make_domain([[0, 1, 2], [3, 4, 5], [1, 2, 3], [0, 4, 1]], 7, times=times)
    test, validation = build_cases(domain, "test", None, 0), build_cases(domain, "validation", None, 0)
    assert test.tied is not None
    assert test.tied.tolist() == [False, True, True, True]
    assert validation.tied is not None
    assert validation.tied.tolist() == [False, True, True, True]  # with the test item: which came first was drawn
    assert Protocol().record(test)["tied_share"] == 0.75
    found = slices(domain, test, np.array([1.0, 2, np.inf, np.inf]), Protocol(bootstrap=10))
    assert found["time: tied"]["users"] == 3
    assert found["time: alone"]["recall@1"]["value"] == 1  # type: ignore[index]
    assert build_cases(make_domain([[0, 1, 2]], 3), "test", None, 0).tied is None


def test_expected_credit_for_items_of_the_same_text(make_domain: Any) -> None:
    domain = make_domain([[0, 1, 2], [3, 4, 5]], 20, copies={2: 3, 6: 4})
    cases = build_cases(domain, "test", None, 0)
    lists = Fixed([[6, 2, *range(7, 15)], [*range(6, 14), 15, 5]])
    one = evaluate_system(lists, cases, Protocol(bootstrap=5))
    assert one.ranks.tolist() == [2, 10]
    several = evaluate_system(lists, cases, Protocol(bootstrap=5, duplicates="expected"))
    assert several.ranks.tolist() == [5, 13]  # item 6 takes four places; the target of the first user 5, 6 or 7
    assert several.metrics["recall@10"]["value"] == 0.5
    gains = [1 / np.log2(rank + 1) for rank in (5, 6, 7)]
    assert several.metrics["ndcg@10"]["value"] == pytest.approx(np.mean(gains) / 2)
    assert slices(domain, cases, several.ranks, Protocol(bootstrap=5, duplicates="expected"))["target: new"]["ndcg@10"][
        "value"
    ] == pytest.approx(np.mean(gains) / 2)  # type: ignore[index]


def test_every_choice_of_the_protocol_is_a_recipe_key() -> None:
    recipe = check_recipe(
        {
            "name": "r",
            "seed": 7,
            "base": {"model": "m"},
            "domains": {"d": {"interactions": "x.csv"}},
            "stages": [{"name": "s", "domains": ["d"], "epochs": 1}],
            "recommend": {"exclude_seen": False, "k": 12},
            "evaluate": {"split": "validation", "users": 9, "bootstrap": 8, "mrr_cut": 15, "duplicates": "expected"},
        }
    )
    assert Protocol.of(recipe) == Protocol("validation", 9, False, 15, 15, 7, 8, "expected")


def test_the_draw_is_seeded_and_sorted(make_domain: Any) -> None:
    domain = make_domain([[0, 1, 2]] * 50, 3)
    users = build_cases(domain, "test", 10, seed=1).users
    assert len(set(users.tolist())) == 10
    assert (np.diff(users) > 0).all()
    np.testing.assert_array_equal(users, build_cases(domain, "validation", 10, seed=1).users)
    assert users.tolist() != build_cases(domain, "test", 10, seed=2).users.tolist()
    assert len(build_cases(domain, "test", 500, seed=1).users) == 50


def test_no_case_is_the_users_error(make_domain: Any) -> None:
    with pytest.raises(InputError, match="domain `toys`: no user has the three events"):
        build_cases(make_domain([[0, 1]], 2), "test", None, 0)


def test_a_system_is_measured(make_domain: Any) -> None:
    domain = make_domain([[0, 1, 2], [3, 4, 5]], 20)
    cases, protocol = build_cases(domain, "test", None, 0), Protocol(bootstrap=20)
    result = evaluate_system(Fixed([[2, *range(6, 15)], [*range(6, 15), -1]]), cases, protocol)
    assert result.ranks.tolist() == [1, np.inf]
    assert {name: metric["value"] for name, metric in result.metrics.items()} == {
        "recall@1": 0.5,
        "recall@10": 0.5,
        "ndcg@10": 0.5,
        "mrr": 0.5,
    }
    assert result.users_per_second == 2 / result.seconds


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (list(range(5, 14)), "shape"),
        ([5, 5, *range(6, 14)], "twice"),
        ([-2, *range(5, 14)], "catalogue"),
        ([20, *range(5, 14)], "catalogue"),
        ([1, *range(5, 14)], "history"),
    ],
)
def test_a_ranker_that_breaks_its_promise_is_refused(make_domain: Any, row: list[int], message: str) -> None:
    cases = build_cases(make_domain([[0, 1, 2]], 20), "test", None, 0)
    with pytest.raises(ValueError, match=message):
        evaluate_system(Fixed([row]), cases, Protocol(bootstrap=5))


def test_seen_items_are_allowed_when_the_protocol_says_so(make_domain: Any) -> None:
    cases = build_cases(make_domain([[0, 1, 1]], 20), "test", None, 0)
    result = evaluate_system(Fixed([[1, *range(5, 14)]]), cases, Protocol(exclude_seen=False, bootstrap=5))
    assert result.ranks.tolist() == [1]


def test_unreachable_targets_are_recorded(make_domain: Any) -> None:
    domain = make_domain([[0, 1, 0], [0, 1, 2], [1, 2, 3], [2, 3, 3]], 5)
    cases = build_cases(domain, "test", None, 0)
    masked, open_ = Protocol(users=100).record(cases), Protocol(exclude_seen=False).record(cases)
    assert (masked["unreachable"], masked["unreachable_share"]) == (2, 0.5)
    assert (open_["unreachable"], open_["unreachable_share"]) == (0, 0)
    assert (masked["users"], masked["items"]) == (4, 5)


@pytest.mark.parametrize("wrong", [{"k": 9}, {"k": 10, "mrr_cut": 11}])
def test_lists_must_be_long_enough_for_the_metrics(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="too short"):
        Protocol(**wrong)  # type: ignore[arg-type]


def test_slices(make_domain: Any) -> None:
    often = [[1] * 12 + [0, 3]]  # trained on: item 1 twelve times
    domain = make_domain([*often, [2, 2, 1], [2, 4, 2]], 6)
    cases = build_cases(domain, "test", None, 0)
    ranks = np.array([1.0, np.inf, 2.0])
    found = slices(domain, cases, ranks, Protocol(bootstrap=10))
    assert {name: (part["users"], part["recall@10"]["value"]) for name, part in found.items()} == {  # type: ignore
        "target: new": (1, 1),  # 3
        "target: rare": (1, 1),  # 2, trained on twice
        "target: popular": (1, 0),  # 1
        "target: repeat": (1, 1),
        "target: explore": (2, 0.5),
        "history: 1-4": (2, 0.5),
        "history: 10-19": (1, 1),
    }
