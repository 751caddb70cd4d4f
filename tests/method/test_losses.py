"""Losses on numbers that can be worked out."""

import math

import pytest
import torch

from calrec_lite.method.losses import contrastive_loss, segment_logsumexp


def test_segment_logsumexp() -> None:
    values = torch.tensor([0.0, 1.0, 100.0, 101.0, -5.0])
    got = segment_logsumexp(values, torch.tensor([0, 0, 1, 1, 2]), 3)
    torch.testing.assert_close(got, torch.tensor([math.log(1 + math.e), 100 + math.log(1 + math.e), -5.0]))


def test_contrastive_loss_by_hand() -> None:
    eye = torch.eye(2)
    every = torch.ones(2, 2, dtype=torch.bool)
    wanted = math.log(1 + math.exp(-1 / 0.5))
    for direction in ("user_to_item", "item_to_user", "both"):
        assert float(contrastive_loss(eye, eye, every, 0.5, direction)) == pytest.approx(wanted)
    assert float(contrastive_loss(eye, eye, ~every, 0.5, "both")) == 0  # no negatives: nothing to tell apart


def test_directions_differ_where_they_should() -> None:
    anchors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1]]), dim=-1)
    texts = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=-1)
    every = torch.ones(2, 2, dtype=torch.bool)
    one, other, both = (
        float(contrastive_loss(anchors, texts, every, 0.5, d)) for d in ("user_to_item", "item_to_user", "both")
    )
    assert one != pytest.approx(other)
    assert both == pytest.approx((one + other) / 2)
