"""Generated texts to real items: exact match, BM25, and the paper's quasi-round-robin (METHOD 6)."""

import math
from collections.abc import Sequence

import bm25s
import numpy as np

from calrec_lite.recommend.decode import Ranked

DEPTH = 100  # matches asked of BM25 beyond what a list may lose to exclusions


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

    def matches(self, texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """BM25 of each text against all items: (items, scores), both (len(texts), min(k, catalogue)), best first.

        Scores are scaled so that a text's best match has 1; a text without any known word matches nothing (all 0).
        """
        k = min(k, self.size)
        tokens = bm25s.tokenize(list(texts), stopwords=None, show_progress=False, return_ids=False)
        items, scores = np.zeros((len(texts), k), np.int64), np.zeros((len(texts), k))
        known = [i for i, t in enumerate(tokens) if any(w in self.index.vocab_dict for w in t)]
        if known:
            found = self.index.retrieve([tokens[i] for i in known], k=k, show_progress=False)
            items[known], scores[known] = found.documents, found.scores
        return items, scores / np.maximum(scores[:, :1], 1e-9)

    def rank(
        self,
        predictions: Sequence[str],
        logprobs: Sequence[float],
        k: int,
        excluded: np.ndarray,
        eps: float,
        order: str,
        history: Sequence[str],
    ) -> Ranked:
        """A list of `k` distinct items from one user's generated texts.

        An item's score is max over predictions of exp(eps * s) * b, with s the prediction's
        log-probability and b its BM25 match scaled to [0, 1], so every prediction's best match comes first, in the
        LLM's order. `order: paper` is just that; `order: likelihood` lets a text that is an item's exact text
        stand for that item only. What is missing is filled by the weaker matches, by matches of the history,
        then by items in a fixed shuffle.
        """
        chosen: dict[int, tuple[float, str]] = {}
        texts = list(dict.fromkeys(predictions))
        best = {t: max(s for p, s in zip(predictions, logprobs) if p == t) for t in texts}
        items, scaled = self.matches([*texts, *history], k + len(excluded) + DEPTH)
        self._first_choices(chosen, texts, best, items, scaled, eps, order)
        barred = set(excluded.tolist())
        ranked = sorted((i for i in chosen if i not in barred), key=lambda i: -chosen[i][0])
        if len(ranked) < k:
            self._fill(ranked, chosen, barred, items, scaled, k, len(texts))
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
        barred: set[int],
        items: np.ndarray,
        scaled: np.ndarray,
        k: int,
        n_texts: int,
    ) -> None:
        """Append to `ranked` until it has `k` or the catalogue is used up."""
        for row in (*range(n_texts), *reversed(range(n_texts, len(items)))):
            for item, b in zip(items[row].tolist(), scaled[row].tolist()):
                if len(ranked) < k and b > 0 and item not in barred and item not in chosen:
                    chosen[item] = (0.0, "BM25 match of a prediction" if row < n_texts else "BM25 match of the history")
                    ranked.append(item)
        for item in np.random.default_rng(0).permutation(self.size).tolist() if len(ranked) < k else ():
            if len(ranked) < k and item not in barred and item not in chosen:
                chosen[item] = (0.0, "fill")
                ranked.append(item)
