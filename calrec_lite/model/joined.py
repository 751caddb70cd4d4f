"""Texts of several lengths in one call of a decoder: its linear layers see all tokens at once, its attention each text.

A call has one row: the tokens of one text after those of another, without padding where attention can do with texts of
many lengths. How they lie (`Layout`) goes along as an argument of the call, which transformers hands to every layer, so
that layers that gradient checkpointing computes again know it too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

try:  # from torch 2.10 on
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None  # type: ignore[assignment]

NAME = "calrec_joined"
BY_POSITION = {"default", "linear", "llama3", "yarn"}  # rotary angles that depend on a token's position alone
Way = Literal["padded", "one by one", "at once"]
Call = Callable[[Tensor, Tensor, "Layout"], Tensor]
OTHER_ATTENTION = ("sliding_window", "attn_logit_softcapping", "alibi", "use_bidirectional_attention", "kv_lora_rank")


class Texts(Protocol):
    """Right-padded texts.

    Attributes:
        ids: (B, T). ends: (B,) tokens of each text. lengths: (B,) the same, on the CPU.
    """

    ids: Tensor
    ends: Tensor
    lengths: np.ndarray


@dataclass(frozen=True)
class Layout:
    """Blocks of texts one after the other.

    Attributes:
        blocks: how many texts, and of how many tokens each.
        bounds: (texts + 1,) where each text begins, for attention that takes all of them at once, in place of blocks.
        longest: tokens of the longest text, likewise.
    """

    blocks: tuple[tuple[int, int], ...] = ()
    bounds: Tensor | None = None
    longest: int = 0

    @property
    def sizes(self) -> list[int]:
        """Tokens of each block."""
        return [texts * length for texts, length in self.blocks]


def joins(decoder: Any) -> bool:
    """Whether a decoder's tokens see others through plain causal attention only, by torch's function.

    Not with windows, soft caps, angles that depend on the longest text of a call, or layers that carry a state along.
    """
    config = decoder.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        decoder.config._attn_implementation in ("sdpa", NAME)
        and bool(getattr(decoder, "_supports_attention_backend", False))
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not any(getattr(config, key, None) for key in OTHER_ATTENTION)
        and rope.get("rope_type", "default") in BY_POSITION
        and not any(isinstance(module, nn.Conv1d) for module in decoder.modules())
    )


def way_to_join(decoder: Any, device: torch.device, dtype: torch.dtype) -> Way | None:
    """How texts share a call of the decoder on a device; None: they cannot.

    A CPU can take them one by one. A GPU would wait for so many kernels, and has torch's `varlen_attn` for all at once,
    if that gives there what attention gives one by one (it is tried); else whole blocks are taken with their padding.
    """
    if not joins(decoder):
        return None
    if device.type == "cpu":
        return "one by one"
    config = decoder.config.get_text_config()
    if device.type != "cuda" or varlen_attn is None or getattr(config, "attention_dropout", None):
        return "padded"
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    try:
        return "at once" if varlen_agrees(device, dtype, heads, groups or heads, width) else "padded"
    except (RuntimeError, TypeError, ValueError):  # no kernel for this card or type; arguments of another torch
        return "padded"


def varlen_agrees(device: torch.device, dtype: torch.dtype, heads: int, groups: int, width: int) -> bool:
    """Whether three texts at once give what each gives alone, gradients too, as far as half precision can tell."""
    lengths, draw = [5, 40, 17], torch.Generator(device).manual_seed(0)
    shapes = [(sum(lengths), n, width) for n in (heads, groups, groups, heads)]
    *given, pulled = (torch.randn(s, device=device, dtype=dtype, generator=draw) for s in shapes)
    bounds = torch.tensor([0, 5, 45, 62], dtype=torch.int32, device=device)

    def one_by_one(*given: Tensor) -> Tensor:
        parts = [[part.transpose(0, 1)[None] for part in tensor.split(lengths)] for tensor in given]
        attend = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
        of_each = [attend(*own) for own in zip(*parts)]
        return torch.cat([out[0].transpose(0, 1) for out in of_each])

    found = []
    for attention in (one_by_one, partial(_all_texts, bounds=bounds, longest=40, scale=None)):
        own = [tensor.clone().requires_grad_() for tensor in given]
        with torch.enable_grad():
            out = attention(*own)
        found.append([out.detach(), *torch.autograd.grad(out, own, pulled)])
    return all(bool((a - b).norm() <= 0.02 * a.norm()) for a, b in zip(*found))


@contextmanager
def joining(decoder: Any) -> Iterator[None]:
    """While it is open, `joined_states` can be called, and the backward pass of what it returns; other calls are as
    ever."""
    config = decoder.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def joined_states(decoder: Any, parts: Sequence[Texts], way: Way, call: Call | None = None) -> list[Tensor]:
    """(B, T, D) last-layer states of the ids (B, T) of each part, by one call; zeros at padding that was left out.

    Args:
        call: what gives them in place of `decoded`.
    """
    packed = way != "padded"
    tokens = [_tokens(part, packed) for part in parts]
    ids = torch.cat([part.ids.flatten()[place] for part, (place, _) in zip(parts, tokens)])
    positions = torch.cat([position for _, position in tokens])
    hidden = (call or partial(decoded, decoder))(ids, positions, _layout(parts, way))
    own = hidden.split([len(position) for _, position in tokens])
    if packed:  # back to where they stand in (B * T)
        flat = [hidden.new_zeros(part.ids.numel(), hidden.shape[1]) for part in parts]
        own = tuple(to.index_copy(0, place, states) for to, (place, _), states in zip(flat, tokens, own))
    return [states.view(*part.ids.shape, -1) for states, part in zip(own, parts)]


def decoded(decoder: Any, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """(N, D) last-layer states of ids (N,) that lie as `layout` says; while `joining` is open."""
    prepared = ids.new_zeros(1, 1, 1, 1)  # a mask of four dimensions is handed through: transformers makes none
    return decoder(
        input_ids=ids[None], attention_mask=prepared, position_ids=positions[None], use_cache=False, layout=layout
    ).last_hidden_state[0]


def _tokens(part: Texts, packed: bool) -> tuple[Tensor, Tensor]:
    """(n,) of each token that is run: its place in the flattened ids (B * T), and its position in its text."""
    width, device = part.ids.shape[1], part.ids.device
    if not packed:
        place = torch.arange(part.ids.numel(), device=device)
        return place, place % width
    total = int(part.lengths.sum())
    text = torch.repeat_interleave(part.ends, output_size=total)  # (n,)
    position = torch.arange(total, device=device) - (part.ends.cumsum(0) - part.ends)[text]
    return text * width + position, position


def _layout(parts: Sequence[Texts], way: Way) -> Layout:
    if way == "padded":
        return Layout(tuple((len(part.ids), part.ids.shape[1]) for part in parts))
    lengths = np.concatenate([part.lengths for part in parts]).tolist()
    if way == "one by one":
        return Layout(tuple((len(list(same)), length) for length, same in groupby(lengths)))
    bounds = F.pad(torch.cat([part.ends for part in parts]).cumsum(0), (1, 0)).int()
    return Layout(bounds=bounds, longest=max(lengths))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(1, N, heads, D) of queries (1, heads, N, D), keys and values (1, groups, N, D), which lie as `layout` says."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (N, heads, D) each
    if layout.bounds is not None:
        return _all_texts(query, key, value, layout.bounds, layout.longest, scaling)[None], None
    out = []
    for block, *given in zip(layout.blocks, *(tensor.split(layout.sizes) for tensor in (query, key, value))):
        q, k, v = (part.unflatten(0, block).transpose(1, 2) for part in given)  # (texts, heads, length, D) each
        out.append(sdpa_attention_forward(module, q, k, v, None, dropout, scaling, **kwargs)[0].flatten(0, 1))
    return torch.cat(out)[None], None


def _all_texts(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float | None) -> Tensor:
    """(N, heads, D): causal attention of each text, by one kernel."""
    grouped = query.shape[1] != key.shape[1]
    attend: Any = varlen_attn  # torch's hint leaves open whether statistics are returned too
    return attend(
        query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=grouped
    )


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)  # for calls without a layout
