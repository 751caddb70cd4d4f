"""What one input is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Judge = Callable[[str], str | None]  # standard output of a command that ended with 0 -> what is wrong with it


@dataclass
class Case:
    """One input.

    Attributes:
        command: arguments of calrec-lite.
        done: what was broken, in a few words.
        judge: of what came out; None: nobody can say.
        guarded: files that the command may read and never change.
        right: nothing is wrong with it, so that to refuse it is a fault.
    """

    command: list[str]
    done: str
    judge: Judge | None = None
    guarded: list[Path] = field(default_factory=list)
    right: bool = False
