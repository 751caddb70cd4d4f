"""The baselines with which every result is compared, by the names that a recipe gives them."""

from calrec_lite.data.domain import Domain
from calrec_lite.evaluate.baselines.counting import BASELINES
from calrec_lite.evaluate.baselines.fast import FAST
from calrec_lite.evaluate.baselines.minilm import MiniLMBaseline
from calrec_lite.evaluate.baselines.sasrec import SASRecBaseline
from calrec_lite.evaluate.protocol import Ranker
from calrec_lite.recipe import Recipe

BASELINE_NAMES = (*BASELINES, "minilm", "sasrec", *FAST)


def build_baseline(name: str, domain: Domain, recipe: Recipe) -> Ranker:
    """A baseline of `evaluate.baselines`, fitted on the domain's training part (or taken from the cache)."""
    if name == "sasrec":
        return SASRecBaseline(domain, recipe.seed, recipe.evaluate.sasrec, recipe.recommend.exclude_seen)
    if name == "minilm":
        return MiniLMBaseline(domain, recipe.seed, recipe.evaluate.minilm, recipe.recommend.exclude_seen)
    if name in FAST:
        return FAST[name](domain, recipe)
    return BASELINES[name](domain, recipe.seed)
