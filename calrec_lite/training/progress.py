"""What training reports while it runs: a bar and minutes on the screen, every entry in the run's log.jsonl."""

import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from calrec_lite.files import atomic_path
from calrec_lite.training.clock import trained_seconds


class Intervals(TrainerCallback):
    """How often to log, save and validate: by the present arguments, not those of the checkpoint resumed from. A step
    is logged before it is saved: a loss that is no number stops there, and the last good checkpoint stays."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save


class StageProgress(TrainerCallback):
    """One bar a stage: steps, rate, remaining time, the latest loss; after the first steps, how long it will take."""

    FIRST = 3  # steps after which the rate is shown: the very first one warms up
    LONG = 60  # minutes that are worth a warning

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        total = None if args.max_seconds else state.max_steps
        self.bar = tqdm(total=total, initial=state.global_step, desc="train", unit="step")
        self._step_ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.max_seconds:  # how many steps there will be is not known, how much time is
            left = max(0.0, args.max_seconds - trained_seconds(state)) / 60
            self.bar.set_description(f"train, {left:.1f} minutes left", refresh=False)
        self.bar.update(1)
        if len(self._step_ends) < self.FIRST and not args.max_seconds:
            self._step_ends.append(time.perf_counter())
            if len(self._step_ends) == self.FIRST:
                seconds = (self._step_ends[-1] - self._step_ends[0]) / (self.FIRST - 1)
                self._tell(seconds, state.max_steps - state.global_step)

    def _tell(self, seconds: float, steps: int) -> None:
        minutes = seconds * steps / 60
        about = f"about {minutes:,.0f} minutes" if minutes >= 1.5 else "about a minute, or less"
        tqdm.write(f"{steps:,} steps to go, {seconds:.2g} seconds each: {about}")
        if minutes > self.LONG:
            tqdm.write(
                "WARNING: more than an hour. Shorter: fewer steps (stages.N.max_steps, .epochs or .minutes), rows of "
                "fewer items (text.max_items) or tokens (text.max_item_tokens), a smaller base, a GPU"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        shown = {"nats_per_item": "nats/item", "targets_per_second": "targets/s", "eval_nats_per_item": "validation"}
        self.bar.set_postfix({label: f"{logs[key]:.2f}" for key, label in shown.items() if key in (logs or {})})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class RunLog(TrainerCallback):
    """Appends what the trainer logs to the run's log.jsonl; after a resume, lines of lost steps are dropped."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        remaining = [line for line in lines if not self._lost(line, state.global_step)]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in remaining), encoding="utf-8")

    def _lost(self, line: str, step: int) -> bool:
        try:
            entry = json.loads(line)
        except ValueError:  # cut off in the middle
            return True
        return bool(entry["stage"] == self.stage and entry["step"] > step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        entry = {"stage": self.stage, "step": state.global_step, **(logs or {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
