"""Texts to items: docs/method.md, 6, on examples worked by hand."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from calrec_lite.recommend.ground import Grounder

TEXTS = ["red steel cup", "red glass cup", "blue tea pot", "green tea pot", "small paper lamp", "large paper fan"]
ALL = np.ones(len(TEXTS), np.bool_)


def rank(
    texts: list[str], logprobs: list[float], k: int = 4, order: str = "likelihood", eps: float = 1e-2, allowed=ALL
):
    return Grounder(TEXTS).rank(texts, logprobs, k, allowed, eps, order, ["small paper lamp"])


def test_exact_matches_stand_in_the_order_of_the_llm() -> None:
    got = rank(["blue tea pot", "Red  STEEL cup", "green tea pot"], [-3.0, -1.0, -2.0])
    assert got.items.tolist()[:3] == [0, 3, 2]
    assert got.scores[:3].tolist() == [math.exp(-0.01), math.exp(-0.02), math.exp(-0.03)]
    assert "exact" in got.why[0]


def test_case_tells_texts_apart_that_differ_in_nothing_else() -> None:
    grounder = Grounder(["It", "IT", "it", "tea pot", "Heat", "HEAT"], cut={3: "tea"})
    names = ["it", "IT", " It ", "iT", "heat", "HEAT", "Tea", "gone"]
    assert [grounder._exact_item(name) for name in names] == [2, 1, 0, 2, 4, 5, 3, None]


def test_every_best_match_comes_before_the_weaker_ones() -> None:
    got = rank(["a red cup of steel", "a tea pot, green"], [-1.0, -2.0], order="paper")
    assert got.items.tolist()[:2] == [0, 3]
    assert set(got.items.tolist()[2:]) == {1, 2}


def test_the_paper_ordering_is_the_formula() -> None:
    texts, logprobs, eps = ["tea pot", "red cup steel"], [-4.0, -1.0], 0.05
    grounder = Grounder(TEXTS)
    wanted: dict[int, float] = {}
    for text, s in zip(texts, logprobs):
        for item, b in zip(*(found.tolist() for found in grounder.matches(text, 6))):
            wanted[item] = max(wanted.get(item, 0.0), math.exp(eps * s) * b)
    got = grounder.rank(texts, logprobs, 4, ALL, eps, "paper", [])
    for item, score in zip(got.items.tolist(), got.scores.tolist()):
        if score > 0:
            assert score == wanted[item]


def test_always_k_distinct_valid_items() -> None:
    got = rank(["zzz unknown words"], [-1.0], k=6)
    assert sorted(got.items.tolist()) == list(range(6))
    got = rank(["red steel cup"] * 5, [-1.0] * 5, k=5, allowed=np.arange(6) != 0)
    assert len(set(got.items.tolist())) == 5
    assert 0 not in got.items


def test_only_what_is_allowed_and_as_many_as_are() -> None:
    allowed = np.isin(np.arange(6), [1, 5])
    for order in ("likelihood", "paper"):
        got = rank(["red steel cup", "blue tea pot"], [-1.0, -2.0], k=4, order=order, allowed=allowed)
        assert got.items.tolist() == [1, 5]


@pytest.mark.parametrize("texts", [["X", "Y", "!"], ["?!", "...", "-"]])
def test_texts_without_a_longer_word(texts: list[str]) -> None:
    got = Grounder(texts).rank([texts[1], "red"], [-1.0, -2.0], 3, np.ones(3, np.bool_), 1e-2, "likelihood", texts[:1])
    assert got.items[0] == 1
    assert "exact" in got.why[0]
    assert sorted(got.items.tolist()) == [0, 1, 2]


def test_bm25_is_asked_only_where_it_can_change_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plain = Grounder.matches

    def noted(self: Grounder, text: str, *rest: object) -> tuple[np.ndarray, np.ndarray]:
        asked.append(text)
        return plain(self, text, *rest)

    monkeypatch.setattr(Grounder, "matches", noted)
    exact = ["blue tea pot", "red glass cup"]
    assert rank(exact, [-1.0, -2.0], k=2).items.tolist() == [2, 1]
    assert asked == []
    assert rank([*exact, "tea, green"], [-1.0, -2.0, -3.0], k=3).items.tolist() == [2, 1, 3]
    assert asked == ["tea, green"]
    asked.clear()
    got = rank(exact, [-1.0, -2.0], k=4)  # weaker matches of the texts fill it: the history is not needed
    assert got.items.tolist() == [2, 1, 3, 0]
    assert asked == exact
    asked.clear()
    got = rank(exact, [-1.0, -2.0], k=6)
    assert got.items.tolist() == [2, 1, 3, 0, 4, 5]
    assert got.why[4:] == ["BM25 match of the history"] * 2
    assert asked == [*exact, "small paper lamp"]
    asked.clear()
    assert len(rank(exact, [-1.0, -2.0], k=2, order="paper").items) == 2
    assert asked == exact


def test_words_of_one_letter_count() -> None:
    titles = ["toy story", "toy story 2", "toy story 3"]
    got = Grounder(titles).rank(["story of a toy, 3"], [-1.0], 3, np.ones(3, np.bool_), 1e-2, "likelihood", [])
    assert got.items[0] == 2


def test_an_item_that_the_model_knows_cut_is_matched_by_what_it_writes() -> None:
    grounder = Grounder(TEXTS, {5: "large paper"})
    assert grounder.rank(["Large paper"], [-1.0], 1, ALL, 1e-2, "likelihood", []).items.tolist() == [5]
    assert grounder.rank(["large paper fan"], [-1.0], 1, ALL, 1e-2, "likelihood", []).items.tolist() == [5]


@pytest.mark.parametrize(("own", "expected"), [(None, "false"), ("true", "true")])
def test_jax_takes_no_gpu_memory_in_advance_unless_the_user_says_otherwise(own: str | None, expected: str) -> None:
    """bm25s starts JAX where it is installed, and JAX takes three quarters of a GPU's memory as it starts."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_PYTHON_CLIENT_PREALLOCATE"} | (
        {"XLA_PYTHON_CLIENT_PREALLOCATE": own} if own else {}
    )
    code = "import os, calrec_lite; print(os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'])"
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split()[-1] == expected
