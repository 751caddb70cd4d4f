"""How far two models lie apart, by their next-token logits: the check of every merge (docs/architecture.md)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parity:
    """How far two models' next-token logits lie apart over some texts."""

    max_difference: float
    mean_difference: float
    top1_agreement: float


@torch.no_grad()
def parity(one: Iterator[Tensor], other: Iterator[Tensor]) -> Parity:
    """Compare logits pairwise; each element is (T, V). The differences are absolute, the agreement a share of T."""
    worst, total, count, agree, places = 0.0, 0.0, 0, 0, 0
    for a, b in zip(one, other, strict=True):
        difference = (a.float() - b.float()).abs()
        worst = max(worst, float(difference.nan_to_num(float("inf")).max()))
        total, count = total + float(difference.sum()), count + difference.numel()
        agree, places = agree + int((a.argmax(-1) == b.argmax(-1)).sum()), places + len(a)
    return Parity(worst, total / count, agree / places)
