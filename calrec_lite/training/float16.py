"""Float16 has a small range: whether a base stays within it is tried before anything is trained in it."""

from copy import copy
from typing import cast

import torch
from torch import nn

from calrec_lite.method.rows import Rows
from calrec_lite.method.step import two_tower_step
from calrec_lite.model.device import Choice, described_device
from calrec_lite.model.memory import out_of_memory
from calrec_lite.model.random_states import rng_state, set_rng_state
from calrec_lite.processes import WHOLE
from calrec_lite.run import Run
from calrec_lite.training.trainer import CALRecTrainer

ROWS = 2


def float16_holds(run: Run, trainer: CALRecTrainer, rows: Rows) -> bool:
    """False where float16 was chosen by itself and is too small for the base: the run's type is float32 from then on.

    Tried before the first stage's first step alone: what has been trained in a type goes on in it.
    """
    training_began = (run.stages[0].folder / "before.json").is_file()
    if training_began or run.recipe.base.dtype != "auto" or run.dtype.dtype != "float16" or stays_finite(trainer, rows):
        return True
    run.remember_dtype(Choice("float32", "float16 gave no numbers in a trial"))
    (run.stages[0].folder / "micro_batch.json").unlink(missing_ok=True)  # estimated for half as wide numbers
    print(described_device(run.dtype, run.base))
    return False


def stays_finite(trainer: CALRecTrainer, rows: Rows) -> bool:
    """Whether the loss of some rows, and the gradient of every trained weight, are numbers. Resets random states.

    States of a large base may pass 65,504, the most that float16 holds, and then all that follows is infinite or no
    number. Small gradients are less of a matter: without any scaling of the loss, gradients of SmolLM2-135M in NF4 had
    a cosine of .996 or more with those of float32 (docs/training.md).
    """
    model, rng_before = cast(nn.Module, trainer.model).train(), rng_state(trainer.args.device)
    collator = copy(trainer.collator)
    collator.share = WHOLE  # the first of several processes tries it alone
    batch = collator([rows[i] for i in range(min(ROWS, len(rows)))]).to(trainer.args.device)
    try:
        result = two_tower_step(trainer.towers, batch, trainer.args.objective, torch.Tensor.backward)
        values = [result.loss, *(p.grad for p in model.parameters() if p.grad is not None)]
        return all(bool(torch.isfinite(value).all()) for value in values)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return True  # training cuts its steps smaller, and stops at a loss that is no number
    finally:
        model.zero_grad()
        set_rng_state(rng_before)
