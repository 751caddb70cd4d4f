"""The systems of a run, measured one after the other: the untouched base, each stage, the baselines."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from calrec_lite.claim import claimed
from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError, RunError
from calrec_lite.evaluate.baselines import BASELINE_NAMES, build_baseline, telling_baselines
from calrec_lite.evaluate.baselines.fast import FAST, by_parts
from calrec_lite.evaluate.baselines.sasrec import require_cornac
from calrec_lite.evaluate.beforehand import kept_baseline
from calrec_lite.evaluate.protocol import Protocol, Ranker, SystemResult, evaluate_system
from calrec_lite.evaluate.settings import fitted_weights
from calrec_lite.evaluate.shards import (
    BLOCK,
    InBlocks,
    KeptLists,
    begin,
    blocks_left,
    keep_lists,
    require_same,
    shards_folder,
)
from calrec_lite.evaluate.store import RESULTS, read_metrics, write_results
from calrec_lite.files import atomic_path, copy_matching, size_and_time, write_json
from calrec_lite.fitting.fit import require_users
from calrec_lite.fitting.opening import fitted_folder, is_fitted, kept_fusion, open_recommender
from calrec_lite.measure.cases import Cases, build_cases
from calrec_lite.model.base import Placement, placement
from calrec_lite.model.device import described_device
from calrec_lite.model.memory import free_memory
from calrec_lite.recipe import Recipe
from calrec_lite.recommend.fusion import WEIGHTS_FILE
from calrec_lite.recommend.readings import READINGS
from calrec_lite.recommend.shards import Shard
from calrec_lite.run import Run
from calrec_lite.stored import write_manifest
from calrec_lite.trackers import send

IDENTITY_FILE = "begun.json"  # in the folder of a half-done evaluation: what is measured, and how


def evaluate_run(run: Run, trained: bool = True, folder: Path | None = None, merging: bool = False) -> dict[str, Any]:
    """Measure every system of the recipe on the same users; returns and writes `metrics.json`.

    Systems are `base` (untouched), `stage1` ... for the stages before the last, `final`, and the
    baselines by name. All of them see the same histories, catalogue and exclusion rule. Each result is written as soon
    as it is measured, to `FOLDER.part`: stopped and called again, it goes on with the next system. An earlier
    evaluation stays until this one is complete.

    Args:
        trained: False leaves the stages out, so that base and baselines can be measured before any training.
        folder: where it is written, beside every user's list; default: the run's `evaluation`.
        merging: take the lists of models that `make_lists` has made in parts, and remove them at the end.

    Raises:
        InputError: if the run is not trained to the end, a baseline needs what is not installed, another process is
            measuring it, or a part of the lists is missing.
    """
    folder = folder or run.evaluation
    to_do = _plan(run, trained)
    unfinished, kept = folder.with_name(f"{folder.name}.part"), shards_folder(folder)
    count = require_same(kept, to_do.identity) if merging else None
    with claimed(unfinished):
        results = _earlier_results(unfinished, to_do.identity)
        for name in to_do.rankers:
            if name in results.get("systems", {}):
                print(f"{name}: measured already")
                continue
            system = to_do.measured_before(name) or _measured(to_do, name, kept / name, count)
            results = write_results(
                unfinished, to_do.domain, to_do.protocol, to_do.cases, {name: system}, to_do.settings
            )
        if lost := to_do.rankers.keys() - results["systems"].keys():
            raise RunError(
                f"{unfinished}: removed by something else, and what was measured of {', '.join(sorted(lost))} with it; "
                "the same command measures it again"
            )
        with atomic_path(folder) as temporary:  # copied: killed at any moment, one of both is whole
            temporary.mkdir()
            copy_matching(unfinished, temporary, RESULTS)
            write_manifest(temporary, RESULTS)
    shutil.rmtree(unfinished)
    if merging:
        shutil.rmtree(kept)
    metrics = {f"{name}/{key}": m["value"] for name, own in results["systems"].items() for key, m in own.items()}
    place = f"{run.recipe.name}/{folder.name}"
    send(run.recipe.optim.report_to, place, run.folder / f"{folder.name}-tensorboard", metrics)
    return results


def _measured(to_do: "_Plan", name: str, kept: Path, parts: int | None) -> SystemResult:
    """One system, by the lists of it that so many parts keep, or made now; afterwards its memory is free."""
    cases = to_do.cases_of(name)
    print(f"evaluating {name} on {len(cases.users):,} users")
    if parts and to_do.needs_llm(name):
        lists = KeptLists(kept, parts)
        return replace(evaluate_system(lists, cases, to_do.protocol), seconds=lists.seconds)
    ranker = to_do.rankers[name]()
    system = evaluate_system(InBlocks(ranker) if to_do.needs_llm(name) else ranker, cases, to_do.protocol)
    del ranker
    free_memory()  # before the next one is loaded
    return system


def make_lists(run: Run, folder: Path, shard: Shard) -> Path:
    """Make one part of the lists of all systems that run the LLM, for `evaluate_run(merging=True)`.

    Returns:
        The folder in which all parts keep them.

    Raises:
        InputError: as `evaluate_run`, or other parts were begun for another evaluation.
    """
    to_do, kept = _plan(run, trained=True), shards_folder(folder)
    begin(kept, shard.count, to_do.identity)
    for name, make_ranker in to_do.rankers.items():
        cases = to_do.cases_of(name)
        if to_do.needs_llm(name) and (left := blocks_left(kept / name, cases, shard)):
            print(f"{name}: {len(left)} blocks of at most {BLOCK:,} users, of {len(cases.users):,} users in all parts")
            keep_lists(kept / name, make_ranker(), cases, to_do.protocol, left)
            free_memory()
    return kept


@dataclass(frozen=True)
class _Plan:
    """What is to be measured."""

    run: Run
    domain: Domain
    protocol: Protocol
    cases: Cases
    settings: dict[str, Any]  # by which lists are made
    identity: dict[str, Any]
    rankers: dict[str, Callable[[], Ranker]]

    def measured_before(self, name: str) -> SystemResult | None:
        """A baseline that `calrec-lite baselines` has measured on the same users."""
        if name not in BASELINE_NAMES:
            return None
        system = kept_baseline(name, self.run.folder, self.domain, self.run.recipe, self.cases)
        if system:
            print(f"{name}: as `calrec-lite baselines` measured it")
        return system

    def needs_llm(self, name: str) -> bool:
        return _needs_llm(name, self.run.recipe)

    def cases_of(self, name: str) -> Cases:
        """Those on which a system is measured."""
        return self.cases.part(self.protocol.model_users, self.protocol.seed) if self.needs_llm(name) else self.cases


def _plan(run: Run, trained: bool) -> _Plan:
    recipe = run.recipe
    if "sasrec" in recipe.evaluate.baselines:
        require_cornac()  # before the others are measured
    if trained:
        run.final()
    domain = run.domain(recipe.target)
    if recipe.recommend.fits or FAST.keys() & set(recipe.evaluate.baselines):
        require_users(domain)
    if trained and recipe.recommend.fits and not is_fitted(run, run.final()):
        open_recommender(run, run.final())  # its weights are part of what is measured
        free_memory()
    protocol = Protocol.of(recipe)
    cases = build_cases(domain, protocol.split, protocol.users, protocol.seed)
    print(described_device(run.dtype, run.weights))
    # Decided once for all models, which are of one size: with a model in memory the answer could be different.
    placed = placement(run.weights, run.loading)
    settings = {"recommend": recipe.recommend.model_dump(), "quantised": placed[0], "dtype": run.dtype.dtype}
    settings["fitted"] = fitted_weights(run) if trained else None
    identity = {**settings, **_identity(run, domain, protocol.record(cases), trained)}
    return _Plan(run, domain, protocol, cases, settings, identity, _ranker_factories(run, trained, placed))


def _ranker_factories(run: Run, trained: bool, placed: Placement) -> dict[str, Callable[[], Ranker]]:
    """A function for each system that makes it when it is its turn: one model is in memory at a time."""
    recipe = run.recipe
    domain = run.domain(recipe.target)
    factories: dict[str, Callable[[], Ranker]] = {
        name: partial(build_baseline, name, domain, recipe) for name in telling_baselines(recipe)
    }
    if recipe.evaluate.base:
        factories["base"] = lambda: open_recommender(run, run.base, placed=placed)
    n_stages = len(run.stages)
    for i, stage in enumerate(run.stages if trained else [], 1):
        if i == n_stages or recipe.evaluate.every_stage:
            name = "final" if i == n_stages else f"stage{i}"
            factories[name] = partial(open_recommender, run, stage.merged, placed=placed)
    if recipe.recommend.fits:
        models = {"base": run.base} if recipe.evaluate.base else {}
        models |= {"final": run.final()} if trained else {}
        for (name, folder), reading in product(models.items(), recipe.evaluate.readings):
            if reading != recipe.recommend.strategy:
                factories[f"{name}_{reading}"] = partial(_one_reading, run, folder, reading, placed)
    return factories


def _needs_llm(name: str, recipe: Recipe) -> bool:
    """Whether a list of this system takes a run of the LLM, so that it is measured on `evaluate.model_users` alone."""
    if name in BASELINE_NAMES:
        return False
    reading = name.partition("_")[2] or recipe.recommend.strategy
    return reading not in READINGS


def _one_reading(run: Run, folder: Path, reading: str, placed: Placement) -> Ranker:
    """One of the things that a model's lists are made of, alone."""
    options = run.recipe.recommend
    if reading == "beam":
        options = options.model_copy(update={"strategy": "beam"})
        return open_recommender(run, folder, placed=placed, options=options)
    fast = options.model_copy(update={"strategy": "fast"})
    # Fitted for another reading already, mostly: then no model is loaded.
    fusion = kept_fusion(run, folder, fast) or open_recommender(run, folder, False, placed, fast).strategies.fusion
    assert fusion is not None
    return by_parts(fusion, run.domain(run.recipe.target), run.recipe, run.recipe.training_seed, READINGS[reading])


