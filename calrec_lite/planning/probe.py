"""Some real steps of a stage, measured: how long training takes and what it holds."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from calrec_lite.bars import wait_bar
from calrec_lite.method.rows import Rows
from calrec_lite.model.base import add_adapter, load_model
from calrec_lite.model.memory import free_memory
from calrec_lite.processes import Processes
from calrec_lite.recipe import Stage
from calrec_lite.run import Run, StageFolder
from calrec_lite.training.stage import stage_config
from calrec_lite.training.trainer import CALRecTrainer
from calrec_lite.training.validation import validation_loss

STEPS = 4  # the first one warms up, and after it the device's rate is measured
VALIDATED = 16  # users


@dataclass(frozen=True)
class Measured:
    """What the steps came to.

    Attributes:
        tokens_per_second: of both passes, of the last two.
        validation_per_second: users of the validation loss a second.
        peak_bytes: the most held, of the GPU or by the process.
        micro_batch_size: rows at once, at the end.
    """

    tokens_per_second: float
    validation_per_second: float
    peak_bytes: int
    micro_batch_size: int


def measure(run: Run, weights: Path, stage: Stage, rows: Rows, valid: Rows) -> Measured:
    """Train a fresh adapter for some steps and forget it.

    Args:
        run: a trial, in a folder that is removed.
        weights: what the stage starts from.

    Raises:
        RunError: memory does not suffice for a single row.
    """
    optim = run.recipe.optim.model_copy(update={"eval_every": None, "report_to": [], "log_every": 1})
    trial = Run(run.recipe.model_copy(update={"optim": optim}), run.folder)
    length = {"epochs": None, "minutes": None, "max_steps": STEPS}
    model = add_adapter(load_model(weights, run.loading), run.loading, bool(optim.gradient_checkpointing))
    folder = StageFolder(run.folder / "probe")
    config = stage_config(trial, stage.model_copy(update=length), folder, model, rows, Processes())
    config.save_strategy, config.disable_tqdm = "no", True
    with wait_bar("probe", STEPS + 1, "step", at_once=True) as bar:  # the last is the validation loss
        trainer = CALRecTrainer(model, config, rows, valid, callbacks=[_Steps(bar)])
        trainer.train()
        some = _some(valid, VALIDATED)
        start = perf_counter()
        validation_loss(trainer.towers, some, trainer.eval_collator, progress=False)
        took = perf_counter() - start
    logged = [entry for entry in trainer.state.log_history if "tokens_per_second" in entry]
    seconds = [later["seconds"] - before["seconds"] for before, later in pairwise(logged[1:])]
    tokens = [entry["tokens_per_second"] * own for entry, own in zip(logged[2:], seconds)]
    result = Measured(sum(tokens) / sum(seconds), len(some) / took, trainer.peak_bytes, trainer.micro.size)
    del model, trainer
    free_memory()
    return result


class _Steps(TrainerCallback):
    """Moves a bar on with every step."""

    def __init__(self, bar: "tqdm[Any]") -> None:
        self.bar = bar

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.bar.update()


def _some(rows: Rows, most: int) -> Rows:
    """The first rows of the first domain that has any."""
    part = next(part for part in rows.parts if len(part.start))
    few = {key: getattr(part, key)[:most] for key in ("user", "start", "end", "length")}
    return Rows([replace(part, **few)], rows.encoder)
