"""A linear layer and its LoRA adapter as one function: fewer kernels, forward and backward, for the same gradients.

PEFT adds the adapter's part by operations of their own, and autocast casts each adapter's weights in each forward. Here
products add to what is there, and weights are cast once for all forwards of a step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass
class _Adapter:
    """What one layer computes: x W^T + scale (x A^T) B^T; `down` (r, in) is A, `up` (out, r) is B, cast."""

    base: Any
    down: Tensor
    up: Tensor
    scale: float

    def weight(self) -> Tensor:
        """(out, in) of the frozen layer, in the adapter's type."""
        weight = self.base.weight
        if isinstance(self.base, Linear4bit):
            weight = dequantize_4bit(weight.data.view(-1, 1), weight.quant_state)
        return weight.to(self.down.dtype)


@contextmanager
def fused(layers: Sequence[LoraLayer], dtype: torch.dtype) -> Iterator[None]:
    """While it is open these layers run so, where they are plain ones; their backward pass has to end meanwhile.

    DoRA, dropout, int8, a bias in the adapter, or several adapters at once are left to PEFT.

    Args:
        dtype: that is computed in.
    """
    plain: list[Any] = [layer for layer in layers if _is_plain(layer)]
    trained = [half[layer.active_adapters[0]].weight for layer in plain for half in (layer.lora_A, layer.lora_B)]
    weights = [weight.detach() for weight in trained]
    if plain and dtype is not torch.float32:
        weights = [torch.empty_like(weight, dtype=dtype) for weight in trained]
        with torch.no_grad():
            torch._foreach_copy_(weights, trained)  # all of them by few kernels
    for n, layer in enumerate(plain):
        scale = layer.scaling[layer.active_adapters[0]]
        adapter = _Adapter(layer.get_base_layer(), weights[2 * n], weights[2 * n + 1], scale)
        layer.forward = partial(_forward, adapter, trained[2 * n], trained[2 * n + 1])
    try:
        yield
    finally:
        for layer in plain:
            del layer.forward


def _is_plain(layer: Any) -> bool:
    if type(layer) not in (LoraLinear, LoraLinear4bit) or len(layer.active_adapters) != 1:
        return False
    (name,), base = layer.active_adapters, layer.get_base_layer()
    return (
        name in layer.lora_A
        and name not in layer.lora_variant  # DoRA
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and not layer.lora_bias[name]
        and not layer.fan_in_fan_out
        and not layer.merged
        and not layer.disable_adapters
        and type(base) in (nn.Linear, Linear4bit)
        and not base.weight.requires_grad
    )


def _forward(adapter: _Adapter, down: Tensor, up: Tensor, states: Tensor) -> Tensor:
    """(..., out) of states (..., in)."""
    return _AdaptedLinear.apply(states.to(adapter.down.dtype), down, up, adapter)


class _AdaptedLinear(torch.autograd.Function):
    """Keeps for the backward pass what PEFT's operations keep: the input, and its product with A."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, down: Tensor, up: Tensor, adapter: _Adapter) -> Tensor:
        flat = states.flatten(0, -2)  # (N, in)
        low = flat @ adapter.down.T  # (N, r)
        out = adapter.base(flat)  # (N, out)
        out.addmm_(low, adapter.up.T, alpha=adapter.scale)
        ctx.save_for_backward(flat, low)
        ctx.adapter = adapter
        return out.view(*states.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:  # type: ignore[override]
        adapter, (flat, low) = ctx.adapter, ctx.saved_tensors
        pulled = gradient.flatten(0, -2)  # (N, out)
        of_low = pulled @ adapter.up  # (N, r)
        of_states = None
        if ctx.needs_input_grad[0]:
            of_states = pulled @ adapter.weight()
            of_states.addmm_(of_low, adapter.down, alpha=adapter.scale)
            of_states = of_states.view(*gradient.shape[:-1], -1)
        of_down, of_up = (
            torch.addmm(weight, pull.T, states, beta=0, alpha=adapter.scale).float()
            for weight, pull, states in ((adapter.down, of_low, flat), (adapter.up, pulled, low))
        )
        return of_states, of_down, of_up, None
