"""One stage: base -> adapter -> merged weights, with the validation loss at every hand-over."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainerState, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from calrec_lite.errors import InputError, RunError
from calrec_lite.files import atomic_path, write_json
from calrec_lite.model.base import add_adapter, load_adapter_weights, load_model, placement
from calrec_lite.model.device import described_device, device
from calrec_lite.model.merge import merge_adapter, parity
from calrec_lite.model.towers import Towers
from calrec_lite.recipe import Base, Stage
from calrec_lite.text.batch import Collator
from calrec_lite.text.rows import Rows, StepSampler, training_rows, validation_rows
from calrec_lite.train.clock import trained_seconds
from calrec_lite.train.memory import auto_micro_batch, check_offload, free_memory
from calrec_lite.train.run import Run, StageFolder
from calrec_lite.train.trainer import CALRecConfig, CALRecTrainer, validation_loss
from calrec_lite.train.trial import float16_holds

PARITY_ROWS = 8
NO_LIMIT = 1_000_000_000  # steps of a stage that ends by the clock


def train_run(run: Run) -> None:
    """Train every stage that is not done yet; each stage's merged weights are the next one's base.

    Raises:
        InputError, RunError: as described at what they name; the run can be started again.
    """
    _check_reporters(run.recipe.optim.report_to)
    if not all(folder.metrics.is_file() for folder in run.stages):
        print(described_device(run.dtype, run.base))
    for i, folder in enumerate(run.stages):
        if folder.done:
            print(f"stage {folder.folder.name}: done already")
        elif folder.metrics.is_file():  # its weights were removed to save room: the adapter holds what it learnt
            print(f"stage {folder.folder.name}: done already, merged again")
            merge_adapter(stage_origin(run, i)[0], folder.adapter, folder.merged)
        else:
            _train_stage(run, i)


def _check_reporters(names: list[str]) -> None:
    """Raise InputError for one that transformers does not know, or whose library is not here: before anything runs."""
    try:
        for reporter in get_reporting_integration_callbacks(names):
            reporter()
    except (ImportError, RuntimeError, ValueError) as error:
        raise InputError(f"optim.report_to: {' '.join(str(error).split())}") from None


def stage_origin(run: Run, index: int) -> tuple[Path, Path | None]:
    """The weights a stage starts from and the adapter it carries on, if any (DESIGN 4.6).

    `merge`: the merged weights of the stage before. `continue`: what that stage itself started from, with its adapter.
    """
    if index == 0:
        return run.base, None
    before = run.stages[index - 1]
    if run.recipe.stages[index].handover == "merge":
        return before.merged, None
    return stage_origin(run, index - 1)[0], before.adapter


def _train_stage(run: Run, index: int) -> None:
    stage, folder = run.recipe.stages[index], run.stages[index]
    base, carried = stage_origin(run, index)
    recipe, name = run.recipe, folder.folder.name
    domains = [run.domain(d) for d in stage.domains]
    catalogues = {d: run.catalogue(d) for d in stage.domains}
    rows = Rows([training_rows(d, catalogues[d.name], run.encoder, recipe.loss) for d in domains], run.encoder)
    if not len(rows):
        raise InputError(f"stage `{stage.name}`: no user of its domains has two items to train on")
    valid = Rows(
        [
            validation_rows(d, catalogues[d.name], run.encoder, recipe.optim.valid_users, recipe.seed)
            for d in domains
            if d.name == recipe.target or recipe.target not in stage.domains
        ],
        run.encoder,
    )
    if not len(valid):
        raise InputError(f"stage `{stage.name}`: no user has a validation case ({domains[-1].holdout})")
    print(f"stage {name}: {len(rows):,} rows of {', '.join(stage.domains)}; {len(valid):,} validation users")
    data = {d.name: d.fingerprint for d in domains}
    run.note(name, "training", base=str(base), adapter=str(carried) if carried else None, data=data)
    facts, live = _adapter(run, index, rows, valid)
    free_memory()
    run.note(name, "merging")
    facts["layers_merged"] = merge_adapter(base, folder.adapter, folder.merged)
    facts |= _check_merge(live, valid, folder.merged, run)
    free_memory()
    facts |= _check_handover(live.collator, valid, run, index, facts)
    free_memory()
    write_json(folder.metrics, facts)
    run.note(name, "done")
    shutil.rmtree(folder.checkpoints, ignore_errors=True)


@dataclass(frozen=True)
class Live:
    """What is kept of the trained model when it makes room: a GPU holds one model at a time."""

    states: list[Tensor]  # (T, D) each, on the CPU: of the first validation rows, with the adapter
    head: Tensor  # (V, D), on the CPU
    collator: Collator


def _adapter(run: Run, index: int, rows: Rows, valid: Rows) -> tuple[dict[str, Any], Live]:
    """Train the stage's adapter and save it; model, optimiser and trainer end with this function."""
    stage, folder, recipe = run.recipe.stages[index], run.stages[index], run.recipe
    base, carried = stage_origin(run, index)
    catalogues = {d: run.catalogue(d) for d in stage.domains}
    set_seed(recipe.training_seed)
    model = add_adapter(load_model(base, run.loading), run.loading, bool(recipe.optim.gradient_checkpointing), carried)
    config = _config(run, stage, folder, model, rows)
    with environment("TENSORBOARD_LOGGING_DIR", str(folder.folder / "tensorboard")):
        log = RunLog(run, folder.folder.name)
        trainer = CALRecTrainer(model, config, run.encoder, catalogues, rows, valid, [log])
    if index == 0 and not float16_holds(run, trainer, rows):
        del model, trainer
        free_memory()
        return _adapter(run, index, rows, valid)
    facts = _train(trainer, valid, folder)
    with atomic_path(folder.adapter) as temporary:
        model.save_pretrained(str(temporary))
    states = [s.cpu() for s in _states(trainer.towers, valid)]
    return facts, Live(states, trainer.towers.head.detach().cpu(), trainer.eval_collator)


