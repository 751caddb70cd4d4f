"""Bars over waits: how much is done, its rate, the time that is left."""

from typing import Any

from tqdm import tqdm

DELAY = 2.0  # seconds of a wait that are not worth a bar


def wait_bar(what: str, total: int | None, unit: str, at_once: bool = False, **more: Any) -> "tqdm[Any]":
    """A bar that is seen on a terminal, from DELAY on, and leaves nothing behind.

    Args:
        what: is being done. total: of `unit`s; None: not known. more: for tqdm.
        at_once: without that delay, where the very first unit may take long: a bar moves with units done only.
    """
    delay = 0.0 if at_once else DELAY
    return tqdm(total=total, desc=what, unit=unit, leave=False, delay=delay, disable=None, **more)
