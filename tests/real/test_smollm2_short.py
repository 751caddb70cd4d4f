"""Real weights, two or three steps: what the scaled logits spare, and NF4. In a file of their own: another process."""

from pathlib import Path

from calrec_lite.method.batch import Collator
from calrec_lite.method.rows import Rows, validation_rows
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import load_model
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from calrec_lite.training.validation import validation_loss
from tests.real.test_smollm2 import films


def untouched_nats(run: Run) -> float:
    """The base's validation loss as a stage of the run would begin with."""
    recipe, catalogue, encoder = run.recipe, run.catalogue("movies"), run.encoder
    domain = run.domain("movies")
    rows = Rows([validation_rows(domain, catalogue, encoder, recipe.optim.valid_users, recipe.seed)], encoder)
    loss = recipe.loss.model_copy(update={"targets": "last", "alpha": 0.0, "beta": 0.0})
    collator = Collator({"movies": catalogue}, loss, int(encoder.start[0]), encoder.pad, 8)
    return validation_loss(Towers(load_model(run.base, run.loading)), rows, collator, progress=False)


def test_without_the_scale_a_few_steps_unlearn_much(tmp_path: Path) -> None:
    """From the head's logits as they are the start is far above popularity: what is learnt first shows in any step."""
    scaled = films()
    scaled = scaled.model_copy(update={"optim": scaled.optim.model_copy(update={"valid_users": 8})})
    loss = scaled.loss.model_copy(update={"logit_scale": 1.0})
    short = scaled.stages[0].model_copy(update={"max_steps": 3})
    unscaled = Run.start(scaled.model_copy(update={"loss": loss, "stages": [short], "name": "unscaled"}), tmp_path)
    train_run(unscaled)
    (facts,) = unscaled.stage_metrics().values()
    assert facts["valid_nats_before"] > untouched_nats(Run.start(scaled, tmp_path)) + 0.5
    assert facts["valid_nats_after"] < facts["valid_nats_before"] - 0.5


def test_4bit_base_trains_on_this_machine(tmp_path: Path) -> None:
    whole = films()
    base = whole.base.model_copy(update={"load_in_4bit": True})
    stage = whole.stages[0].model_copy(update={"max_steps": 2})
    optim = whole.optim.model_copy(update={"batch_size": 2, "micro_batch_size": 1, "valid_users": 8})
    recipe = whole.model_copy(update={"base": base, "stages": [stage], "optim": optim, "name": "nf4"})
    small = Run.start(recipe, tmp_path)
    train_run(small)
    assert small.stage_metrics()["1-joint"]["layers_merged"] == 210
