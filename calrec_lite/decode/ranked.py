"""What every strategy gives for a user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranked:
    """One user's items, best first, with the score each was ranked by and how it came about.

    `parts`: what each part of a sum adds to an item's score; empty where scores are none.
    """

    items: np.ndarray
    scores: np.ndarray
    why: list[str]
    parts: Sequence[Mapping[str, float]] = ()
