"""How many rows fit in memory at once: estimated before a step is run, corrected by what it turned out to need."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState

from calrec_lite.errors import InputError
from calrec_lite.files import write_json
from calrec_lite.launcher import processes_here
from calrec_lite.method.rows import Rows
from calrec_lite.model.memory import activation_bytes, free_bytes, state_bytes
from calrec_lite.model.sharded import is_sharded
from calrec_lite.ram import free_ram
from calrec_lite.recipe import Loss, Text
from calrec_lite.stored import read_object

SHARE = 0.5  # of the free memory that activations may take; the rest is for weights, buffers and other programs
NAME = "MicroBatch"  # under which checkpoints keep a size that was halved


def check_offload(model: PeftModel, batch_size: int, row_tokens: int) -> None:
    """Raise InputError where RAM has no room for what `offload` keeps of a step: each layer's input.

    Args:
        row_tokens: of the longest row and of the item texts that are contrasted with it.
    """
    text = model.config.get_text_config()
    needed = state_bytes(model) * text.hidden_size * text.num_hidden_layers * batch_size * row_tokens
    free = free_ram()
    if torch.cuda.is_available():  # pinned by a stage before, and used again
        free += torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    if needed > free:
        raise InputError(
            f"optim.gradient_checkpointing: offload keeps {needed / 1e9:.1f} GB of a step of {batch_size} rows in RAM, "
            f"and {free / 1e9:.1f} GB are free: set it to true, or lower optim.batch_size or text.max_history_tokens"
        )


def auto_micro_batch(
    model: PeftModel, batch_size: int, row_tokens: int, checkpointing: bool | str, device: torch.device, spared: int = 0
) -> int:
    """Rows at once: the whole batch if it fits, else the largest equal part of it that does, at least one.

    Args:
        row_tokens: of the longest row and of the item texts that are contrasted with it.
        spared: bytes that will be free besides, once training begins (`training.vocabulary`); less than 0: taken.
    """
    beside = processes_here() if device.type == "cpu" else 1  # processes in the same RAM
    free = max(0, free_bytes(device) + spared) / beside
    tokens = int(SHARE * free) // activation_bytes(model, checkpointing)
    rows = max(1, tokens // row_tokens)
    return batch_size if rows >= batch_size else -(-batch_size // -(-batch_size // rows))


class MicroBatch(TrainerCallback):
    """How many full-length rows are in memory at once.

    Halved when memory runs out; checkpoints record that, so that a resumed run does not run out again. Where it was
    estimated (`auto`) and the device is a GPU, doubled while the measured peak leaves room. On a CPU it does not grow:
    memory is shared with other programs there, and a resumed run has to cut its steps as the first one did to end in
    the same bits.

    Args:
        size: to begin with.
        most: rows of a step.
        grows: whether it may be doubled.
    """

    AFTER = 10  # steps of one size before it is doubled
    SAFE = 0.9  # share of the device's memory that a doubled size may need

    def __init__(self, size: int, most: int, grows: bool) -> None:
        self.size, self.most = min(size, most), most
        self.grows = grows and self.size < most
        self.shrunk = False
        self.fitting_steps = 0

    def shrink(self) -> bool:
        """Halve it, for good. False if it is one already."""
        self.fitting_steps, self.grows = 0, False
        if self.size == 1:
            return False
        self.size = -(-self.size // 2)
        self.shrunk = True
        return True

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        saved = state.stateful_callbacks
        if isinstance(saved, dict) and NAME in saved:
            size = int(saved[NAME]["size"])
            self.size = size if self.grows else min(size, self.size)  # an estimate may have grown, then been halved
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
        self.fitting_steps += 1
        if not self.grows or self.fitting_steps < self.AFTER:
            return False
        self.fitting_steps = 0
        if resting + 2 * (peak - resting) > self.SAFE * room:
            return False
        self.size = min(self.most, 2 * self.size)
        self.grows = self.size < self.most
        return True


def row_tokens(loss: Loss, text: Text, rows: Rows) -> int:
    """The most tokens that a row brings: its own, and those of its item texts in pass A."""
    texts = min(loss.contrast_per_row or text.max_items, text.max_items) if loss.contrastive else 0
    return int(rows.length.max()) + texts * (1 + text.max_item_tokens)  # each after a start token


def remembered_estimate(
    file: Path,
    model: PeftModel,
    batch_size: int,
    row_tokens: int,
    checkpointing: bool | str,
    device: torch.device,
    spared: int = 0,
) -> int:
    """The estimate of the first start, from `file`: cut as they were then, a resumed run's steps give the same bits.

    Made anew where `checkpointing` was changed since, or the base is split among processes and was not; a size that
    memory has halved stays that small.
    """
    kind = {"gradient_checkpointing": checkpointing, "split": is_sharded(model)}
    estimate = read_object(file, "remove it, and the size is estimated anew") if file.is_file() else {}
    known = estimate.get("micro_batch_size")
    if not isinstance(known, int) or known < 1 or {"split": False, **estimate} != {"micro_batch_size": known, **kind}:
        rows = auto_micro_batch(model, batch_size, row_tokens, checkpointing, device, spared)
        estimate = {"micro_batch_size": rows, **kind}
        write_json(file, estimate)
    return int(estimate["micro_batch_size"])
