"""The systems of a run, measured one after the other: the untouched base, each stage, the baselines."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines import BASELINE_NAMES, build_baseline
from calrec_lite.evaluate.baselines.sasrec import require_cornac
from calrec_lite.evaluate.cases import build_cases
from calrec_lite.evaluate.protocol import Protocol, Ranker, evaluate_system
from calrec_lite.evaluate.store import read_metrics, write_results
from calrec_lite.files import atomic_path, write_json
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import Placement, load_model, placement
from calrec_lite.model.device import described_device
from calrec_lite.model.memory import free_memory
from calrec_lite.recommend.recommender import Recommender
from calrec_lite.recommend.transitions import Transitions
from calrec_lite.run import Run

BEGUN = "begun.json"  # in a half-done evaluation: what it is of


def evaluate_run(run: Run, trained: bool = True, folder: Path | None = None) -> dict[str, Any]:
    """Measure every system of the recipe on the same users; returns and writes `metrics.json`.

    Systems are `base` (untouched), `stage1` ... for the stages before the last, `final`, and the
    baselines by name. All of them see the same histories, catalogue and exclusion rule. Each is kept as soon as it is
    measured, in `FOLDER.part`: stopped and called again, it goes on with the next one. An earlier evaluation stays
    until this one is whole.

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
    print(described_device(run.dtype, run.weights))
    # Once for all models, which are of one size: with another one in memory the answer might be another.
    placed = placement(run.weights, run.loading)
    made = {"recommend": recipe.recommend.model_dump(), "quantised": placed[0], "dtype": run.dtype.dtype}
    to = folder or run.evaluation
    part = to.with_name(f"{to.name}.part")
    results = _measured_before(part, {**made, **_identity(run, domain, protocol.record(cases), trained)})
    for name, make in _systems(run, trained, placed).items():
        if name in results.get("systems", {}):
            print(f"{name}: measured already")
            continue
        chosen = cases if name in BASELINE_NAMES else cases.part(protocol.model_users, protocol.seed)
        print(f"evaluating {name} on {len(chosen.users):,} users")
        system = evaluate_system(make(), chosen, protocol)
        free_memory()  # before the next one is loaded
        results = write_results(part, domain, protocol, cases, {name: system}, made)
    (part / BEGUN).unlink()
    with atomic_path(to) as temporary:
        part.rename(temporary)
    return results


def _systems(run: Run, trained: bool, placed: Placement) -> dict[str, Callable[[], Ranker]]:
    """How each system is made, when it is its turn: one model is in memory at a time."""
    recipe = run.recipe
    domain = run.domain(recipe.target)
    systems: dict[str, Callable[[], Ranker]] = {
        name: partial(build_baseline, name, domain, recipe) for name in recipe.evaluate.baselines
    }
    if recipe.evaluate.base:
        systems["base"] = lambda: open_recommender(run, run.base, placed=placed)
    last = len(run.stages)
    for i, stage in enumerate(run.stages if trained else [], 1):
        if i == last or recipe.evaluate.every_stage:
            name = "final" if i == last else f"stage{i}"
            systems[name] = partial(open_recommender, run, stage.merged, placed=placed)
    return systems


def _identity(run: Run, domain: Domain, protocol: dict[str, Any], trained: bool) -> dict[str, Any]:
    """What a half-done evaluation must share with this one to be gone on with."""
    merged = [file for stage in run.stages if trained for file in sorted(stage.merged.glob("*.safetensors"))]
    return {
        "domain": domain.fingerprint,
        "protocol": protocol,
        "evaluate": run.recipe.evaluate.model_dump(mode="json"),
        "weights": [[file.parent.parent.name, file.name, *_stamp(file)] for file in merged],
    }


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _measured_before(part: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What a stopped evaluation has left in `part`; of another kind it is removed, and this one begins."""
    begun = part / BEGUN
    try:
        same = json.loads(begun.read_text(encoding="utf-8")) == json.loads(json.dumps(identity))
        return read_metrics(part) if same else _begin(part, identity)
    except (OSError, ValueError):
        return _begin(part, identity)
    except InputError:  # stopped before the first system was measured
        return {}


def _begin(part: Path, identity: dict[str, Any]) -> dict[str, Any]:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_json(part / BEGUN, identity)
    return {}


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
