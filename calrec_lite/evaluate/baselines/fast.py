"""Lists by readings without an LLM, beside which its worth is seen: another encoder in its place, or counts alone."""

from collections.abc import Callable, Sequence
from functools import partial

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
from calrec_lite.recommend.readings import PARTS, READINGS, telling

FORMAT = 1  # raise it when the same settings come to give other lists
COUNTS = ("transitions", "popularity")


def by_parts(fusion: Fusion, domain: Domain, recipe: Recipe, seed: int, parts: Sequence[str]) -> FusionRanker:
    """Lists by some parts of `fusion`, weighed anew on validation users; by all of them with the weights it has."""
    exclude_seen = recipe.recommend.exclude_seen
    if set(telling(parts, exclude_seen)) == set(fusion.fast):
        return FusionRanker(fusion)
    return FusionRanker(weigh(fusion.readings, domain, recipe.fused, seed, exclude_seen, parts, None, EACH, {}))


def _minilm_by(parts: Sequence[str], domain: Domain, recipe: Recipe) -> FusionRanker:
    """MiniLM's vectors in the place of the LLM's, with a user tower and weights of their own."""
    return by_parts(_fitted(domain, recipe), domain, recipe, recipe.training_seed, parts)


FAST: dict[str, Callable[[Domain, Recipe], FusionRanker]] = {
    "minilm_fast": partial(_minilm_by, READINGS["fast"]),
    "minilm_vectors": partial(_minilm_by, READINGS["vectors"]),
    "minilm_text": partial(_minilm_by, READINGS["text"]),
    "counts_fast": partial(_minilm_by, COUNTS),
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
