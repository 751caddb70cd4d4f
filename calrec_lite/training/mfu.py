"""Model FLOPs utilisation: what a step has to compute, against what the device can (docs/training.md)."""

import time

import torch
from torch import nn
from transformers import PretrainedConfig

from calrec_lite.method.batch import StepBatch

ROUNDS = 3
PATIENCE = 0.5  # seconds of one product, after which no second one is timed
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices that are multiplied to learn the device's rate


class StepFlops:
    """Floating point operations that training needs, whatever is computed twice to save memory.

    A token costs 2 operations a weight forward and 2 for the gradient of the states; the adapter's weights cost 2
    more for their own gradient. A pair of positions that see each other costs 4 a head dimension and layer
    forward and 8 backward. A logit costs 4 a hidden dimension (the head is frozen). Padding, dequantisation,
    norms and a second forward count as nothing, so the utilisation cannot be flattered by waste. Windows of
    sliding layers are not subtracted.
    """

    def __init__(self, decoder: nn.Module, config: PretrainedConfig) -> None:
        linear = [m for m in decoder.modules() if isinstance(m, nn.Linear)]
        self.adapter = sum(m.weight.numel() for m in linear if m.weight.requires_grad)
        # a 4-bit weight is packed: its numel() is not its size
        self.frozen = sum(m.in_features * m.out_features for m in linear if not m.weight.requires_grad)
        text = config.get_text_config()
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        self.attention, self.hidden, self.vocabulary = (
            text.num_hidden_layers * heads * width,
            text.hidden_size,
            text.vocab_size,
        )

    def __call__(self, batch: StepBatch) -> float:
        logits = batch.vocabulary_positions * self.vocabulary + batch.fork_entries
        return float(
            batch.tokens * (4 * self.frozen + 6 * self.adapter)
            + 12 * batch.attended * self.attention
            + 4 * logits * self.hidden
        )


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product, the best of a few; well under a second of work."""
    side = SIDE[device.type]
    square = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(ROUNDS + 1):  # the first builds the kernel
        start = time.perf_counter()
        float((square @ square)[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - start)
        if best > PATIENCE:  # a type that this machine is slow at
            break
    return 2 * side**3 / best