def _config(run: Run, stage: Stage, folder: StageFolder, model: PeftModel, rows: Rows) -> CALRecConfig:
    optim, seed = run.recipe.optim, run.recipe.training_seed
    if optim.gradient_checkpointing == "offload":
        _refuse_offload(run, model, rows)
    per_epoch = len(StepSampler(rows, optim.batch_size, seed))
    steps = NO_LIMIT if stage.minutes else stage.max_steps or math.ceil((stage.epochs or 1) * per_epoch)
    micro = optim.micro_batch_size
    if micro == "auto":
        micro = _estimated_micro(run, folder, model, _row_tokens(run, rows))
    return CALRecConfig(
        output_dir=str(folder.checkpoints),
        objective=run.recipe.loss,
        micro_batch_size=micro,
        micro_batch_auto=optim.micro_batch_size == "auto",
        offload_checkpoints=optim.gradient_checkpointing == "offload",
        compile_layers=optim.compile,
        per_device_train_batch_size=optim.batch_size,
        max_steps=steps,
        max_seconds=60 * stage.minutes if stage.minutes else None,
        warmup_share=optim.warmup,
        learning_rate=stage.learning_rate or optim.learning_rate,
        lr_scheduler_type=optim.schedule,
        warmup_steps=0 if stage.minutes else int(optim.warmup * steps),
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        optim=optim.name,
        seed=seed,
        logging_steps=optim.log_every,
        save_steps=optim.save_every,
        save_total_limit=1,
        eval_strategy="steps" if optim.eval_every else "no",
        eval_steps=optim.eval_every,
        report_to=optim.report_to or "none",
        disable_tqdm=False,
        use_cpu=device().type == "cpu",
        dataloader_num_workers=0 if device().type == "cpu" else 2,
    )


