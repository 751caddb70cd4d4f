"""A stage that ends by the clock: its time over several starts, its learning rate, and the run around it."""

import math
import time

import pytest
import torch
from torch._dynamo.callback import CallbackTrigger
from transformers import TrainerControl, TrainerState

from calrec_lite.model import compiling
from calrec_lite.training.clock import Clock, trained_seconds


def step(clock: Clock, state: TrainerState, seconds: float) -> TrainerControl:
    control = TrainerControl()
    time.sleep(seconds)
    clock.on_step_end(None, state, control)
    return control


def test_time_goes_on_from_the_checkpoint_and_ends_the_stage(tmp_path) -> None:
    clock, state = Clock(0.2), TrainerState(stateful_callbacks={})
    clock.on_train_begin(None, state, TrainerControl())
    assert not step(clock, state, 0.05).should_training_stop
    time.sleep(0.1)
    clock.on_evaluate(None, state, TrainerControl())  # what validation and saving took does not count
    state.save_to_json(str(tmp_path / "state.json"))
    assert step(clock, state, 0.01).should_training_stop is False  # lost: after the checkpoint came a kill

    again, state = Clock(0.2), TrainerState.load_from_json(str(tmp_path / "state.json"))
    assert 0.05 <= trained_seconds(state) < 0.15
    again.on_train_begin(None, state, TrainerControl())
    assert again.seconds == trained_seconds(state)
    control = step(again, state, 0.16)
    assert control.should_training_stop
    assert control.should_save  # so that a kill before merging does not cost the stage
    assert trained_seconds(state) >= 0.2


def test_compiling_does_not_count() -> None:
    """Told by torch, after it has forgotten everything too."""
    for _ in range(2):
        torch._dynamo.reset()
        compiling._stopwatch.start()
        compiling._stopwatch.start()
        begin = compiling.seconds_without_compiling()
        with torch._dynamo.callback_handler.install_callbacks(CallbackTrigger.DYNAMO, "0"):
            time.sleep(0.3)
        assert 0 <= compiling.seconds_without_compiling() - begin < 0.2


def test_a_state_of_an_older_version_has_no_time() -> None:
    assert trained_seconds(TrainerState()) == 0


@pytest.mark.parametrize(
    ("schedule", "share", "factor"),
    [
        ("linear", 0.0, 0.1),  # a stage of a single step must learn something
        ("linear", 0.1, 0.5),
        ("linear", 0.2, 1.0),
        ("linear", 0.6, 0.5),
        ("linear", 2.0, 0.0),
        ("cosine", 0.4, (1 + math.cos(math.pi / 4)) / 2),
        ("constant_with_warmup", 0.1, 0.5),
        ("constant_with_warmup", 0.9, 1.0),
    ],
)
def test_the_learning_rate_follows_the_share_of_the_time(schedule: str, share: float, factor: float) -> None:
    clock = Clock(50.0)
    clock.seconds = 50 * share
    assert clock.learning_rate(schedule, 0.2, step=12345) == pytest.approx(factor, abs=1e-12)


def test_the_learning_rate_knows_of_the_step_under_way() -> None:
    """The schedule is asked after a step's update and before its end: the second step may not start at a rate of 0."""
    clock = Clock(10.0)
    clock.on_train_begin(None, TrainerState(stateful_callbacks={}), TrainerControl())
    time.sleep(0.05)
    assert clock.seconds == 0
    assert clock.learning_rate("linear", 0.5, 1) >= 0.05 / 5


def test_no_warmup_and_nothing_but_warmup() -> None:
    clock = Clock(50.0)
    assert clock.learning_rate("cosine", 0.0, 0) == 1
    clock.seconds = 50.0
    assert clock.learning_rate("cosine", 1.0, 0) == 1
