"""Generated texts to real items: exact match, BM25, and the paper's quasi-round-robin (METHOD 6)."""

import math
from collections.abc import Sequence

import bm25s
import numpy as np

from calrec_lite.recommend.ranked import Ranked

DEPTH = 100  # matches asked of BM25 beyond the length of a list


def normalised(text: str) -> str:
    """Text as it is compared: case and runs of blanks do not matter."""
    return " ".join(text.casefold().split())


class Grounder:
    """Matches texts against a catalogue.

    Args:
        texts: each item as the template writes it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.exact = {normalised(t): i for i, t in reversed(list(enumerate(texts)))}
        self.size = len(texts)
        self.index = bm25s.BM25()
        self.index.index(bm25s.tokenize(list(texts), stopwords=None, show_progress=False), show_progress=False)

    def matches(self, texts: Sequence[str], k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """BM25 of each text against the allowed items: (items, scores), both (len(texts), min(k, N)), best first.

        Scores are scaled so that a text's best match in the whole catalogue has 1; a text without any known word
        matches nothing (all 0).

        Args:
            allowed: (N,) default: all.
        """
        k = min(k, self.size)
        words = bm25s.tokenize(list(texts), stopwords=None, show_progress=False, return_ids=False)
        items, scores = np.zeros((len(texts), k), np.int64), np.zeros((len(texts), k))
        for row, own in enumerate(words):
            if not any(w in self.index.vocab_dict for w in own):
                continue
            all_ = self.index.get_scores(own)  # (N,)
            best = all_.max()
            if allowed is not None:
                all_ = np.where(allowed, all_, 0)
            order = _best(all_, k)
            items[row], scores[row] = order, all_[order] / max(best, 1e-9)
        return items, scores

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
        items, scaled = self.matches([*texts, *history], k + DEPTH, allowed)
        self._first_choices(chosen, texts, best, items, scaled, eps, order)
        ranked = sorted((i for i in chosen if allowed[i]), key=lambda i: -chosen[i][0])
        if len(ranked) < k:
            self._fill(ranked, chosen, allowed, items, scaled, k, len(texts))
        ranked = ranked[:k]
        return Ranked(np.array(ranked), np.array([chosen[i][0] for i in ranked]), [chosen[i][1] for i in ranked])

    def _first_choices(
        self,
        chosen: dict[int, tuple[float, str]],
        texts: list[str],
        best: dict[str, float],
        items: np.ndarray,
        scaled: np.ndarray,
        eps: float,
        order: str,
    ) -> None:
        for row, text in enumerate(texts):
            factor = math.exp(eps * best[text])
            hit = self.exact.get(normalised(text)) if order == "likelihood" else None
            pairs = [(hit, 1.0)] if hit is not None else list(zip(items[row].tolist(), scaled[row].tolist()))
            how = "exact" if hit is not None else "BM25"
            for item, b in pairs:
                score = factor * b
                if b > 0 and score > chosen.get(item, (0.0, ""))[0]:
                    chosen[item] = (score, f"{how} match of {text!r}")

    def _fill(
        self,
        ranked: list[int],
        chosen: dict[int, tuple[float, str]],
        allowed: np.ndarray,
        items: np.ndarray,
        scaled: np.ndarray,
        k: int,
        n_texts: int,
    ) -> None:
        """Append to `ranked` until it has `k` or all that is allowed."""
        for row in (*range(n_texts), *reversed(range(n_texts, len(items)))):
            for item, b in zip(items[row].tolist(), scaled[row].tolist()):
                if len(ranked) < k and b > 0 and item not in chosen:
                    chosen[item] = (0.0, "BM25 match of a prediction" if row < n_texts else "BM25 match of the history")
                    ranked.append(item)
        for item in np.random.default_rng(0).permutation(self.size).tolist() if len(ranked) < k else ():
            if len(ranked) < k and allowed[item] and item not in chosen:
                chosen[item] = (0.0, "fill")
                ranked.append(item)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest scores, best first, the first in the catalogue among equals."""
    if k < len(scores):
        bound = np.partition(scores, len(scores) - k)[len(scores) - k]
        above, level = np.flatnonzero(scores > bound), np.flatnonzero(scores == bound)
        some = np.concatenate([above, level[: k - len(above)]])
    else:
        some = np.arange(len(scores))
    return some[np.lexsort((some, -scores[some]))]
