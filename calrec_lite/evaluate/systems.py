"""The systems of a run, measured one after the other: the untouched base, each stage, the baselines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calrec_lite.data.domain import Domain
from calrec_lite.evaluate.baselines import BASELINES
from calrec_lite.evaluate.minilm import MiniLM
from calrec_lite.evaluate.protocol import Protocol, Ranker, SystemResult, build_cases, evaluate_system
from calrec_lite.evaluate.results import write_results
from calrec_lite.evaluate.sasrec import Sasrec, require_cornac
from calrec_lite.files import atomic_path
from calrec_lite.model.base import Placement, load_model, placement
from calrec_lite.model.device import described_device
from calrec_lite.model.towers import Towers
from calrec_lite.recipe import Recipe
from calrec_lite.recommend.recommender import Recommender
from calrec_lite.recommend.transitions import Transitions
from calrec_lite.train.memory import free_memory
from calrec_lite.train.run import Run

BASELINE_NAMES = (*BASELINES, "minilm", "sasrec")


def evaluate_run(run: Run, trained: bool = True, folder: Path | None = None) -> dict[str, Any]:
    """Measure every system of the recipe on the same users; returns and writes `metrics.json`.

    Systems are `base` (untouched), `stage1` ... for the stages before the last, `final`, and the
    baselines by name. All of them see the same histories, catalogue and exclusion rule.

    Args:
        trained: False leaves the stages out, so that base and baselines can be measured before any training.
        folder: where it is written, beside every user's list; default: the run's `evaluation`.

    Raises:
        InputError: if the run is not trained to the end, or a baseline needs what is not installed.
    """
    recipe = run.recipe
    if "sasrec" in recipe.evaluate.baselines:
        require_cornac()  # before the others are measured
    if trained:
        run.final()
    domain = run.domain(recipe.target)
    protocol = Protocol.of(recipe)
    cases = build_cases(domain, protocol.split, protocol.users, protocol.seed)
    print(described_device(run.dtype, run.base))
    # Once for all models, which are of one size: with another one in memory the answer might be another.
    placed = placement(run.base, run.loading)
    made = {"recommend": recipe.recommend.model_dump(), "quantised": placed[0], "dtype": run.dtype.dtype}
    measured: dict[str, SystemResult] = {}
    for name, system in _systems(run, trained, placed):
        own = cases if name in BASELINE_NAMES else cases.part(protocol.model_users, protocol.seed)
        print(f"evaluating {name} on {len(own.users):,} users")
        measured[name] = evaluate_system(system, own, protocol)
        del system
        free_memory()  # before the next one is loaded
    # An earlier evaluation is replaced whole, never mixed with.
    with atomic_path(folder or run.evaluation) as temporary:
        return write_results(temporary, domain, protocol, cases, measured, made)


def _systems(run: Run, trained: bool, placed: Placement) -> Iterator[tuple[str, Ranker]]:
    """Each system as it is needed, so that one model is in memory at a time."""
    options = run.recipe.evaluate
    domain = run.domain(run.recipe.target)
    for name in options.baselines:
        yield name, build_baseline(name, domain, run.recipe)
    if options.base:
        yield "base", open_recommender(run, run.base, placed=placed)
    last = len(run.stages)
    for i, stage in enumerate(run.stages if trained else [], 1):
        if i == last or options.every_stage:
            yield "final" if i == last else f"stage{i}", open_recommender(run, stage.merged, placed=placed)


def build_baseline(name: str, domain: Domain, recipe: Recipe) -> Ranker:
    """A baseline of `evaluate.baselines`, fitted on the domain's training part (or taken from the cache)."""
    if name == "sasrec":
        return Sasrec(domain, recipe.seed, recipe.evaluate.sasrec, recipe.recommend.exclude_seen)
    if name == "minilm":
        return MiniLM(domain, recipe.seed, recipe.evaluate.minilm, recipe.recommend.exclude_seen)
    return BASELINES[name](domain, recipe.seed)


def open_recommender(run: Run, folder: Path, transitions: bool = False, placed: Placement | None = None) -> Recommender:
    """A recommender over the run's target domain with full weights from `folder`.

    Args:
        transitions: count what followed what even where the recipe's lists do without it.
        placed: how the weights are loaded; default: as `placement` says of them.
    """
    recipe = run.recipe
    base = run.loading.model_copy(update={"attention": "sdpa"})  # a tree of continuations needs a mask of its own
    towers = Towers(load_model(folder, base, *(placed or placement(folder, base))))
    name, domain = recipe.target, run.domain(recipe.target)
    counted = Transitions.of(domain) if transitions or recipe.recommend.counts_transitions else None
    ids = domain.catalogue.ids
    return Recommender(
        towers, run.encoder, run.catalogue(name), ids, recipe.recommend, recipe.seed, transitions=counted
    )