def _refuse_offload(run: Run, model: PeftModel, rows: Rows) -> None:
    """Raise InputError where nothing can be offloaded: without a GPU, from compiled layers, to RAM that is full."""
    optim = run.recipe.optim
    if device().type == "cpu":
        raise InputError(
            "optim.gradient_checkpointing: offload moves activations from the GPU's memory to RAM, and this machine "
            "has no CUDA device: set it to true"
        )
    if optim.compile:
        raise InputError("optim.compile: not together with gradient_checkpointing: offload: set one of them otherwise")
    if run.recipe.loss.contrastive:  # else a chunk's graph is gone before the next one's
        check_offload(model, optim.batch_size, _row_tokens(run, rows))


def _row_tokens(run: Run, rows: Rows) -> int:
    """The most tokens that a row brings: its own, and those of its item texts in pass A."""
    loss, text = run.recipe.loss, run.recipe.text
    texts = min(loss.contrast_per_row or text.max_items, text.max_items) if loss.contrastive else 0
    return int(rows.length.max()) + texts * text.max_item_tokens


def _estimated_micro(run: Run, folder: StageFolder, model: PeftModel, row_tokens: int) -> int:
    """The estimate of the stage's first start: cut as they were then, a resumed run's steps give the same bits.

    Made anew where `gradient_checkpointing` was changed since; a size that memory has halved stays that small.
    """
    file, optim = folder.folder / "micro_batch.json", run.recipe.optim
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if known.get("gradient_checkpointing") != optim.gradient_checkpointing:
        rows = auto_micro_batch(model, optim.batch_size, row_tokens, optim.gradient_checkpointing, device())
        known = {"micro_batch_size": rows, "gradient_checkpointing": optim.gradient_checkpointing}
        write_json(file, known)
    return int(known["micro_batch_size"])


def _train(trainer: CALRecTrainer, valid: Rows, folder: StageFolder) -> dict[str, Any]:
    """Train to the end, from the last whole checkpoint if there is one; the validation loss before and after."""
    start = folder.folder / "before.json"
    if not start.is_file():
        write_json(start, {"valid_nats_before": _nats(trainer, valid)})
    checkpoint = last_checkpoint(folder.checkpoints)
    started = time.perf_counter()
    if checkpoint and (state := _finished(trainer, checkpoint)):  # killed after the last step
        assert isinstance(trainer.model, PeftModel)
        load_adapter_weights(trainer.model, checkpoint)
        trainer.state = state
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    after = _nats(trainer, valid)
    if not math.isfinite(after):
        raise RunError(
            "the validation loss after training is no number: lower optim.learning_rate and give the run another `name`"
        )
    return {
        **json.loads(start.read_text(encoding="utf-8")),
        "valid_nats_after": after,
        "steps": trainer.state.global_step,
        "train_seconds": round(trained_seconds(trainer.state), 1),
        "seconds_of_last_session": round(seconds, 1),
        "micro_batch_size": trainer.micro.size,
        "peak_memory_bytes": trainer.peak_bytes,
        "dtype": str(trainer.towers.head.dtype).removeprefix("torch."),
    }


