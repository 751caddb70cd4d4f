"""Stretches of a text as single vectors."""

import torch
from torch import Tensor


def span_means(hidden: Tensor, row: Tensor, place: Tensor, most: int, start: Tensor, end: Tensor) -> Tensor:
    """(S, A, D) in fp32: the mean state of S spans of each anchor, `start : end` (S, A), by one masked product.

    Args:
        hidden: (B, T, D). row: (A,) each anchor's. place: (A,) among the anchors of its row, `most` of them at most.
    """
    at = torch.arange(hidden.shape[1], device=hidden.device)
    inside = (at >= start.unsqueeze(2)) & (at < end.unsqueeze(2))  # (S, A, T)
    mask = hidden.new_zeros(len(hidden), most, len(start), len(at), dtype=torch.float32)
    mask[row, place] = inside.transpose(0, 1).float()
    sums = (mask.flatten(1, 2) @ hidden.float()).unflatten(1, (most, len(start)))[row, place]  # (A, S, D)
    return sums.transpose(0, 1) / (end - start).unsqueeze(2)
