"""The baselines with which every result is compared, by the names that a recipe gives them."""

from typing import Any

from calrec_lite.data.domain import Domain
from calrec_lite.evaluate.baselines.counting import BASELINES
from calrec_lite.evaluate.baselines.fast import FAST
from calrec_lite.evaluate.baselines.minilm import MiniLMBaseline
from calrec_lite.evaluate.baselines.sasrec import SASRecBaseline
from calrec_lite.evaluate.protocol import Ranker
from calrec_lite.recipe import Recipe

BASELINE_NAMES = (*BASELINES, "minilm", "sasrec", *FAST)


OF_SEEN_ITEMS = ("last_item", "personal_popularity")


def telling_baselines(recipe: Recipe) -> list[str]:
    """The baselines of a recipe that say something: where seen items are masked, those of them are `popularity`."""
    masked = OF_SEEN_ITEMS if recipe.recommend.exclude_seen else ()
    return [name for name in recipe.evaluate.baselines if name not in masked]


def baseline_settings(name: str, recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides a baseline's lists, beside the data, the seed and whether seen items are masked."""
    options = recipe.evaluate
    if name == "sasrec":
        return options.sasrec.model_dump(mode="json")
    if name == "minilm":
        return options.minilm.model_dump(mode="json")
    if name in FAST:
        fused = recipe.fused.model_dump(mode="json")
        return {"minilm": options.minilm.model_dump(mode="json"), "fused": fused, "seed": recipe.training_seed}
    return {}


def build_baseline(name: str, domain: Domain, recipe: Recipe) -> Ranker:
    """A baseline of `evaluate.baselines`, fitted on the domain's training part (or taken from the cache)."""
    if name == "sasrec":
        return SASRecBaseline(domain, recipe.seed, recipe.evaluate.sasrec, recipe.recommend.exclude_seen)
    if name == "minilm":
        return MiniLMBaseline(domain, recipe.seed, recipe.evaluate.minilm, recipe.recommend.exclude_seen)
    if name in FAST:
        return FAST[name](domain, recipe)
    return BASELINES[name](domain, recipe.seed)
