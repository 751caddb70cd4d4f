"""Lists by readings without an LLM, beside which its worth is seen: another encoder in its place, or counts alone."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import from_numpy

from calrec_lite.data.domain import Domain
from calrec_lite.data.transitions import Transitions
from calrec_lite.evaluate.baselines.cache import cached
from calrec_lite.evaluate.baselines.counting import Histories
from calrec_lite.evaluate.baselines.minilm import VECTORS_FILE, minilm_folder
from calrec_lite.fitting.fit import EACH, fit_fusion, weigh
from calrec_lite.measure.metrics import CELLS
from calrec_lite.recipe import Recipe
from calrec_lite.recommend.fusion import Fusion
from calrec_lite.recommend.readings import PARTS

FORMAT = 1  # raise it when the same settings come to give other lists
COUNTS = ("transitions", "popularity")


class FusionRanker:
    """Lists by weighed readings, many users at a time."""

    def __init__(self, fusion: Fusion) -> None:
        self.fusion = fusion

    def rank(self, histories: Histories, k: int, exclude_seen: bool) -> NDArray[np.int32]:
        """The best k items for each history (see `protocol.Ranker`), (U, k)."""
        n_items = len(self.fusion.readings.counts)
        lists = np.full((len(histories), k), -1, np.int32)
        step = max(1, CELLS // n_items)
        for start in range(0, len(histories), step):
            part = histories[start : start + step]
            allowed = np.ones((len(part), n_items), np.bool_)
            for row, history in zip(allowed, part, strict=True):
                row[history] = not exclude_seen
            for row, items in zip(lists[start : start + step], self.fusion.best(part, allowed, k), strict=True):
                row[: len(items)] = items
        return lists


def minilm_fast(domain: Domain, recipe: Recipe) -> FusionRanker:
    """MiniLM's vectors in the place of the LLM's, with a user tower and weights of their own."""
    return FusionRanker(_fitted(domain, recipe))


def minilm_tower(domain: Domain, recipe: Recipe) -> FusionRanker:
    """The user tower over MiniLM's vectors alone."""
    return FusionRanker(_fitted(domain, recipe).one_part("tower"))


def minilm_text(domain: Domain, recipe: Recipe) -> FusionRanker:
    """MiniLM's whitened vectors and recency, without any training."""
    return FusionRanker(_fitted(domain, recipe).one_part("text"))


def counts_fast(domain: Domain, recipe: Recipe) -> FusionRanker:
    """Transitions and popularity, weighed: fused lists without text and tower."""
    exclude_seen, seed = recipe.recommend.exclude_seen, recipe.training_seed
    readings = _fitted(domain, recipe).readings
    return FusionRanker(weigh(readings, domain, recipe.fused, seed, exclude_seen, COUNTS, None, EACH, {}))


FAST: dict[str, Callable[[Domain, Recipe], FusionRanker]] = {
    "minilm_fast": minilm_fast,
    "minilm_tower": minilm_tower,
    "minilm_text": minilm_text,
    "counts_fast": counts_fast,
}


def _fitted(domain: Domain, recipe: Recipe) -> Fusion:
    """Fitted now, or when it was first needed."""
    encoded = minilm_folder(domain, recipe.evaluate.minilm)
    exclude_seen, seed = recipe.recommend.exclude_seen, recipe.training_seed
    settings = {
        "format": FORMAT,
        "vectors": encoded.name,
        "parts": list(PARTS),
        "fused": recipe.fused.model_dump(mode="json"),
        "exclude_seen": exclude_seen,
        "seed": seed,
    }
    ids = domain.catalogue.ids
    vectors = from_numpy(load_file(encoded / VECTORS_FILE)["vectors"])
    folder = cached(
        "minilm_fast",
        settings,
        lambda to: fit_fusion(domain, vectors, recipe.fused, seed, exclude_seen).save(to, ids),
    )
    return Fusion.open(folder, ids, domain.catalogue.titles, Transitions.of(domain), domain.train_counts())[0]
