"""How many rows fit in memory at once: what a step will need, before it is run, and what it turned out to need."""

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from bitsandbytes.functional import GlobalPageManager
from bitsandbytes.optim import GlobalOptimManager
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback, TrainerControl, TrainerState

from calrec_lite.errors import InputError

SHARE = 0.5  # of the free memory that activations may take; the rest is for weights, buffers and other programs
NAME = "MicroBatch"  # under which checkpoints keep a size that was halved
# Lack of memory that comes as no error of its own kind: from the driver, where page-locked memory is asked for; cuBLAS.
LACKING = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc's


def activation_bytes(model: PeftModel, checkpointing: bool | str) -> int:
    """Bytes kept for backward per token of a row.

    Without checkpointing each layer keeps the inputs of its linear layers (in the dtype that is computed in) and its
    norms (in fp32); with it only each layer's input, and one layer's worth while that is recomputed; with `offload`
    the inputs are in RAM.
    """
    text, width = model.config.get_text_config(), _width(model)
    hidden, layers = text.hidden_size, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None) or _widest(model)
    layer = width * (10 * hidden + 5 * inner) + 8 * hidden
    if checkpointing == "offload":
        return layer
    return layers * width * hidden + layer if checkpointing else layers * layer


def _widest(model: PeftModel) -> int:
    """Inputs of the widest adapted layer: of an MLP's second one, whatever a config calls it."""
    return max(m.in_features or 0 for m in model.modules() if isinstance(m, LoraLayer))


def _width(model: PeftModel) -> int:
    """Bytes of a number of the states."""
    return model.get_input_embeddings().weight.dtype.itemsize


def check_offload(model: PeftModel, batch_size: int, row_tokens: int) -> None:
    """Raise InputError where RAM has no room for what `offload` keeps of a step: each layer's input.

    Args:
        row_tokens: of the longest row and of the item texts that are contrasted with it.
    """
    text = model.config.get_text_config()
    needed = _width(model) * text.hidden_size * text.num_hidden_layers * batch_size * row_tokens
    free = free_ram()
    if torch.cuda.is_available():  # pinned by a stage before, and used again
        free += torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    if needed > free:
        raise InputError(
            f"optim.gradient_checkpointing: offload keeps {needed / 1e9:.1f} GB of a step of {batch_size} rows in RAM, "
            f"and {free / 1e9:.1f} GB are free: set it to true, or lower optim.batch_size or text.max_history_tokens"
        )


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_ram()


def free_ram(group: Path = Path("/sys/fs/cgroup")) -> int:
    """RAM that can still be taken: of the machine's, and of what a container may have."""
    free = psutil.virtual_memory().available
    for most, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            statistics = dict(line.split() for line in (group / most).with_name("memory.stat").read_text().splitlines())
            # Files that were read are given back before anything else is.
            held = int((group / used).read_text()) - int(statistics[cache])
            free = min(free, int((group / most).read_text()) - held)
        except (OSError, ValueError, KeyError):  # another version of it, no group, or no limit ("max")
            continue
    return max(0, free)


def free_memory() -> None:
    """Give back what no name holds any more; models and trainers point to themselves in circles."""
    GlobalOptimManager.get_instance().initialize()  # 8-bit optimisers leave the embeddings they skipped in it
    GlobalPageManager.get_instance().initialize()  # and paged ones their states
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_heap(device: torch.device) -> None:
    """Before a chunk of a step that is cut, on a CPU: give back the pages that others have left.

    glibc keeps what is freed, and the tensors of a chunk of another shape do not fit into the holes: what a process
    holds would grow with the number of shapes that it has seen (docs/training.md, Memory). Nothing without glibc.
    """
    if device.type == "cpu" and _malloc_trim:
        _malloc_trim(0)


def auto_micro_batch(
    model: PeftModel, batch_size: int, row_tokens: int, checkpointing: bool | str, device: torch.device
) -> int:
    """Rows at once: the whole batch if it fits, else the largest equal part of it that does, at least one.

    Args:
        row_tokens: of the longest row and of the item texts that are contrasted with it.
    """
    room = int(SHARE * free_bytes(device)) // activation_bytes(model, checkpointing)
    fits = max(1, room // row_tokens)
    return batch_size if fits >= batch_size else -(-batch_size // -(-batch_size // fits))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(said in str(error) for said in LACKING) or should_reduce_batch_size(error)  # type: ignore[arg-type]


class MicroBatch(TrainerCallback):
    """How many full-length rows are in memory at once.

    Halved when memory runs out, which checkpoints keep: a resumed run does not run into it again. Where it was
    estimated (`auto`) and the device is a GPU, doubled while the measured peak leaves room. On a CPU it does not grow:
    memory is shared with other programs there, and a resumed run has to cut its steps as the first one did to end in
    the same bits.

    Args:
        size: to begin with.
        most: rows of a step.
        grows: whether it may be doubled.
    """

    AFTER = 10  # steps of one size before it is doubled
    SAFE = 0.9  # of the device's memory that may be planned with

    def __init__(self, size: int, most: int, grows: bool) -> None:
        self.size, self.most = min(size, most), most
        self.grows = grows and self.size < most
        self.shrunk = False
        self.good = 0

    def shrink(self) -> bool:
        """Halve it, for good. False if it is one already."""
        self.good, self.grows = 0, False
        if self.size == 1:
            return False
        self.size = -(-self.size // 2)
        self.shrunk = True
        return True

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        kept = state.stateful_callbacks
        if isinstance(kept, dict) and NAME in kept:
            size = int(kept[NAME]["size"])
            self.size = size if self.grows else min(size, self.size)  # an estimate had grown before it was too much
            self.grows, self.shrunk = False, True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.shrunk:
            assert isinstance(state.stateful_callbacks, dict)
            state.stateful_callbacks[NAME] = {"size": self.size}

    def grow(self, resting: int, peak: int, room: int) -> bool:
        """After a step that fitted: double the size if it has fitted often enough and twice as much would fit too.

        Args:
            resting: bytes held between steps. peak: the most held since the size was set. room: what there is.
        """
        self.good += 1
        if not self.grows or self.good < self.AFTER:
            return False
        self.good = 0
        if resting + 2 * (peak - resting) > self.SAFE * room:
            return False
        self.size = min(self.most, 2 * self.size)
        self.grows = self.size < self.most
        return True


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held so far: on the GPU, or resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
