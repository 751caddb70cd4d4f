"""Torch's `varlen_attn` on a CPU: plain formulas where a GPU has its kernels, below all of torch's own code."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from calrec_lite.model import joined

needs_varlen = pytest.mark.skipif(joined.varlen_attn is None, reason="torch.nn.attention.varlen came with torch 2.10")


def texts_of(bounds: torch.Tensor) -> list[slice]:
    return [slice(start, end) for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist())]


def shares(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(heads, n, n) how much each token of a text looks at each one before it."""
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    return scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def forward_kernel(query, key, value, bounds, bounds_k, longest, longest_k, dropout, causal, debug, **kwargs):
    """What a kernel for many texts computes: (N, heads, D), each text by plain formulas."""
    assert causal
    assert torch.equal(bounds, bounds_k)
    assert longest == longest_k >= int(bounds.diff().max())
    assert bounds.dtype is torch.int32
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    out = [torch.einsum("hqk,khd->qhd", shares(query[t], key[t]), value[t]) for t in texts_of(bounds)]
    return torch.cat(out), *(query.new_zeros(0) for _ in range(4))


def backward_kernel(grad, query, key, value, out, lse, bounds, *rest, **kwargs):
    groups, times, scale = key.shape[1], query.shape[1] // key.shape[1], query.shape[-1] ** -0.5
    key, value = (t.repeat_interleave(times, 1) for t in (key, value))
    found = []
    for t in texts_of(bounds):
        share = shares(query[t], key[t])
        of_share = torch.einsum("qhd,khd->hqk", grad[t], value[t])
        of_score = scale * share * (of_share - (of_share * share).sum(-1, keepdim=True))
        found.append(
            [
                torch.einsum("hqk,khd->qhd", of_score, key[t]),
                torch.einsum("hqk,qhd->khd", of_score, query[t]).unflatten(1, (groups, times)).sum(2),
                torch.einsum("hqk,qhd->khd", share, grad[t]).unflatten(1, (groups, times)).sum(2),
            ]
        )
    return tuple(torch.cat(own) for own in zip(*found))


@contextmanager
def on_a_cpu() -> Iterator[None]:
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward_kernel, "CPU")
    library.impl("_flash_attention_backward", backward_kernel, "CPU")
    try:
        yield
    finally:
        library._destroy()
