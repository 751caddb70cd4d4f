"""By which settings the lists of an evaluation were made: its folder, and whether a run makes its lists so still."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calrec_lite.errors import InputError
from calrec_lite.evaluate.store import read_metrics
from calrec_lite.files import file_sha256
from calrec_lite.fitting.opening import fitted_folder
from calrec_lite.recipe import Recipe
from calrec_lite.recommend.fusion import WEIGHTS_FILE
from calrec_lite.run import Run

NOT_OF_LISTS = {"k", "batch_tokens"}  # keys of `recommend` that change no measured list
DRAW = {"split", "users", "model_users"}  # keys of `evaluate` that a folder's name says, or that a larger draw replaces


def fitted_weights(run: Run) -> str | None:
    """SHA-256 of the weights that were fitted to the final model; None where its lists have none."""
    if not (run.recipe.recommend.fits and run.stages[-1].done):
        return None
    file = fitted_folder(run, run.final()) / WEIGHTS_FILE
    return file_sha256(file) if file.is_file() else None


def changed_settings(run: Run, results: Mapping[str, Any]) -> list[str]:
    """What has changed since `results` (a metrics.json) were measured: each key with its value then and now."""
    now = run.recipe.recommend.model_dump(mode="json")
    then = results.get("recommend", now)  # older results do not say it
    changed = [
        f"recommend.{key}: {then.get(key)}, now {value}"
        for key, value in now.items()
        if key not in NOT_OF_LISTS and then.get(key) != value
    ]
    fitted = results.get("fitted")
    if not changed and fitted and fitted != fitted_weights(run):
        changed.append("the weights of the lists were fitted anew")
    return changed


def evaluation_folder(run: Run) -> Path:
    """Where an evaluation by `run.recipe` is written.

    The run's `evaluation`, unless this one is of another split than the run's own recipe says, of fewer users than
    what is there, or by other settings: then a folder of its own.
    """
    options, own_split = run.recipe.evaluate, run.own.evaluate.split
    key = f"-{_settings(run.recipe)}" if _settings(run.recipe) != _settings(run.own) else ""
    try:
        existing = read_metrics(run.evaluation)
        same_data = existing["domain"]["fingerprint"] == run.domain(run.recipe.target).fingerprint
        protocol = existing["protocol"] if same_data and existing["protocol"]["split"] == own_split else {}
    except InputError:  # there is none, or a damaged one, which is made anew
        protocol = {}
    measured, by_models = protocol.get("users", 0), protocol.get("model_users", protocol.get("users", 0))
    users = options.users or math.inf
    enough = users >= measured and min(options.model_users or math.inf, users) >= by_models
    if not key and options.split == own_split and enough:
        return run.evaluation
    return run.folder / f"evaluation-{options.split}-{options.users or 'all'}{key}"


def evaluations_of_lists(run: Run) -> list[Path]:
    """The folders in which an evaluation of the lists that `run.recipe` makes may lie, the likeliest first."""
    key = _settings(run.recipe)
    found = run.folder.glob(f"evaluation-{run.recipe.evaluate.split}-*-{key}/metrics.json")
    named = [file.parent for file in sorted(found, key=lambda file: -file.stat().st_mtime)]
    return [run.evaluation, *named] if key == _settings(run.own) else [*named, run.evaluation]


def _settings(recipe: Recipe) -> str:
    """Eight digits that are others where lists, or how they are measured, are."""
    lists = recipe.recommend.model_dump(mode="json", exclude=NOT_OF_LISTS)
    measures = recipe.evaluate.model_dump(mode="json", exclude=DRAW)
    return hashlib.sha256(json.dumps([lists, measures]).encode()).hexdigest()[:8]
