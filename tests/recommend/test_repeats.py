"""What a user buys again, and how often an item is bought again."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from calrec_lite.data.domain import Catalogue, Domain, Sequences
from calrec_lite.recommend.repeats import DOUBT, Repeats


def domain(*histories: Sequence[int]) -> Domain:
    """Of six items; the last two events of a history are held out."""
    ids = [f"i{n}" for n in range(6)]
    ends = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    users = Sequences([f"u{n}" for n in range(len(histories))], np.concatenate(histories).astype(np.int32), ends, None)
    return Domain("shop", Catalogue(ids, [{"Title": i} for i in ids], {i: n for n, i in enumerate(ids)}), users, {})


def test_share_of_purchases_by_users_who_had_bought_it_before() -> None:
    shop = domain([0, 0, 0, 1, 5, 5], [0, 0, 1, 5, 5])  # item 0 five times by two users, item 1 once by each
    mean = 3 / 7
    wanted = [(3 + DOUBT * mean) / (5 + DOUBT), (0 + DOUBT * mean) / (2 + DOUBT), mean]  # item 2 was never bought
    assert Repeats.of(shop).again[:3] == pytest.approx([share / mean for share in wanted])


def test_where_nobody_buys_again_all_items_are_alike() -> None:
    assert Repeats.of(domain([0, 1, 2, 3, 4])).again.tolist() == [1] * 6


def test_the_more_often_and_the_likelier_to_be_bought_again_the_higher() -> None:
    repeats = Repeats(np.array([1, 2, 0.5, 1], np.float32))
    scores = repeats.scores([np.array([0, 1, 0, 2], np.int32), np.array([], np.int32)])
    torch.testing.assert_close(scores, torch.tensor([[2.0, 2.0, 0.5, 0.0], [0.0] * 4]).log1p())
