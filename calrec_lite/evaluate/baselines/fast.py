"""Lists by readings without an LLM, beside which its worth is seen: another encoder in its place, or counts alone."""

from collections.abc import Callable

from safetensors.numpy import load_file
from torch import from_numpy

from calrec_lite.data.domain import Domain
from calrec_lite.data.transitions import Transitions
from calrec_lite.evaluate.baselines.cache import cached
from calrec_lite.evaluate.baselines.minilm import VECTORS_FILE, minilm_folder
from calrec_lite.fitting.fit import EACH, fit_fusion, weigh
from calrec_lite.fitting.lists import FusionRanker
from calrec_lite.recipe import Recipe
from calrec_lite.recommend.fusion import Fusion
from calrec_lite.recommend.readings import PARTS

FORMAT = 1  # raise it when the same settings come to give other lists
COUNTS = ("transitions", "popularity")


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
    return by_counts(_fitted(domain, recipe), domain, recipe, recipe.training_seed)


def by_counts(fusion: Fusion, domain: Domain, recipe: Recipe, seed: int) -> FusionRanker:
    """Lists by the counts among the readings of `fusion`, weighed anew."""
    exclude_seen = recipe.recommend.exclude_seen
    return FusionRanker(weigh(fusion.readings, domain, recipe.fused, seed, exclude_seen, COUNTS, None, EACH, {}))


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
