"""bitsandbytes and torch together: a linear layer in NF4, forward and backward, beside its own weights unpacked."""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit

TOLERANCE = 2e-2  # of the largest number: fused kernels add up in another order
ROUNDING = 0.2  # NF4 changes a weight by so much of the largest one, at most about


def four_bits_error(where: torch.device) -> str:
    """What is wrong with an NF4 product on a device, in words; "" where nothing is."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator)
    states = torch.randn(8, 128, generator=generator).to(where).requires_grad_()
    layer = Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    layer = layer.to(where)  # packed as it gets there
    product = layer(states)
    product.sum().backward()
    packed: Any = layer.weight
    unpacked = dequantize_4bit(packed.data, packed.quant_state).float()  # (64, 128)
    if (unpacked - weight.to(where)).abs().max() > ROUNDING * weight.abs().max():
        return "weights do not come back as they were packed"
    if not _near(product, states @ unpacked.T):
        return "its product is not that of its weights"
    if states.grad is None or not _near(states.grad, unpacked.sum(0).expand(8, -1)):
        return "its gradient is not that of its weights"
    return ""


def _near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
