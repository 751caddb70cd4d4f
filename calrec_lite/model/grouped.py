"""Masked attention of grouped heads (GQA) that reads each key and value once.

Under a mask transformers writes keys and values out once for each query head before torch's attention sees them: the
whole cache of all layers, several times over, at every forward of a search. Here the query heads of a group stand in
one row as further queries, and the mask, which is the same in all layers, is repeated instead, once a forward, where
that is by far the smaller.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "calrec_grouped"
OTHERS = {"position_bias", "cache", "softcap"}  # arguments that transformers' own function knows more of


@contextmanager
def grouped(decoder: Any) -> Iterator[None]:
    """While it is open, a decoder with torch's attention takes masks so; any other one as ever.

    Calls without a mask, of another thread too, are torch's meanwhile.
    """
    config = decoder.config
    if config._attn_implementation not in ("sdpa", NAME) or not getattr(decoder, "_supports_attention_backend", False):
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"  # by name: another thread may have set it before


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(B, N, heads, D) of queries (B, heads, N, D), keys and values (B, groups, keys, D), mask (B, 1, N, keys)."""
    heads, groups, queries = query.shape[1], key.shape[1], query.shape[2]
    times = heads // groups
    smaller = 2 * times * queries <= heads * (key.shape[3] + value.shape[3])  # by far, a key: masks stay to the end
    if (
        1 in (times, queries)
        or not smaller
        or attention_mask is None
        or attention_mask.shape[1] > 1
        or kwargs.keys() & OTHERS
    ):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    folded = query.reshape(len(query), groups, times * queries, query.shape[3])
    mask = _repeated(attention_mask, times)
    out = nn.functional.scaled_dot_product_attention(folded, key, value, mask, dropout, scale=scaling)
    return out.reshape(len(query), heads, queries, value.shape[3]).transpose(1, 2).contiguous(), None


def _repeated(mask: Tensor, times: int) -> Tensor:
    """(B, 1, times * N, keys) of a mask (B, 1, N, keys), which keeps it for the layers to come."""
    kept: Tensor | None = getattr(mask, "repeated", None)
    if kept is None or kept.shape[2] != times * mask.shape[2]:
        kept = mask.repeat(1, 1, times, 1)
        mask.repeated = kept  # type: ignore[attr-defined]
    return kept


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)  # else transformers would make none where none is given
