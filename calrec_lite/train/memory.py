"""What a step will need, before it is run: how many rows fit in memory at once."""

import psutil
import torch
from transformers import PretrainedConfig

SHARE = 0.5  # of the free memory that activations may take; the rest is for weights, buffers and other programs


def activation_bytes(config: PretrainedConfig, checkpointing: bool) -> int:
    """Bytes kept for backward per token of a row.

    Without checkpointing each layer keeps the inputs of its linear layers and its norms (in bf16, the norms in
    fp32); with it only each layer's input, and one layer's worth while that is recomputed.
    """
    text = config.get_text_config()
    hidden, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    layer = 2 * (10 * hidden + 5 * inner) + 8 * hidden
    return layers * 2 * hidden + layer if checkpointing else layers * layer


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def auto_micro_batch(
    config: PretrainedConfig, batch_size: int, row_tokens: int, checkpointing: bool, device: torch.device
) -> int:
    """Rows at once: the whole batch if it fits, else the largest equal part of it that does, at least one.

    Args:
        row_tokens: length of the longest row.
    """
    room = int(SHARE * free_bytes(device)) // activation_bytes(config, checkpointing)
    fits = max(1, room // row_tokens)
    return batch_size if fits >= batch_size else -(-batch_size // -(-batch_size // fits))


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held so far: on the GPU, or resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
