"""What is served, without HTTP: lists by any strategy that was opened, with their parts; similar items; search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from calrec_lite.package.layout import Package, open_package, with_strategy
from calrec_lite.recipe import Recommend
from calrec_lite.recommend.fusion import Fusion
from calrec_lite.recommend.recommender import Recommendation, Recommender
from calrec_lite.recommend.words import Words
from calrec_lite.serve.search import Search

STRATEGIES: tuple[str, ...] = get_args(Recommend.model_fields["strategy"].annotation)
FITTED_ONES = ("fused", "fast")
WITH_VECTORS = ("dense", "rerank")  # need v_T of every item


@dataclass(frozen=True)
class Wanted:
    """One list to make: names in `history`, `deny` and `candidates` are texts, titles or ids of items."""

    history: tuple[str, ...]
    strategy: str
    k: int
    deny: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None

    @property
    def together(self) -> tuple[str, int, tuple[str, ...]]:
        """What is the same for all that share a batch."""
        return self.strategy, self.k, self.deny


class Lists:
    """One model, loaded once, and the strategies by which it makes lists.

    Args:
        recommender: opened so that all of `strategies` can be used.
        package: its folder.
        strategies: the first one is the default.
    """

    def __init__(self, recommender: Recommender, package: Package, strategies: Sequence[str]) -> None:
        for strategy in strategies:
            recommender.strategies.require(strategy)
        self.recommender, self.package, self.strategies = recommender, package, tuple(strategies)
        self.search = Search(package.fields, package.counts, recommender.lookup)

    @classmethod
    def open(cls, source: str | Path, strategies: Sequence[str] = (), quantised: bool = False) -> "Lists":
        """Open an export (folder or Hub id).

        Args:
            strategies: default: the export's own and, where they are fitted, `fast` and `beam` beside `fused`.
            quantised: load in 4 bits.

        Raises:
            InputError: as `Recommender.from_pretrained`.
        """
        package = open_package(source)
        for strategy in strategies:
            with_strategy(package.options, strategy)
        own = package.options.strategy
        asked = list(dict.fromkeys(strategies or ([own, "fast", "beam"] if own == "fused" else [own])))
        widest = "fused" if "fast" in asked and len(asked) > 1 else min(asked, key=_needs)
        recommender = Recommender.from_pretrained(source, quantised, widest)
        return cls(recommender, package, asked)

    def warm(self) -> None:
        """Make one list of each strategy: what is computed of the items is then there before anybody waits for it."""
        for strategy in self.strategies:
            self([Wanted((), strategy, self.default_k)])
        self.similar(0, 1)
        self.recommender.unknown([""])  # every index of names

    @property
    def default_k(self) -> int:
        return self.recommender.options.k

    @property
    def fusion(self) -> Fusion | None:
        return self.recommender.strategies.fusion

    def weights(self, strategy: str) -> Mapping[str, float] | None:
        """How much each part counts; None for a strategy that has no parts."""
        return self.fusion.weights(strategy) if self.fusion and strategy in FITTED_ONES else None

    def __call__(self, wanted: list[Wanted]) -> list[list[Recommendation]]:
        """Lists for requests of one `together`.

        Raises:
            InputError, RunError: as `Recommender.recommend`.
        """
        first = wanted[0]
        return self.recommender.recommend(
            [list(w.history) for w in wanted],
            first.k,
            deny=first.deny,
            candidates=[w.candidates for w in wanted],
            strategy=first.strategy,
        )

    def similar(self, item: int, k: int) -> tuple[str, list[tuple[int, float]]]:
        """The `k` items most like one, with their scores, best first; and by what they are compared.

        By the cosine of whitened text vectors where lists are fitted, of v_T where a strategy has computed it, and by
        BM25 of the titles otherwise.
        """
        if self.fusion is not None:
            by, scores = "text", (self.fusion.readings.text @ self.fusion.readings.text[item]).numpy()
        elif set(self.strategies) & set(WITH_VECTORS):
            vectors = self.recommender.strategies.item_vectors.vectors
            by, scores = "vectors", (vectors @ vectors[item]).cpu().numpy()
        else:
            by, scores = "words", self._words.scores([np.array([item])])[0]
        scores[item] = -np.inf
        best = torch.from_numpy(scores).topk(min(k, len(scores) - 1)).indices.tolist()
        return by, [(i, float(scores[i])) for i in best]

    @cached_property
    def _words(self) -> Words:
        return Words(self.recommender.catalogue.titles)


def _needs(strategy: str) -> int:
    """The lower, the more is loaded for a strategy: what was opened for it serves the later ones, too."""
    return ("fused", "rerank", "dense", "beam", "sample", "fast").index(strategy)
