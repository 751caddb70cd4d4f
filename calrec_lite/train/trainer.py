"""`CALRecConfig` and `CALRecTrainer`: the mixed objective on `transformers.Trainer`, in TRL's style."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    SchedulerType,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from calrec_lite.errors import InputError, RunError
from calrec_lite.model.towers import Towers
from calrec_lite.recipe import Loss
from calrec_lite.text.batch import ITEMS_AT_ONCE, Collator, StepBatch
from calrec_lite.text.encoding import EncodedCatalogue, Encoder, Row
from calrec_lite.text.rows import Rows, StepSampler
from calrec_lite.train.clock import Clock
from calrec_lite.train.flops import StepFlops, matmul_rate
from calrec_lite.train.memory import MicroBatch, out_of_memory, peak_bytes
from calrec_lite.train.step import RngState, StepLoss, rng_state, set_rng_state, two_tower_step


@dataclass
class CALRecConfig(TrainingArguments):
    """TrainingArguments and what CALRec adds.

    `per_device_train_batch_size` is the logical batch: the rows of one optimiser step, all of them
    negatives. Gradient accumulation stays at 1: `micro_batch_size` bounds the memory instead, and
    never changes the objective.

    Attributes:
        objective: weights, temperature, targets, softmax (METHOD sections 3 and 5).
        micro_batch_size: full-length rows in memory at once, to begin with.
        micro_batch_auto: whether that number is an estimate, which may grow.
        offload_checkpoints: keep in RAM what gradient checkpointing keeps for the backward pass.
        compile_layers: fuse each layer's kernels by torch.compile.
        max_seconds: of training, after which it ends and by which the learning rate falls; None: max_steps say so.
        warmup_share: of max_seconds; with max_steps alone `warmup_steps` says so.
    """

    objective: Loss = field(default_factory=lambda: Loss())
    micro_batch_size: int = 4
    max_seconds: float | None = None
    warmup_share: float = 0.0
    micro_batch_auto: bool = False
    offload_checkpoints: bool = False
    compile_layers: bool = False
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_accumulation_steps != 1:
            raise InputError("gradient_accumulation_steps adds no negatives: raise the batch size instead")
        if self.world_size > 1:
            raise InputError("CALRecTrainer runs on one device; start it without a distributed launcher")

    def to_dict(self) -> dict[str, Any]:
        """As TrainingArguments, with the objective as plain data (loggers want JSON)."""
        return {**super().to_dict(), "objective": self.objective.model_dump()}


class CALRecTrainer(Trainer):
    """Trains an adapter on rows of histories.

    Args:
        model: a causal LM with trainable adapter layers (`model.base.add_adapter`).
        args: the configuration.
        encoder: of the base's tokenizer.
        catalogues: the domains' items by name.
        train_dataset, eval_dataset: rows (`text.rows`); the last item of an evaluation row is its target.

    Raises:
        RunError: when the loss is no longer a number, or memory does not suffice for a single row.
    """

    args: CALRecConfig

    def __init__(
        self,
        model: nn.Module,
        args: CALRecConfig,
        encoder: Encoder,
        catalogues: Mapping[str, EncodedCatalogue],
        train_dataset: Rows,
        eval_dataset: Rows | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=encoder.tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.clock = Clock(args.max_seconds)
        self.add_callback(self.clock)
        cuda = args.device.type == "cuda"
        self.micro = MicroBatch(args.micro_batch_size, args.per_device_train_batch_size, args.micro_batch_auto and cuda)
        self.add_callback(self.micro)
        self.add_callback(Intervals())
        if not args.disable_tqdm:
            self.add_callback(StageProgress())
        self.towers = Towers(model, args.offload_checkpoints)
        if args.compile_layers:
            self.towers.compile()
        start = int(encoder.start[0])
        longest = int(train_dataset.length.max(initial=1))
        at_once = None if cuda else ITEMS_AT_ONCE
        self.collator = Collator(catalogues, args.objective, start, encoder.pad, self.micro.size, longest, at_once)
        last = args.objective.model_copy(
            update={"targets": "last", "alpha": 0.0, "beta": 0.0, "vocabulary_weight": 0.0}
        )
        self.eval_collator = Collator(catalogues, last, start, encoder.pad, args.micro_batch_size)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = dict.fromkeys(("targets", "tokens", "flops", "steps"), 0)
        self._flops = StepFlops(self.towers.decoder, model.config)  # type: ignore[arg-type]
        self._rate: float | None = None
        self._since = 0.0  # by the clock of training, when the counts began
        self._peak = 0  # of earlier sizes
        self._watch_peak()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Whole steps, made by the collator in background workers."""
        rows = self.train_dataset
        assert isinstance(rows, Rows)
        sampler = StepSampler(rows, self.args.per_device_train_batch_size, self.args.seed)
        loader = DataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=partial(_step, self.collator),  # no lambda: workers may have to pickle it
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
        )
        loader.set_epoch = sampler.set_epoch  # type: ignore[attr-defined]  # the Trainer calls it before each epoch
        return loader

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """As transformers', but by the share of the time where the stage ends by the clock."""
        if self.args.max_seconds is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        name = SchedulerType(self.args.lr_scheduler_type).value
        self.lr_scheduler = LambdaLR(optimizer, partial(self.clock.learning_rate, name, self.args.warmup_share))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One optimiser step's gradient; returns the detached objective. Where memory runs out, it is cut smaller."""
        model.train()
        if not self._counts["steps"]:
            self._since = self.clock.seconds
        batch: StepBatch = inputs["step"]
        before = rng_state(self.args.device)
        while True:
            if batch.micro_batch_size != self.micro.size:
                self.collator.micro_batch_size = self.micro.size
                batch = self.collator(batch.rows)
            result = self._attempt(batch)
            if result is not None:
                break
            self._cut_smaller(before)
        self._note(result, batch)
        if self.micro.grows:
            self._maybe_grow()
        return result.loss

    def _attempt(self, batch: StepBatch) -> StepLoss | None:
        """None where memory ran out. Returning drops the error, and with it what the broken step still held."""
        try:
            return two_tower_step(
                self.towers, batch.to(self.args.device), self.args.objective, self.accelerator.backward
            )
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None

    def _cut_smaller(self, before: RngState) -> None:
        """Undo the broken step and halve the micro-batch."""
        old = self.micro.size
        cast(nn.Module, self.model).zero_grad()
        set_rng_state(before)
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self.micro.shrink():
            raise RunError(
                f"out of memory with a single row of {self.collator.row_tokens} tokens at step "
                f"{self.state.global_step}: set optim.gradient_checkpointing: true, or text.max_history_tokens or "
                "text.max_items lower under another `name`, and start the run again"
            )
        self._resized(old, "out of memory")

    def _maybe_grow(self) -> None:
        device, old = self.args.device, self.micro.size
        resting, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        room = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        if self.micro.grow(resting, peak, room):
            self._resized(old, "room in memory")

    def _watch_peak(self) -> None:
        """From here on the GPU's own peak is that of this size of micro-batch, or of this stage, alone."""
        if self.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.args.device)

    @property
    def peak_bytes(self) -> int:
        """The most memory held since the trainer was made: on the GPU; on a CPU by the process, since its start."""
        return max(self._peak, peak_bytes(self.args.device))

    def _resized(self, old: int, why: str) -> None:
        """Watch the peak of the new size, and say so."""
        self._peak = self.peak_bytes
        self._watch_peak()
        size = self.micro.size
        tqdm.write(f"step {self.state.global_step}: {why}: {old} -> {size} rows at once; the objective stays the same")
        self.log({"micro_batch_size": size, "micro_batch_size_before": old})

    def _note(self, result: StepLoss, batch: StepBatch) -> None:
        for key in (
            "nig",
            "tt",
            "ut",
            "nats_per_item",
        ):  # summed where they are: reading them would wait for the device
            value = getattr(result, key)
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._counts["targets"] += batch.targets
        self._counts["tokens"] += batch.tokens
        self._counts["flops"] += self._flops(batch)
        self._counts["steps"] += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss components and the rates since the last training log; stop on a NaN."""
        if "loss" in logs and self._counts["steps"]:
            seconds = self.clock.seconds - self._since
            logs |= {key: float(value) / self._counts["steps"] for key, value in self._sums.items()}
            logs |= {f"{key}_per_second": self._counts[key] / seconds for key in ("targets", "tokens")}
            logs["seconds"] = self.clock.seconds
            if self._rate is None:  # once; not before training, so that nothing is measured that never trains
                self._rate = matmul_rate(self.args.device, self.towers.head.dtype)
            logs["mfu"] = self._counts["flops"] / seconds / self._rate
            logs["memory_bytes"] = self.peak_bytes
            self._sums, self._counts = {}, dict.fromkeys(self._counts, 0)
            if not math.isfinite(logs["loss"]) or not math.isfinite(logs.get("grad_norm", 0.0)):
                raise RunError(
                    f"the loss is no longer a number at step {self.state.global_step} "
                    f"(loss {logs['loss']}, gradient norm {logs.get('grad_norm')}): "
                    "lower optim.learning_rate, or raise loss.tau, and give the run another `name`"
                )
        super().log(logs, start_time)

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Rows | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Validation loss in nats per item under the stage's softmax, over the last item of each row."""
        rows = eval_dataset or self.eval_dataset
        assert isinstance(rows, Rows)
        nats = validation_loss(self.towers, rows, self.eval_collator, not self.args.disable_tqdm)
        metrics = {f"{metric_key_prefix}_nats_per_item": nats}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@torch.no_grad()