def _identity(run: Run, domain: Domain, protocol: dict[str, Any], trained: bool) -> dict[str, Any]:
    """What must be the same in a half-done evaluation for this one to continue it."""
    weight_files = [file for stage in run.stages if trained for file in sorted(stage.merged.glob("*.safetensors"))]
    if trained and run.recipe.recommend.fits:
        weight_files += fitted_folder(run, run.final()).glob(WEIGHTS_FILE)  # `calrec-lite tune` writes them anew
    return {
        "domain": domain.fingerprint,
        "protocol": protocol,
        "evaluate": run.recipe.evaluate.model_dump(mode="json"),
        "fused": run.recipe.fused.model_dump(mode="json"),
        "seed": run.recipe.training_seed,
        "weights": [[file.parent.parent.name, file.name, *size_and_time(file)] for file in weight_files],
    }


def _earlier_results(unfinished: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The results that a stopped evaluation left; those of something else are removed, and this one begins."""
    identity_file = unfinished / IDENTITY_FILE
    try:
        same_evaluation = json.loads(identity_file.read_text(encoding="utf-8")) == json.loads(json.dumps(identity))
        return read_metrics(unfinished) if same_evaluation else _begin(unfinished, identity)
    except (OSError, ValueError):
        return _begin(unfinished, identity)
    except InputError:  # stopped before the first system was measured
        return {}


def _begin(unfinished: Path, identity: dict[str, Any]) -> dict[str, Any]:
    for name in (IDENTITY_FILE, *RESULTS):
        (unfinished / name).unlink(missing_ok=True)
    write_json(unfinished / IDENTITY_FILE, identity)
    return {}
