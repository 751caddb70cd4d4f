"""By which settings the lists of an evaluation were made, and whether a run makes its lists by them still."""

from collections.abc import Mapping
from typing import Any

from calrec_lite.files import file_sha256
from calrec_lite.fitting.opening import fitted_folder
from calrec_lite.recommend.fusion import WEIGHTS_FILE
from calrec_lite.run import Run

NOT_OF_LISTS = {"k", "batch_tokens"}  # keys of `recommend` that change no measured list


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
