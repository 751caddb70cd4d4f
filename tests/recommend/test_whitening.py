"""Whitened text vectors: what was near stays near, however few the items are."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calrec_lite.recommend.whitening import Whitening


def groups(n: int, dim: int = 64) -> Tensor:
    """(3n, dim) vectors with a large common part, three of each group near each other."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(n, dim, generator=generator).repeat_interleave(3, 0)
    return 20 + centres + 0.1 * torch.randn(3 * n, dim, generator=generator)


@pytest.mark.parametrize("n", [10, 20, 200])
def test_neighbours_stay_neighbours(n: int) -> None:
    """In as many directions as 30 items have, each pair would be equally far apart."""
    raw = groups(n)
    assert (F.normalize(raw, dim=-1) @ F.normalize(raw, dim=-1).T).min() > 0.9, "all alike before"
    vectors = Whitening.of(raw)(raw)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(3 * n), atol=1e-5)
    cosines = (vectors @ vectors.T).fill_diagonal_(-2)
    two_nearest = cosines.topk(2).indices
    same = two_nearest // 3 == torch.arange(3 * n)[:, None] // 3
    assert same.float().mean() > 0.7


def test_directions_are_ordered_and_at_most_half_as_many_as_items() -> None:
    raw = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * torch.linspace(10, 1, 64)
    whitening = Whitening.of(raw)
    assert whitening.matrix.shape == (64, 20)
    deviation = 1 / whitening.matrix.norm(dim=0)
    assert (deviation.diff() < 0).all()


def test_directions_that_hardly_vary_are_left_out() -> None:
    raw = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    raw[:, 5:] *= 1e-5
    assert Whitening.of(raw).matrix.shape == (8, 5)


@pytest.mark.parametrize(
    "vectors", [torch.ones(1, 8), torch.ones(30, 8), torch.eye(8)[:2]], ids=["one", "alike", "two"]
)
def test_too_little_to_be_told_apart(vectors: Tensor) -> None:
    made = Whitening.of(vectors)(vectors)
    assert made.isfinite().all()
    assert len(made) == len(vectors)
