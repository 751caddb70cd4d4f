"""Fewer kernels by torch.compile: a decoder's layers fused, forward and backward."""

import os
import shutil
import sys
import time
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from calrec_lite.errors import InputError
from calrec_lite.files import cache_folder

RECOMPILE_LIMIT = 64  # one row or many, with and without gradients, checkpointed: kinds of call, each compiled once


def compile_layers(decoder: nn.Module, device: torch.device) -> None:
    """Fuse the kernels of each decoder layer, forward and backward, by torch.compile: for training only.

    By layer, as they are alike: one is compiled, for any (B, T), and serves all. A small model on a GPU waits for
    its host to launch kernels, and fused ones are fewer; they also keep less for the backward pass.

    Raises:
        InputError: there is nothing to compile with, or the decoder is of a kind whose layers are not known.
    """
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise InputError(f"optim.compile: the layers of a {type(decoder).__name__} are not known: set it to false")
    if not shutil.which(compiler()):
        raise InputError(
            f"optim.compile: torch.compile needs a C++ compiler, and {compiler()} is not here: install it (Debian: "
            "apt install g++), name another in CXX, or set it to false"
        )
    if device.type == "cuda" and not find_spec("triton"):
        raise InputError("optim.compile: torch.compile needs triton on a GPU: pip install triton, or set it to false")
    _keep_kernels()
    _stopwatch.start()
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    for layer in layers:  # dropout draws as it would uncompiled, in a first and in a replayed pass
        layer.compile(dynamic=True, options={"fallback_random": True})


def is_compiled(decoder: nn.Module) -> bool:
    """Whether `compile_layers` was called on it."""
    return any(layer._compiled_call_impl is not None for layer in getattr(decoder, "layers", ()))


def _keep_kernels() -> None:
    """A folder for compiled kernels that outlives a restart, one for each set of instructions; one that the user has
    named stays.

    torch's cache does not tell kernels for one set from those for another: found there by a process with other
    instructions, they crash, or give what is no number. Importing a library may already have written torch's own
    default, a temporary folder, into the environment: that is nobody's wish.
    """
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if named in (None, os.path.abspath(default_cache_dir())):
        kernels = f"{torch.__version__}-{torch.backends.cpu.get_cpu_capability()}"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "compiled" / kernels)


class _Stopwatch:
    """Counts the seconds that torch.compile takes in this process."""

    seconds = began = 0.0

    def start(self) -> None:
        """Again after `torch._dynamo.reset`, which forgets who asked to be told."""
        if self._begin not in torch._dynamo.callback_handler.start_callbacks:
            torch._dynamo.on_compile_start(self._begin)
            torch._dynamo.on_compile_end(self._end)

    def _begin(self, args: Any) -> None:
        self.began = time.perf_counter()

    def _end(self, args: Any) -> None:
        self.seconds += time.perf_counter() - self.began


_stopwatch = _Stopwatch()


def seconds_without_compiling() -> float:
    """Seconds from any moment on, of a clock that stands while layers are compiled, in a training's first steps."""
    return time.perf_counter() - _stopwatch.seconds


def compiler() -> str:
    """The C++ compiler that torch.compile will call."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
