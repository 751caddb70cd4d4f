"""`CALRecConfig` and `CALRecTrainer`: the mixed objective on `transformers.Trainer`, in TRL's style."""

import math
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    SchedulerType,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from calrec_lite.errors import InputError, RunError
from calrec_lite.method.batch import ITEMS_AT_ONCE, Collator, StepBatch
from calrec_lite.method.rows import Rows
from calrec_lite.method.step import StepLoss, two_tower_step
from calrec_lite.model.compiling import seconds_without_compiling
from calrec_lite.model.memory import out_of_memory, peak_bytes
from calrec_lite.model.random_states import RngState, rng_state, set_rng_state
from calrec_lite.model.sharded import is_sharded
from calrec_lite.processes import joined
from calrec_lite.recommend.recommender import Recommender
from calrec_lite.stored import write_manifest
from calrec_lite.text.encoding import Row
from calrec_lite.training.clock import Clock
from calrec_lite.training.config import CALRecConfig
from calrec_lite.training.mfu import StepFlops, matmul_rate
from calrec_lite.training.micro_batch import MicroBatch, auto_micro_batch, row_tokens
from calrec_lite.training.opening import Model, Records, open_data, open_model, open_towers, tokenizer_of, with_adapter
from calrec_lite.training.progress import Intervals, StageProgress
from calrec_lite.training.sampler import StepSampler
from calrec_lite.training.saving import save_trained
from calrec_lite.training.shared_step import SharedStep, seed_step
from calrec_lite.training.validation import validation_loss
from calrec_lite.training.vocabulary import Vocabulary


