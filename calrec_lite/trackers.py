"""TensorBoard, W&B, MLflow, trackio and others: what is logged and measured goes there by transformers' callbacks."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calrec_lite.errors import InputError, one_line

PROJECT = "calrec-lite"  # a project of W&B and trackio, an experiment of MLflow, unless the environment names another


def require_trackers(names: Sequence[str]) -> None:
    """Raise InputError for one that transformers does not know, or whose library is not here: before anything runs."""
    _callbacks(names)


@contextmanager
def tracking(folder: Path) -> Iterator[None]:
    """Within the block what is reported goes to places of its own, unless the environment names others.

    A run of W&B that begins in it ends with it: transformers leaves it open, and what comes next would be added to it.

    Args:
        folder: of TensorBoard's files.
    """
    run_before = _run_of_wandb()
    own = {
        "TENSORBOARD_LOGGING_DIR": str(folder),
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "WANDB_PROJECT": PROJECT,
    }
    added = own.keys() - os.environ.keys()
    os.environ.update({name: own[name] for name in added})
    failed = True
    try:
        yield
        failed = False
    finally:
        for name in added:
            os.environ.pop(name, None)
        if (run := _run_of_wandb()) is not None and run is not run_before:
            _end(run, failed)


def _run_of_wandb() -> Any:
    """The run that is told to now; None: there is none."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _end(run: Any, failed: bool) -> None:
    try:
        run.finish(exit_code=int(failed))
    except Exception as error:  # whatever it raises: what was trained is worth more
        print(f"WARNING: optim.report_to: W&B's run is not complete ({one_line(error, 200)})")


def send(names: Sequence[str], run_name: str, folder: Path, metrics: Mapping[str, float]) -> None:
    """Report metrics as a run of their own; a warning where that fails: nothing else depends on it.

    Args:
        run_name: under which they are shown.
        folder: of TensorBoard's files.
        metrics: `SYSTEM/METRIC` -> value; they are shown as `eval/SYSTEM/METRIC`.
    """
    if not names:
        return
    from transformers import TrainerControl, TrainerState, TrainingArguments

    logs = {f"eval_{name}": value for name, value in metrics.items()}
    with tracking(folder):
        try:
            args = TrainingArguments(str(folder), run_name=run_name, project=PROJECT, report_to="none", use_cpu=True)
            for callback in _callbacks(names):
                told: Any = (args, TrainerState(), TrainerControl())
                callback.on_train_begin(*told, model=None)
                callback.on_log(*told, logs=dict(logs), model=None)
                callback.on_train_end(*told, model=None)
        except Exception as error:  # whatever a tracker, or the way to it, raises
            print(f"WARNING: optim.report_to: not told to {', '.join(names)} ({one_line(error, 200)})")


def _callbacks(names: Sequence[str]) -> list[Any]:
    from transformers.integrations import get_reporting_integration_callbacks, is_mlflow_available

    if "mlflow" in names and not is_mlflow_available():  # its callback, half made, would print an error of its own
        raise InputError("optim.report_to: mlflow is not installed: pip install mlflow")
    try:
        return [reporter() for reporter in get_reporting_integration_callbacks(list(names))]
    except (ImportError, RuntimeError, ValueError) as error:
        raise InputError(f"optim.report_to: {' '.join(str(error).split())}") from None