def validation_loss(towers: Towers, rows: Rows, collator: Collator, progress: bool = True) -> float:
    """Mean nats per target item over `rows`, rows of one domain and similar length together."""
    towers.decoder.eval()
    order = sorted(range(len(rows)), key=lambda i: (rows.domain[i], rows.length[i]))
    size = max(collator.micro_batch_size, 8)
    device = towers.head.device
    total = torch.zeros((), device=device)
    for d in range(len(rows.parts)):
        own = [i for i in order if rows.domain[i] == d]
        for at in tqdm(range(0, len(own), size), "validation loss", leave=False, disable=not progress):
            batch = collator([rows[i] for i in own[at : at + size]]).to(device)
            nll = two_tower_step(towers, batch, collator.loss, None)
            total += nll.nats_per_item * batch.targets
    return float(total) / len(rows)


def _step(collator: Collator, rows: list[Row]) -> dict[str, StepBatch]:
    return {"step": collator(rows)}


class Intervals(TrainerCallback):
    """How often is logged, saved and validated: as it is asked now, not as in the checkpoint that is resumed. A step is
    logged before it is saved: a loss that is no number stops there, and the last good checkpoint stays."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save


class StageProgress(TrainerCallback):
    """One bar a stage: steps, rate, remaining time, the latest loss; after the first steps, how long it will take."""

    FIRST = 3  # steps after which the rate is told: the very first one warms up
    LONG = 60  # minutes that are worth a warning

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        total = None if args.max_seconds else state.max_steps
        self.bar = tqdm(total=total, initial=state.global_step, desc="train", unit="step")
        self._ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(1)
        if len(self._ends) < self.FIRST and not args.max_seconds:
            self._ends.append(time.perf_counter())
            if len(self._ends) == self.FIRST:
                seconds = (self._ends[-1] - self._ends[0]) / (self.FIRST - 1)
                self._tell(seconds, state.max_steps - state.global_step)

    def _tell(self, seconds: float, steps: int) -> None:
        minutes = seconds * steps / 60
        tqdm.write(f"{steps:,} steps to go, {seconds:.2g} seconds each: about {max(1, round(minutes)):,} minutes")
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
