"""Generated texts to real items: exact match, BM25, and the paper's quasi-round-robin (docs/method.md, 6)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import bm25s
import numpy as np

from calrec_lite.decode.ranked import Ranked

DEPTH = 100  # matches asked of BM25 beyond the length of a list


def normalised(text: str) -> str:
    """Text as it is compared: case and runs of blanks do not matter."""
    return " ".join(text.casefold().split())


class Grounder:
    """Matches texts against a catalogue.

    Args:
        texts: each item as the template writes it.
        cut: items whose text the model knows shorter, since it has more than `text.max_item_tokens`, -> that text.
    """

    def __init__(self, texts: Sequence[str], cut: Mapping[int, str] | None = None) -> None:
        self.exact = {normalised(t): i for i, t in (cut or {}).items()}
        self.exact |= {normalised(t): i for i, t in reversed(list(enumerate(texts)))}
        self.size = len(texts)
        words = _words(texts)
        self.index: bm25s.BM25 | None = None  # where no text has a word
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
        order = _best(scores, k)
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
        best = {t: max(s for p, s in zip(predictions, logprobs) if p == t) for t in texts}

        @lru_cache(None)
        def found(text: str) -> list[tuple[int, float]]:
            """Its BM25 matches; asked for only where they can change the list, as most texts are exact ones."""
            items, scaled = self.matches(text, k + DEPTH, allowed)
            return [(i, b) for i, b in zip(items.tolist(), scaled.tolist()) if b > 0]

        for text in texts:
            factor = math.exp(eps * best[text])
            hit = self.exact.get(normalised(text)) if order == "likelihood" else None
            how = "BM25" if hit is None else "exact"
            for item, b in found(text) if hit is None else [(hit, 1.0)]:
                if factor * b > chosen.get(item, (0.0, ""))[0]:
                    chosen[item] = (factor * b, f"{how} match of {text!r}")
        ranked = sorted((i for i in chosen if allowed[i]), key=lambda i: -chosen[i][0])
        for item, why in self._further(texts, history, allowed, found) if len(ranked) < k else ():
            if item not in chosen:
                chosen[item] = (0.0, why)
                ranked.append(item)
                if len(ranked) == k:
                    break
        ranked = ranked[:k]
        return Ranked(np.array(ranked), np.array([chosen[i][0] for i in ranked]), [chosen[i][1] for i in ranked])

    def _further(
        self,
        texts: Sequence[str],
        history: Sequence[str],
        allowed: np.ndarray,
        found: Callable[[str], list[tuple[int, float]]],
    ) -> Iterator[tuple[int, str]]:
        """What fills a list up, the best first: matches of the texts, of the history's latest items, then any item."""
        for text in texts:
            yield from ((item, "BM25 match of a prediction") for item, _ in found(text))
        for text in reversed(history):
            yield from ((item, "BM25 match of the history") for item, _ in found(text))
        for item in np.random.default_rng(0).permutation(self.size).tolist():
            if allowed[item]:
                yield item, "fill"


def _words(texts: Sequence[str]) -> list[list[str]]:
    """Of one letter too, which bm25s leaves out by default: they tell "Toy Story 2" from "Toy Story 3"."""
    words: list[list[str]] = bm25s.tokenize(
        list(texts), token_pattern=r"(?u)\b\w+\b", stopwords=None, show_progress=False, return_ids=False
    )
    return words


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest scores, best first, the first in the catalogue among equals."""
    if k < len(scores):
        bound = np.partition(scores, len(scores) - k)[len(scores) - k]
        above, level = np.flatnonzero(scores > bound), np.flatnonzero(scores == bound)
        some = np.concatenate([above, level[: k - len(above)]])
    else:
        some = np.arange(len(scores))
    return some[np.lexsort((some, -scores[some]))]