class CALRecTrainer(Trainer):
    """Trains an adapter by the two-tower objective of CALRec, on histories of purchases.

    ::

        trainer = CALRecTrainer(
            model="HuggingFaceTB/SmolLM2-135M",
            args=CALRecConfig(output_dir="out", max_steps=100),
            train_dataset=[{"user": "u1", "items": ["id3", "id9", "id4"]}, ...],
            catalogue=[{"item": "id3", "title": "A blue pen"}, ...],
        )
        trainer.train()
        trainer.recommender().recommend([["id3", "id9"]], k=10)

    Args:
        model: a Hub id, a folder, or a loaded causal LM, with or without PEFT's adapter. Only the adapter is trained.
        args: the configuration.
        train_dataset: a `datasets.Dataset`, or dicts: `items`, a list of ids, oldest first, and perhaps `user`. Every
            item but the first is a target (`objective.targets`): what is held out, leave out. Or rows made before
            (`method.rows.Rows`), which know their catalogues.
        eval_dataset: likewise; the last item of each history is its target.
        catalogue: a `datasets.Dataset`, or dicts: `item`, the id, and the text fields, in the order of the text.
        processing_class: the tokenizer; default: that of the model.
        peft_config: of the adapter; default: rank 16 on all linear layers.
        quantization_config: of a model given by name.
        callbacks: transformers'.

    Raises:
        InputError: what is given is missing, of no use, or does not fit the rest; at once, not while training.
        RunError: when the loss is no longer a number, or memory does not suffice for a single row.
    """

    args: CALRecConfig

    def __init__(
        self,
        model: Model,
        args: CALRecConfig | None = None,
        train_dataset: Rows | Records | None = None,
        eval_dataset: Rows | Records | None = None,
        catalogue: Records | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: LoraConfig | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        args = args or CALRecConfig("out")
        if train_dataset is None:
            raise InputError("train_dataset: is missing; give histories: [{'user': id, 'items': [ids]}, ...]")
        self.processes = joined()
        opened = open_model(model, quantization_config)
        tokenizer = partial(tokenizer_of, opened, processing_class)
        self.data = open_data(train_dataset, eval_dataset, catalogue, args, tokenizer)
        self._original = opened.original
        super().__init__(
            with_adapter(opened, args, peft_config),  # last: what is wrong with the rest leaves the model as it is
            args,
            train_dataset=self.data.rows,
            eval_dataset=self.data.valid,
            processing_class=self.data.rows.encoder.tokenizer,
            callbacks=callbacks,
        )
        self._set_up(self.data.rows, self.data.valid)

    def _set_up(self, rows: Rows, valid: Rows | None) -> None:
        args, encoder, processes = self.args, rows.encoder, self.processes
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        told = args.max_seconds and processes.size > 1  # the learning rate follows the clock, one for all
        now = seconds_without_compiling
        self.clock = Clock(args.max_seconds, partial(processes.by_first, now) if told else now)
        self.add_callback(self.clock)
        cuda, batch = args.device.type == "cuda", -(-args.per_device_train_batch_size // processes.size)
        size, estimated = args.micro_batch_size, args.micro_batch_auto
        read = [data for data in (rows, valid) if data]
        self.vocabulary = Vocabulary(self._peft_model, read, args.objective, args.device)
        if isinstance(size, str):
            tokens = row_tokens(args.objective, encoder.text, rows)
            given = batch, tokens, args.checkpointing, args.device, self.vocabulary.spared_bytes
            size, estimated = auto_micro_batch(self._peft_model, *given), True
        self._split = is_sharded(self._peft_model)  # then memory that runs out ends the run
        self.micro = MicroBatch(size, batch, estimated and cuda and not self._split)
        self.add_callback(self.micro)
        self.add_callback(Intervals())
        if not args.disable_tqdm and processes.first:
            self.add_callback(StageProgress())
        self.towers = open_towers(self._peft_model, args, read)
        start = int(encoder.start[0])
        longest = int(rows.length.max(initial=1))
        at_once = None if cuda else ITEMS_AT_ONCE
        catalogues = {part.catalogue.name: part.catalogue for data in read for part in data.parts}
        for catalogue in catalogues.values():
            encoder.require_within(len(self.towers.head), catalogue.tokens)
        self.collator = Collator(
            catalogues, args.objective, start, encoder.pad, self.micro.size, longest, at_once, share=processes.share
        )
        last_target_loss = args.objective.model_copy(
            update={"targets": "last", "alpha": 0.0, "beta": 0.0, "vocabulary_weight": 0.0}
        )
        self.eval_collator = Collator(catalogues, last_target_loss, start, encoder.pad, size, held_out=True)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = dict.fromkeys(("targets", "tokens", "flops", "steps"), 0)
        self._flops = StepFlops(self.towers.decoder, self._peft_model.config)  # type: ignore[arg-type]
        self._rate: float | None = None
        self._since = 0.0  # time of `clock` at which the counts began
        self._peak = 0  # bytes, of earlier micro-batch sizes
        self._watch_peak()

    @property
    def _peft_model(self) -> PeftModel:
        assert isinstance(self.model, PeftModel)
        return self.model

    def recommender(self) -> Recommender:
        """Lists by the model as it is now, over the catalogue it was trained with, as `args.recommend` says.

        After further training ask for a new one. Transition counts are those of `train_dataset`.
        `Recommender.save_pretrained` writes it as one folder.

        Raises:
            InputError: the trainer was given rows made before, which know no ids of items; the model's attention
                takes no mask; or the strategy is fitted by `calrec_lite.train` only.
        """
        data, options = self.data, self.args.recommend
        attention = self._peft_model.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise InputError(
                f"recommender: beams share a prompt by a mask, which {attention} does not take: load the model with "
                "attn_implementation='sdpa'"
            )
        if data.items is None:
            raise InputError("recommender: give histories and a catalogue to the trainer, not rows made before")
        if options.fits:
            raise InputError(f"recommender: `{options.strategy}` is fitted to runs only; choose another strategy")
        encoded = data.rows.parts[0].catalogue
        self.vocabulary.keep_whole()  # lists may be asked for while training goes on
        return Recommender(
            self.towers,
            data.rows.encoder,
            encoded,
            data.items.ids,
            options,
            self.args.seed,
            data.items.aliases,
            transitions=data.transitions() if options.counts_transitions else None,
            save=partial(save_trained, self._peft_model, self._original, data, self.args),
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; afterwards the model is in the mode that it was in, so that it generates as before.

        Meanwhile a GPU holds only those rows of embedding and LM head that the loss reads (`model.trimming`).
        """
        training = self._peft_model.training
        self.processes.copy_first(self._peft_model.parameters())
        try:
            with self.vocabulary.trimmed():
                return super().train(*args, **kwargs)
        finally:
            self.towers.release()
            self._peft_model.train(training)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As transformers', with a manifest, so that damage is noticed before it is gone on with."""
        super()._save_checkpoint(*args, **kwargs)
        if self.args.should_save:
            folder = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            write_manifest(folder, ["*"])

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers', but accelerate wraps no model: the step itself is shared out (docs/architecture.md)."""
        super().create_accelerator_and_postprocess()
        if self.processes.size > 1:
            self.accelerator.state.distributed_type = DistributedType.NO

    def _save_rng_state(self, output_dir: str) -> None:
        """As transformers'. Several processes draw anew in each step (`training_step`), and the first alone writes."""
        if self.processes.size == 1:
            super()._save_rng_state(output_dir)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not of use here: a list is a search over a catalogue, not the logits of a data set."""
        raise NotImplementedError("call trainer.recommender().recommend([[ids or titles]], k=10) for lists")

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
        """As transformers', but by the share of the time used where the stage ends by the clock."""
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
        fill = self.collator.start if self._split else None
        step = SharedStep(self.processes, batch, self.args.objective.vocabulary_weight, fill)
        if self.processes.size > 1:
            seed_step(self.args.seed, self.state.global_step, self.processes.rank)
        rng_before = rng_state(self.args.device)
        while True:
            if batch.micro_batch_size != self.micro.size:
                self.collator.micro_batch_size = self.micro.size
                batch = self.collator(batch.rows)
            batch = step.share(batch)
            result = self._attempt(batch)
            if result is not None:
                break
            self._cut_smaller(rng_before)
        self.processes.sum_gradients(model.parameters())
        self._add_to_log(result, batch)
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

    def _cut_smaller(self, rng_before: RngState) -> None:
        """Undo the broken step and halve the micro-batch."""
        old = self.micro.size
        cast(nn.Module, self.model).zero_grad()
        self.towers.release()
        set_rng_state(rng_before)
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._split:
            raise RunError(f"out of memory with {old} rows at once: set optim.micro_batch_size lower; the run goes on")
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
        """Reset the GPU's peak counter: from here on it measures this micro-batch size, or this stage, alone."""
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

    def _add_to_log(self, result: StepLoss, batch: StepBatch) -> None:
        for key in ("nig", "tt", "ut", "nats_per_item"):  # summed on the device: reading them would wait for it
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
            logs["mfu"] = self._counts["flops"] / seconds / self._rate / self.processes.size
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
        if not isinstance(rows, Rows):
            raise InputError("evaluate: give histories as eval_dataset when the trainer is made")
        nats = validation_loss(self.towers, rows, self.eval_collator, not self.args.disable_tqdm, self.processes)
        metrics = {f"{metric_key_prefix}_nats_per_item": nats}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _step(collator: Collator, rows: list[Row]) -> dict[str, StepBatch]:
    return {"step": collator(rows)}
