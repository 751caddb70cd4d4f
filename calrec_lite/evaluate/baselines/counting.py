"""The baselines that only count or match words (docs/method.md, 7), fitted on a domain's training part only.

Items of equal score stand in order of popularity, items of equal popularity in an order drawn by the seed: never by
index or id, which in some public files tell the future. Lists are filled up in the same order, so they have k items
if the catalogue has as many.
"""

from collections.abc import Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray

from calrec_lite.bars import wait_bar
from calrec_lite.data.domain import Domain
from calrec_lite.data.transitions import Transitions
from calrec_lite.measure.metrics import CELLS

Histories = Sequence[NDArray[np.int32]]


class PopularityBaseline:
    """The items most often trained on, the same for everyone; the order in which the other baselines break ties."""

    def __init__(self, domain: Domain, seed: int) -> None:
        counts = domain.train_counts()
        random = np.random.default_rng(seed).permutation(len(counts))
        self._order = np.lexsort((random, -counts))  # place -> item, (N,)
        self._place = np.empty_like(self._order)  # item -> place, (N,)
        self._place[self._order] = np.arange(len(counts))

    def rank(self, histories: Histories, k: int, exclude_seen: bool) -> NDArray[np.int32]:
        """The best k items for each history (see `protocol.Ranker`), (U, k)."""
        lists = np.full((len(histories), k), -1, dtype=np.int32)
        step = max(1, CELLS // len(self._order))
        with wait_bar("lists", len(histories), "user") as bar:
            for start in range(0, len(histories), step):
                places = [self._place[history] for history in histories[start : start + step]]
                scores = self._scores(places)  # (u, N)
                if exclude_seen:
                    rows, columns = _rows_and_places(places)
                    scores[rows, columns] = -1
                best = _top_places(scores, k)  # (u, min(k, N)), -1 after the end
                lists[start : start + step, : best.shape[1]] = np.where(best < 0, -1, self._order[best])
                bar.update(len(places))
        return lists

    def _scores(self, places: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Scores by place, none below 0; 0 where popularity alone is to decide: (u,) histories as places -> (u, N)."""
        return np.zeros((len(places), len(self._order)), dtype=np.float32)


class LastItemBaseline(PopularityBaseline):
    """The last item again, then the others of the history by recency; popularity alone if seen items are masked."""

    def _scores(self, places: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        scores = super()._scores(places)
        for row, history in zip(scores, places, strict=True):
            # A later event overwrites an earlier one of the same item.
            row[history] = np.arange(1, len(history) + 1)
        return scores


class PersonalPopularityBaseline(PopularityBaseline):
    """What the user bought most often, then what all did (P-TopFreq; Li et al. 2023, "A next basket recommendation
    reality check"); popularity alone if seen items are masked."""

    def _scores(self, places: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        scores = super()._scores(places)
        np.add.at(scores, _rows_and_places(places), 1)
        return scores


class BM25LastBaseline(PopularityBaseline):
    """Items whose title (first field) resembles the last item's, by BM25 (Lucene's form, k1 = 1.5, b = 0.75)."""

    def __init__(self, domain: Domain, seed: int) -> None:
        super().__init__(domain, seed)
        titles = [domain.catalogue.titles[item] for item in self._order]
        self._words: list[list[str]] = bm25s.tokenize(titles, stopwords=[], return_ids=False, show_progress=False)
        self._index = bm25s.BM25()
        if any(self._words):
            self._index.index(self._words, show_progress=False)

    def _scores(self, places: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        scores = super()._scores(places)
        for row, history in zip(scores, places, strict=True):
            if len(history) and (words := self._words[history[-1]]):
                row[:] = self._index.get_scores(words)
        return scores


class TransitionsBaseline(PopularityBaseline):
    """Items by how often they stood near the latest items of the history (`data.transitions`)."""

    def __init__(self, domain: Domain, seed: int) -> None:
        super().__init__(domain, seed)
        self._transitions = Transitions.of(domain)

    def _scores(self, places: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        return self._transitions.scores([self._order[history] for history in places])[:, self._order]


BASELINES: dict[str, type[PopularityBaseline]] = {
    "popularity": PopularityBaseline,
    "last_item": LastItemBaseline,
    "personal_popularity": PersonalPopularityBaseline,
    "bm25_last": BM25LastBaseline,
    "transitions": TransitionsBaseline,
}


def _rows_and_places(places: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, place) of every event of every history."""
    rows = np.repeat(np.arange(len(places)), [len(history) for history in places])
    return rows, np.concatenate([np.empty(0, dtype=np.int64), *places])


def _top_places(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places of the k highest scores, the earlier place first among equals, -1 where the score is below 0."""
    n_items = scores.shape[1]
    # Non-negative floats order like their bits, so score and place fit in one integer key without ties: a partial
    # sort of the keys is then exact, which one of the scores would not be.
    bits = np.maximum(scores, 0).view(np.int32).astype(np.int64)
    keys = np.where(scores < 0, -1, (bits << 32) | np.arange(n_items - 1, -1, -1))  # (u, N)
    k = min(k, n_items)
    top = -np.sort(-np.partition(keys, n_items - k, axis=1)[:, n_items - k :], axis=1)  # (u, k), best first
    return np.where(top < 0, -1, n_items - 1 - (top & 0xFFFFFFFF))
