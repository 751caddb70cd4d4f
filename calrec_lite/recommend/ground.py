"""Generated texts to real items: exact match, BM25, and the paper's quasi-round-robin (docs/method.md, 6)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import bm25s
import numpy as np

from calrec_lite.decode.ranked import Ranked

EXTRA_MATCHES = 100  # BM25 matches that are computed beyond the length of a list


def normalised(text: str) -> str:
    """Text as it is compared: case and runs of blanks do not matter."""
    return one_line(text.casefold())


def one_line(text: str) -> str:
    """Text without runs of blanks."""
    return " ".join(text.split())


class Grounder:
    """Matches texts against a catalogue.

    Args:
        texts: each item as the template writes it.
        cut: items that may have more than `text.max_item_tokens` -> the text that the model knows them by.
    """

    def __init__(self, texts: Sequence[str], cut: Mapping[int, str] | None = None) -> None:
        written = [*(cut or {}).items(), *reversed(list(enumerate(texts)))]  # the last one stands
        self.exact = {normalised(t): i for i, t in written} | {one_line(t): i for i, t in written}
        self.size = len(texts)
        words = _words(texts)
        self.index: bm25s.BM25 | None = None  # None: no text has a word
        if any(words):
            self.index = bm25s.BM25()
            self.index.index(words, show_progress=False)

    def matches(self, text: str, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """BM25 of a text against the allowed items: (items, scores), both (min(k, N),), best first.

        Scores are scaled so that the text's best match in the whole catalogue has 1; a text without any known word
        matches nothing (all 0).

        Args:
            allowed: (N,) default: all.
        """
        k = min(k, self.size)
        (words,) = _words([text])
        if self.index is None or not any(w in self.index.vocab_dict for w in words):
            return np.zeros(k, np.int64), np.zeros(k)
        scores = self.index.get_scores(words)  # (N,)
        best = scores.max()
        if allowed is not None:
            scores = np.where(allowed, scores, 0)
        order = _top_k(scores, k)
        return order, scores[order] / max(best, 1e-9)

    def rank(
        self,
        predictions: Sequence[str],
        logprobs: Sequence[float],
        k: int,
        allowed: np.ndarray,
        eps: float,
        order: str,
        history: Sequence[str],
    ) -> Ranked:
        """A list of `k` distinct items, as many as `allowed` (N,) has, from one user's generated texts.

        An item's score is max over predictions of exp(eps * s) * b, with s the prediction's
        log-probability and b its BM25 match scaled to [0, 1], so every prediction's best match comes first, in the
        LLM's order. `order: paper` is just that; `order: likelihood` lets a text that is an item's exact text
        stand for that item only. What is missing is filled by the weaker matches, by matches of the history,
        then by items in a fixed shuffle.
        """
        chosen: dict[int, tuple[float, str]] = {}
        texts = list(dict.fromkeys(predictions))
        best_logprob = {t: max(s for p, s in zip(predictions, logprobs) if p == t) for t in texts}

        @lru_cache(None)
        def bm25_matches(text: str) -> list[tuple[int, float]]:
            """Its BM25 matches; computed only where they can change the list, since most texts match exactly."""
            items, scaled = self.matches(text, k + EXTRA_MATCHES, allowed)
            return [(i, b) for i, b in zip(items.tolist(), scaled.tolist()) if b > 0]

        for text in texts:
            factor = math.exp(eps * best_logprob[text])
            exact_item = self._exact_item(text) if order == "likelihood" else None
            how = "BM25" if exact_item is None else "exact"
            for item, b in bm25_matches(text) if exact_item is None else [(exact_item, 1.0)]:
                if factor * b > chosen.get(item, (0.0, ""))[0]:
                    chosen[item] = (factor * b, f"{how} match of {text!r}")
        ranked = sorted((i for i in chosen if allowed[i]), key=lambda i: -chosen[i][0])
        for item, why in self._fillers(texts, history, allowed, bm25_matches) if len(ranked) < k else ():
            if item not in chosen:
                chosen[item] = (0.0, why)
                ranked.append(item)
                if len(ranked) == k:
                    break
        ranked = ranked[:k]
        return Ranked(np.array(ranked), np.array([chosen[i][0] for i in ranked]), [chosen[i][1] for i in ranked])

    def _exact_item(self, text: str) -> int | None:
        """The item of this text: as it is written, or else without regard to case."""
        return self.exact.get(one_line(text), self.exact.get(normalised(text)))

    def _fillers(
        self,
        texts: Sequence[str],
        history: Sequence[str],
        allowed: np.ndarray,
        bm25_matches: Callable[[str], list[tuple[int, float]]],
    ) -> Iterator[tuple[int, str]]:
        """What fills a list up, the best first: matches of the texts, of the history's latest items, then any item."""
        for text in texts:
            yield from ((item, "BM25 match of a prediction") for item, _ in bm25_matches(text))
        for text in reversed(history):
            yield from ((item, "BM25 match of the history") for item, _ in bm25_matches(text))
        for item in np.random.default_rng(0).permutation(self.size).tolist():
            if allowed[item]:
                yield item, "fill"


def _words(texts: Sequence[str]) -> list[list[str]]:
    """Words of one letter too, which bm25s drops by default: only they separate "Toy Story 2" from "Toy Story 3"."""
    words: list[list[str]] = bm25s.tokenize(
        list(texts), token_pattern=r"(?u)\b\w+\b", stopwords=None, show_progress=False, return_ids=False
    )
    return words


def _top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest scores, best first; equal scores in the catalogue's order."""
    if k < len(scores):
        bound = np.partition(scores, len(scores) - k)[len(scores) - k]
        above, ties = np.flatnonzero(scores > bound), np.flatnonzero(scores == bound)
        top = np.concatenate([above, ties[: k - len(above)]])
    else:
        top = np.arange(len(scores))
    return top[np.lexsort((top, -scores[top]))]
