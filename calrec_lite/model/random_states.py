"""The random states that a forward draws from: recorded, and gone back to."""

import torch
from torch import Tensor

RngState = tuple[Tensor, Tensor | None, torch.device]


def rng_state(device: torch.device) -> RngState:
    """The random states that a forward on the device draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None, device


def set_rng_state(state: RngState) -> None:
    """Go back to what `rng_state` returned."""
    cpu, cuda, device = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
