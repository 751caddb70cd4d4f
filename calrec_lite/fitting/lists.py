"""Lists by weighed readings, many users at a time."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from calrec_lite.bars import wait_bar
from calrec_lite.measure.metrics import CELLS
from calrec_lite.recommend.fusion import Fusion
from calrec_lite.recommend.user_tower import History


class FusionRanker:
    """The lists of a Fusion without the likelihood."""

    def __init__(self, fusion: Fusion) -> None:
        self.fusion = fusion

    def rank(self, histories: Sequence[History], k: int, exclude_seen: bool) -> NDArray[np.int32]:
        """The best k items for each history (see `evaluate.protocol.Ranker`), (U, k)."""
        lists = np.full((len(histories), k), -1, np.int32)
        for part, allowed in in_parts(histories, len(self.fusion.readings.counts), exclude_seen, "lists"):
            for row, items in zip(lists[part], self.fusion.best(histories[part], allowed, k), strict=True):
                row[: len(items)] = items
        return lists


def in_parts(
    histories: Sequence[History], items: int, exclude_seen: bool, what: str
) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
    """A few users at a time, and which of the items (u, N) they may be given.

    Args:
        what: is being done with them, for the bar.
    """
    size = max(1, CELLS // items)
    with wait_bar(what, len(histories), "user") as bar:
        for start in range(0, len(histories), size):
            part = slice(start, min(start + size, len(histories)))
            allowed = np.ones((part.stop - part.start, items), np.bool_)
            for row, history in zip(allowed, histories[part], strict=True):
                row[history] = not exclude_seen
            yield part, allowed
            bar.update(part.stop - part.start)