def _finished(trainer: CALRecTrainer, checkpoint: Path) -> TrainerState | None:
    """The checkpoint's state if nothing is left to train after it."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    limit = trainer.args.max_seconds
    ended = state.global_step >= trainer.args.max_steps or (limit is not None and trained_seconds(state) >= limit)
    return state if ended else None


def _nats(trainer: CALRecTrainer, valid: Rows) -> float:
    return validation_loss(trainer.towers, valid, trainer.eval_collator)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; one that was cut off (its state is written last) is passed over."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return path
        except (OSError, ValueError):
            continue
    return None


@torch.no_grad()
def _states(towers: Towers, valid: Rows) -> Iterator[Tensor]:
    """(T, D) of the rows on which models are compared, one after the other."""
    towers.decoder.eval()
    for i in range(min(PARITY_ROWS, len(valid))):
        yield towers.states(torch.from_numpy(valid[i].tokens).unsqueeze(0).to(towers.head.device))[0].detach()


def _check_merge(live: Live, valid: Rows, merged: Path, run: Run) -> dict[str, Any]:
    """Adapter model against merged model, as `placement` loads it: logits on some rows, and the validation loss."""
    quantised, where = placement(merged, run.loading)
    towers = Towers(load_model(merged, run.loading, quantised, where))
    head = live.head.to(towers.head.device)
    before = ((states.to(head.device) @ head.T).cpu() for states in live.states)
    after = ((states @ towers.head.T).cpu() for states in _states(towers, valid))
    facts = asdict(parity(before, after))
    nats = validation_loss(towers, valid, live.collator)
    return {"parity": facts, "valid_nats_merged": nats, "merged_quantised": quantised}


def _check_handover(collator: Collator, valid: Rows, run: Run, index: int, facts: dict[str, Any]) -> dict[str, Any]:
    """The validation loss of the merged weights quantised afresh, and that with which the next stage will start.

    A loud warning where it has risen too far.
    """
    base = run.loading
    handover = run.recipe.stages[index + 1].handover if index + 1 < len(run.stages) else None
    requantised = facts["valid_nats_merged"]
    if (base.load_in_4bit or base.load_in_8bit) and not facts["merged_quantised"]:
        requantised = validation_loss(Towers(load_model(run.stages[index].merged, base)), valid, collator)
    started = {"continue": facts["valid_nats_after"], "merge": requantised, None: facts["valid_nats_merged"]}
    measured = {"valid_nats_requantised": requantised, "valid_nats_handed_on": started[handover]}
    if warning := handover_warning({**facts, **measured}, base, run.recipe.optim.handover_tolerance):
        print(f"WARNING: the hand-over after stage {run.stages[index].folder.name} {warning}")
    return measured


def handover_rise(facts: dict[str, Any]) -> float:
    """Nats an item that a stage's hand-over costs, the worse of merging and handing on; NaN if either is no number."""
    handed = np.array([facts["valid_nats_merged"], facts["valid_nats_handed_on"]])
    if facts.get("merged_quantised"):  # then the first is of other weights than those that are kept
        handed = handed[1:]
    return float(handed.max() - facts["valid_nats_after"])  # unlike Python's, this max() keeps a NaN


def handover_warning(facts: dict[str, Any], base: Base, tolerance: float) -> str | None:
    """What a costly hand-over costs and what helps against it; None where the rise is within the tolerance."""
    rise = handover_rise(facts)
    if rise <= tolerance:
        return None
    merged, handed_on = facts["valid_nats_merged"], facts["valid_nats_handed_on"]
    quantised = "load_in_4bit" if base.load_in_4bit else "load_in_8bit" if base.load_in_8bit else None
    if not math.isfinite(rise):
        remedy = "A model gives no number any more: under another `name`, set a lower optim.learning_rate"
    elif facts.get("merged_quantised") and handed_on == merged:
        remedy = (
            "They could be measured only quantised, being too large for the GPU: what is exported may have lost less. "
            "To lose nothing between stages, set `handover: continue` under another `name`"
        )
    elif quantised and handed_on > merged:  # the next stage starts from merged weights, quantised
        remedy = f"Under another `name`, set `handover: continue` for the next stage, or base.{quantised}: false"
    elif quantised:
        remedy = (
            "The adapter was trained around quantised weights and is added to the original ones: "
            f"under another `name`, set base.{quantised}: false"
        )
        if base.load_in_4bit:
            remedy += "; or write the weights it was trained around by `calrec-lite merge --base dequantized`"
    else:
        remedy = (
            "Sums are rounded as the base's files are stored, and as base.dtype says when they are loaded: under "
            "another `name`, train from a base stored in float32 with base.dtype: float32"
        )
    return (
        f"costs {rise:.3f} nats an item ({facts['valid_nats_after']:.3f}; merged {merged:.3f}; as the next stage "
        f"loads it {handed_on:.3f}): part of what the stage learnt is lost. {remedy}"
    )


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set a variable that is not set, for a while: some of what transformers' reporters read has no other way in."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


class RunLog(TrainerCallback):
    """Appends what the trainer logs to the run's log.jsonl; after a resume, lines of lost steps are dropped."""

    def __init__(self, run: Run, stage: str) -> None:
        self.path, self.stage = run.log, stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if not self._lost(line, state.global_step)]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

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
