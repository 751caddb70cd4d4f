"""What every strategy gives for a user."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranked:
    """One user's items, best first, with the score each was ranked by and how it came about."""

    items: np.ndarray
    scores: np.ndarray
    why: list[str]
