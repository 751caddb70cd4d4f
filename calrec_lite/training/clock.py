"""How long a stage has trained, over all its starts; of a stage limited by minutes, its end and learning rate."""

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

NAME = "Clock"  # under which checkpoints keep the time
FIRST = 0.1  # share of the learning rate that warm-up begins with: one step may be all there is time for


class Clock(TrainerCallback):
    """Counts the seconds of training: not those of validation and saving, nor those of steps lost by a kill.

    Nor those of compiling, by the trainer's `now`.

    The time stands in every checkpoint, so a run that was killed and started again has no more of it than one that
    was not. How many steps fit into it depends on the machine: a stage with a number of steps can be repeated
    exactly, one with a number of minutes cannot.

    Args:
        limit: seconds after which training ends, with the step under way; None: never.
        now: seconds from any moment on; several processes have to go by one clock.
    """

    def __init__(self, limit: float | None, now: Callable[[], float] = time.perf_counter) -> None:
        self.limit, self.seconds, self.now = limit, 0.0, now
        self._since: float | None = None  # start of the time that `seconds` does not hold yet

    def learning_rate(self, schedule: str, warmup: float, step: int) -> float:
        """Factor of the learning rate: `optim.schedule` over the share of the time that is used, whatever the step."""
        assert self.limit
        # Asked for after a step's update, before its end: by `seconds` alone the rate would lag a step behind.
        running = 0.0 if self._since is None else self.now() - self._since
        share = min(1.0, (self.seconds + running) / self.limit)
        if share < warmup:
            return max(FIRST, share / warmup)
        left = (1 - share) / (1 - warmup) if warmup < 1 else 1.0
        return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}.get(schedule, 1.0)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds, self._since = trained_seconds(state), self.now()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = self.now()
        assert self._since is not None
        self.seconds, self._since = self.seconds + now - self._since, now
        assert isinstance(state.stateful_callbacks, dict)
        state.stateful_callbacks[NAME] = {"seconds": self.seconds}
        if self.limit and self.seconds >= self.limit:
            control.should_training_stop = control.should_save = True

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._since = self.now()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._since = self.now()


def trained_seconds(state: TrainerState) -> float:
    """Seconds of training that led to `state`; 0 at the start, and in checkpoints of older versions."""
    saved = state.stateful_callbacks
    return float(saved[NAME]["seconds"]) if isinstance(saved, dict) and NAME in saved else 0.0
