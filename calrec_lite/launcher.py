"""Which processes a launcher (torchrun, `accelerate launch`, `train --nproc`) started together, by its environment."""

import os


def rank() -> int:
    """Which of them this is, from 0; 0 where there is one."""
    return _number("RANK", 0) if process_count() > 1 else 0


def process_count() -> int:
    """How many there are; 1 without a launcher."""
    return max(1, _number("WORLD_SIZE", 1))


def processes_here() -> int:
    """How many of them share this machine's memory."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1))


def is_launched() -> bool:
    """Whether there is a launcher, be it of one process."""
    return "WORLD_SIZE" in os.environ


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else otherwise
