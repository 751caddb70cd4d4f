"""The memory that a model takes: what there is, what a token keeps for the backward pass, and what to give back."""

import ctypes
import gc
import sys
from typing import TYPE_CHECKING, Any

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

from calrec_lite.ram import free_ram

if TYPE_CHECKING:  # PEFT and bitsandbytes take seconds to load, and lists without the LLM need neither
    from peft import PeftModel

# Messages of errors about memory that have no class for it: of the driver (page-locked memory), and of cuBLAS.
OOM_ERRORS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

CUDA_BYTES = 5e8  # that CUDA itself takes (docs/bases.md)
_glibc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None  # or another libc, without the calls below
M_MMAP_THRESHOLD = -3  # of mallopt
OWN_PAGES = 256 * 1024  # bytes of a tensor that gets pages of its own


def activation_bytes(model: "PeftModel", checkpointing: bool | str) -> int:
    """Bytes kept for backward per token of a row.

    Without checkpointing each layer keeps the inputs of its linear layers (in the dtype that is computed in) and its
    norms (in fp32); with it only each layer's input, and one layer's worth while that is recomputed; with `offload`
    the inputs are in RAM.
    """
    text, width = model.config.get_text_config(), state_bytes(model)
    hidden, layers = text.hidden_size, text.num_hidden_layers
    layer = layer_bytes(model.config, width, _widest(model))
    if checkpointing == "offload":
        return layer
    return layers * width * hidden + layer if checkpointing else layers * layer


def layer_bytes(config: Any, width: int, widest: int) -> int:
    """Bytes of all that one layer makes of a token: the inputs of its linear layers, and its norms in fp32.

    Args:
        width: bytes of a number of the states.
        widest: inputs of the widest linear layer, where the config does not say.
    """
    text = config.get_text_config()
    hidden, inner = text.hidden_size, getattr(text, "intermediate_size", None) or widest
    return width * (10 * hidden + 5 * inner) + 8 * hidden


def _widest(model: "PeftModel") -> int:
    """Inputs of the widest adapted layer: of an MLP's second one, whatever a config calls it."""
    from peft.tuners.lora import LoraLayer

    return max((m.in_features or 0 for m in model.modules() if isinstance(m, LoraLayer)), default=0)


def state_bytes(model: "PeftModel") -> int:
    """Bytes of a number of the states."""
    return model.get_input_embeddings().weight.dtype.itemsize


def cache_bytes(decoder: Any) -> int:
    """Bytes of a token's keys and values in all layers, as a config says; 0 where it does not."""
    text = decoder.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 0
    width = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    groups = getattr(text, "num_key_value_heads", None) or heads
    return 2 * int(getattr(text, "num_hidden_layers", 0)) * groups * width * next(decoder.parameters()).dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_ram()


def unused_bytes(device: torch.device) -> int:
    """`free_bytes`, and what this process holds of a GPU's memory without using it."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return free_bytes(device) + held


def free_memory() -> None:
    """Give back what nothing refers to any more; models and trainers are in reference cycles."""
    from bitsandbytes.functional import GlobalPageManager
    from bitsandbytes.optim import GlobalOptimManager

    GlobalOptimManager.get_instance().initialize()  # 8-bit optimisers leave the embeddings they skipped in it
    GlobalPageManager.get_instance().initialize()  # and paged ones leave their states in it
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_heap(device: torch.device) -> None:
    """On a CPU, before each chunk of a step that is cut: give freed pages back to the system.

    glibc keeps what is freed, and the tensors of a chunk of another shape do not fit into the holes: what a process
    holds would grow with the number of shapes that it has seen (docs/training.md, Memory). So large tensors get pages
    of their own from here on, which go back when they are freed. Nothing without glibc.
    """
    if device.type == "cpu" and hasattr(_glibc, "mallopt") and hasattr(_glibc, "malloc_trim"):
        _glibc.mallopt(M_MMAP_THRESHOLD, OWN_PAGES)  # with a number given, glibc no longer raises its own
        _glibc.malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in OOM_ERRORS) or should_reduce_batch_size(error)  # type: ignore[arg-type]


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held so far: on the GPU, or resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
