"""Where models run, and in which number type: bfloat16 where this machine multiplies it faster than float32."""

import json
import time
from dataclasses import dataclass
from functools import cache
from os import environ
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

from calrec_lite.errors import InputError
from calrec_lite.recipe import Base
from calrec_lite.threads import described

DType = Literal["bfloat16", "float16", "float32"]
AskedDType = Literal["auto", "bfloat16", "float16", "float32"]

PROBE_SECONDS = 0.1
PROBE_TOKENS = 128  # in a product, enough for it to be bound by arithmetic
PROBE_WEIGHTS = 1 << 18  # a larger layer is cut to so many: a product then takes some milliseconds of one thread
FASTER = 0.9  # of float32's time, or less: a gain large enough that a second probe would find it again
SMALLEST = 1 << 16  # weights of a layer below which no type gains: time goes into the calls, and a probe is chance
USUAL = 1024, 4096  # width of the states, and of the MLP between them
WIDEST = 1 << 17  # no model is: a config that says so would take memory for the probe
SLOWER = 1.5  # times as long as float32: worth a warning where the recipe asks for the type
AMPERE = (8, 0)  # compute capability from which a GPU multiplies bfloat16


@dataclass(frozen=True)
class Choice:
    """A number type and why it is computed in."""

    dtype: DType
    why: str


def device() -> torch.device:
    """Where models run: the first CUDA device of this process if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def choose_dtype(base: Base, folder: Path, where: torch.device | None = None) -> Choice:
    """The number type that weights are loaded and multiplied in (docs/architecture.md).

    One that the recipe asks for is obeyed; `auto` follows the device. On a CPU a probe of a tenth of a second decides,
    on a GPU its compute capability: bfloat16 from Ampere on, on older ones float16 around NF4 weights, else float32.

    Args:
        base: `dtype` as asked for.
        folder: of the weights, whose config has the sizes that are probed.
        where: default: `device()`.
    """
    if base.dtype != "auto":
        return Choice(base.dtype, "as base.dtype asks")
    where = where or device()
    if where.type == "cuda":
        capability = torch.cuda.get_device_capability(where)
        reason = f"compute capability {capability[0]}.{capability[1]}"
        if capability >= AMPERE:
            return Choice("bfloat16", reason)
        # Around NF4 weights float16 is tried before training (`training/float16.py`): its range is small.
        older: DType = "float16" if base.load_in_4bit else "float32"
        return Choice(older, f"{reason}; units for bfloat16 came with {AMPERE[0]}.{AMPERE[1]}")
    factor = half_time(torch.bfloat16, *_sizes(folder))
    if factor < FASTER:
        return Choice("bfloat16", f"took {factor:.2g} times float32's time in a probe")
    return Choice("float32", f"bfloat16 took {factor:.2g} times its time in a probe")


def slow_at(dtype: DType, folder: Path, where: torch.device | None = None) -> str | None:
    """A warning where this machine is slow at a number type; None where it is not."""
    where = where or device()
    if dtype == "float32":
        return None
    if where.type == "cuda":
        supported = dtype == "float16" or torch.cuda.get_device_capability(where) >= AMPERE
        return None if supported else "this GPU has no units for bfloat16: float32 is faster on it"
    factor = half_time(getattr(torch, dtype), *_sizes(folder))
    return f"{dtype} is about {factor:.0f} times slower here than float32" if factor > SLOWER else None


def dtype_here(folder: Path, asked: AskedDType = "auto", where: torch.device | None = None) -> Choice:
    """The number type in which weights that are only used, not trained on, are loaded on this machine.

    Never float16 by itself: nothing is tried here before lists are made.

    Raises:
        InputError: there is no such type.
    """
    if asked not in get_args(AskedDType):
        raise InputError(f"dtype: {asked}; write one of {', '.join(get_args(AskedDType))}")
    return choose_dtype(Base(model=str(folder), dtype=asked, load_in_4bit=False), folder, where)


def described_device(choice: Choice, folder: Path) -> str:
    """One line: the device, its threads or name, the number type and why; and one more where it is slow at that."""
    where = device()
    name = described(torch.get_num_threads()) if where.type == "cpu" else torch.cuda.get_device_name(where)
    slow = slow_at(choice.dtype, folder, where)
    warning = f"\nWARNING: {slow}; base.dtype: auto would take that" if slow else ""
    return f"device: {where.type.upper()}, {name}; {choice.dtype}: {choice.why}{warning}"


def _sizes(folder: Path) -> tuple[int, int]:
    """Width of the states, and of the MLP between them; usual ones where the config does not say (loading it will)."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config", config)
        sizes = int(text["hidden_size"]), int(text["intermediate_size"])
        return sizes if all(0 < size <= WIDEST for size in sizes) else USUAL
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return USUAL


@cache  # one process has one answer: models that are compared are of one type
def half_time(half: torch.dtype, hidden: int, inner: int) -> float:
    """How many times as long as in float32 a linear layer takes in 16 bits on this CPU, forward and backward.

    Of one thread, so that other programs' threads disturb it little; of products in turns, the best of each type.
    As long (1.0) for a layer too small to tell.
    """
    if hidden * inner < SMALLEST:
        return 1.0
    generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are
    weight = torch.randn(min(inner, max(64, PROBE_WEIGHTS // hidden)), hidden, generator=generator)
    states = torch.randn(PROBE_TOKENS, hidden, generator=generator)
    pairs = {dtype: (states.to(dtype), weight.to(dtype)) for dtype in (torch.float32, half)}
    best = dict.fromkeys(pairs, float("inf"))
    threads, start = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        while time.perf_counter() - start < PROBE_SECONDS:
            for dtype, pair in pairs.items():
                best[dtype] = min(best[dtype], _seconds(*pair))
    finally:
        torch.set_num_threads(threads)
    return best[half] / best[torch.float32]


@torch.no_grad()
def _seconds(states: Tensor, weight: Tensor) -> float:
    """Of a layer's product and that of its gradient, (T, D) @ (D, F) @ (F, D)."""
    start = time.perf_counter()
    linear(states, weight) @ weight
    return time.perf_counter() - start
