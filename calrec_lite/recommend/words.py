"""Titles that share rare words: BM25 of each item's title with those of a history's latest items."""

from collections.abc import Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from calrec_lite.data.transitions import recent_items

LATEST = 5  # items of a history whose titles count
DECAY = 0.3  # of an item's weight with each later item


class Words:
    """BM25 (Lucene's form, k1 = 1.5, b = 0.75, by bm25s) between titles, as one product of sparse matrices.

    An item's score is the sum over the history's latest items h of `.3^age * BM25(title of h, item) / BM25(title of h,
    h)`: 1 for a title of the same words as the only item's, 0 for one that shares none.

    Args:
        titles: the catalogue's.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        words: list[list[str]] = bm25s.tokenize(
            list(titles), token_pattern=r"(?u)\b\w+\b", stopwords=[], return_ids=False, show_progress=False
        )
        unique = [sorted(set(title)) for title in words]
        n = len(titles)
        self._by_word = sparse.csr_array((0, n), dtype=np.float32)  # (V, N) what a word adds to an item's score
        self._queries = sparse.csr_array((n, 0), dtype=np.float32)  # (N, V) each title's words, scaled
        if not any(unique):
            return
        index = bm25s.BM25()
        index.index(words, show_progress=False)
        scores = index.scores
        size = len(scores["indptr"]) - 1
        self._by_word = sparse.csr_array((scores["data"], scores["indices"], scores["indptr"]), shape=(size, n))
        columns = [index.vocab_dict[word] for title in unique for word in title]
        rows = np.repeat(np.arange(n), [len(title) for title in unique])
        plain = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(n, size))
        own = np.asarray(plain.multiply(self._by_word.T).sum(axis=1)).ravel()  # BM25 of each title with itself
        scale = np.divide(1, own, out=np.zeros_like(own, dtype=np.float32), where=own > 0)
        self._queries = sparse.csr_array(sparse.diags_array(scale.astype(np.float32)) @ plain)

    def scores(self, histories: Sequence[NDArray[np.integer]]) -> NDArray[np.float32]:
        """(U, N) of every item after each history; 0 where no word is shared."""
        users = recent_items(histories, LATEST, DECAY, self._queries.shape[0])
        return np.asarray((users @ self._queries @ self._by_word).toarray(), dtype=np.float32)
