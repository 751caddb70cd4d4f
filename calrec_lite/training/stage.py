"""One stage: base -> adapter -> merged weights, with the validation loss at every hand-over."""

import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerState, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from calrec_lite.claim import claimed
from calrec_lite.errors import InputError, RunError
from calrec_lite.files import atomic_path, write_json
from calrec_lite.fitting.fit import require_users
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.method.rows import Rows, StepSampler, training_rows, validation_rows
from calrec_lite.model.base import add_adapter, load_adapter_weights, load_model
from calrec_lite.model.device import described_device, device
from calrec_lite.model.memory import free_memory
from calrec_lite.model.merge import merge_adapter
from calrec_lite.recipe import Recipe, Stage
from calrec_lite.recipe.file import load_recipe
from calrec_lite.run import Run, StageFolder
from calrec_lite.stored import read_object, record_also, require_unchanged
from calrec_lite.training.clock import trained_seconds
from calrec_lite.training.config import CALRecConfig
from calrec_lite.training.float16 import float16_holds
from calrec_lite.training.handover import TrainedStates, check_handover, check_merge, stage_origin, validation_states
from calrec_lite.training.micro_batch import check_offload, remembered_estimate, row_tokens
from calrec_lite.training.progress import RunLog
from calrec_lite.training.trainer import CALRecTrainer, validation_loss

NO_LIMIT = 1_000_000_000  # steps of a stage that ends by the clock


def train(recipe: Recipe | str | Path, runs: str | Path = "runs", overrides: Iterable[str] = ()) -> Run:
    """Train every stage of a recipe, as `calrec-lite train` does; called again after a stop, it goes on.

    Args:
        recipe: from `load_recipe`, or what that takes: a file's path, or the name of a recipe of the package.
        runs: the folder that holds the runs.
        overrides: `key.sub=value`, where `recipe` is no Recipe yet.

    Returns:
        The run, in the folder `runs/NAME`.

    Raises:
        InputError: something in the recipe is wrong, or the folder holds another run.
        RunError: training failed; the same call goes on.
    """
    overrides = list(overrides)
    if isinstance(recipe, Recipe) and overrides:
        raise InputError("overrides: the recipe is loaded already; give them to load_recipe")
    run = Run.start(recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides), Path(runs))
    train_run(run)
    return run


def train_run(run: Run) -> None:
    """Train every stage that is not done yet; each stage's merged weights are the next one's base.

    At the end what `strategy: fused` and `fast` need is fitted to the last ones, unless the recipe makes other lists.

    Raises:
        InputError, RunError: as described at what they name; the run can be started again. InputError, too, where
            another process is training it.
    """
    _check_reporters(run.recipe.optim.report_to)
    with claimed(run.folder):
        if not all(folder.metrics.is_file() for folder in run.stages):
            print(described_device(run.dtype, run.base))
        if run.recipe.recommend.fits:
            require_users(run.domain(run.recipe.target))
        for i, folder in enumerate(run.stages):
            if folder.metrics.is_file():
                folder.facts()
                folder.intact(folder.adapter)
            if folder.done:
                folder.intact(folder.merged)
                print(f"stage {folder.folder.name}: done already")
            elif folder.metrics.is_file():  # its weights were removed to save room: the adapter holds what it learnt
                print(f"stage {folder.folder.name}: done already, merged again")
                merge_adapter(stage_origin(run, i)[0], folder.adapter, folder.merged)
                folder.record()
            else:
                _train_stage(run, i)
        if run.recipe.recommend.fits:
            open_recommender(run, run.final())


def _check_reporters(names: list[str]) -> None:
    """Raise InputError for one that transformers does not know, or whose library is not here: before anything runs."""
    try:
        for reporter in get_reporting_integration_callbacks(names):
            reporter()
    except (ImportError, RuntimeError, ValueError) as error:
        raise InputError(f"optim.report_to: {' '.join(str(error).split())}") from None


def _train_stage(run: Run, index: int) -> None:
    stage, folder = run.recipe.stages[index], run.stages[index]
    base, carried = stage_origin(run, index)
    recipe, name = run.recipe, folder.folder.name
    domains = [run.prepare(d) for d in stage.domains]
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
    if not folder.trained and run.stage_data(name) not in ({}, data):  # what a start on other data left
        shutil.rmtree(folder.folder, ignore_errors=True)
    run.note(name, "training", base=str(base), adapter=str(carried) if carried else None, data=data)
    facts, trained = _train_adapter(run, index, rows, valid)
    free_memory()
    run.note(name, "merging")
    facts["layers_merged"] = merge_adapter(base, folder.adapter, folder.merged)
    facts |= check_merge(trained, valid, folder.merged, run)
    free_memory()
    facts |= check_handover(trained.collator, valid, run, index, facts)
    free_memory()
    folder.record()
    write_json(folder.metrics, facts)  # from here on the stage is done
    record_also(folder.folder, folder.metrics.name)
    run.note(name, "done")
    shutil.rmtree(folder.checkpoints, ignore_errors=True)


def _train_adapter(run: Run, index: int, rows: Rows, valid: Rows) -> tuple[dict[str, Any], TrainedStates]:
    """Train the stage's adapter and save it; model, optimiser and trainer are freed with this function."""
    stage, folder, recipe = run.recipe.stages[index], run.stages[index], run.recipe
    base, carried = stage_origin(run, index)
    set_seed(recipe.training_seed)
    model = add_adapter(load_model(base, run.loading), run.loading, bool(recipe.optim.gradient_checkpointing), carried)
    config = _config(run, stage, folder, model, rows)
    with environment("TENSORBOARD_LOGGING_DIR", str(folder.folder / "tensorboard")):
        log = RunLog(run.log, folder.folder.name)
        trainer = CALRecTrainer(model, config, rows, valid, callbacks=[log])
    if index == 0 and not float16_holds(run, trainer, rows):
        del model, trainer
        free_memory()
        return _train_adapter(run, index, rows, valid)
    facts = _train_to_end(trainer, valid, folder)
    with atomic_path(folder.adapter) as temporary:
        model.save_pretrained(str(temporary))
    states = [s.cpu() for s in validation_states(trainer.towers, valid)]
    return facts, TrainedStates(states, trainer.towers.head.detach().cpu(), trainer.eval_collator)


def _config(run: Run, stage: Stage, folder: StageFolder, model: PeftModel, rows: Rows) -> CALRecConfig:
    optim, seed = run.recipe.optim, run.recipe.training_seed
    if optim.gradient_checkpointing == "offload":
        _refuse_offload(run, model, rows)
    per_epoch = len(StepSampler(rows, optim.batch_size, seed))
    steps = NO_LIMIT if stage.minutes else stage.max_steps or math.ceil((stage.epochs or 1) * per_epoch)
    micro_batch_size = optim.micro_batch_size
    if micro_batch_size == "auto":
        micro_batch_size = remembered_estimate(
            folder.folder / "micro_batch.json",
            model,
            optim.batch_size,
            row_tokens(run.recipe.loss, run.recipe.text, rows),
            optim.gradient_checkpointing,
            device(),
        )
    return CALRecConfig(
        output_dir=str(folder.checkpoints),
        objective=run.recipe.loss,
        micro_batch_size=micro_batch_size,
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
    """Raise InputError where offloading cannot work: without a GPU, with compiled layers, or with too little RAM."""
    optim, loss = run.recipe.optim, run.recipe.loss
    if device().type == "cpu":
        raise InputError(
            "optim.gradient_checkpointing: offload moves activations from the GPU's memory to RAM, and this machine "
            "has no CUDA device: set it to true"
        )
    if optim.compile:
        raise InputError("optim.compile: not together with gradient_checkpointing: offload: set one of them otherwise")
    if loss.contrastive and loss.direction != "user_to_item":  # else a chunk's graph is gone before the next one's
        check_offload(model, optim.batch_size, row_tokens(loss, run.recipe.text, rows))


def _train_to_end(trainer: CALRecTrainer, valid: Rows, folder: StageFolder) -> dict[str, Any]:
    """Train to the end, from the last whole checkpoint if there is one; the validation loss before and after."""
    before_file = folder.folder / "before.json"
    if not before_file.is_file():
        write_json(before_file, {"valid_nats_before": _validation_nats(trainer, valid)})
    before = read_object(before_file, f"remove {folder.folder} to train the stage again")
    checkpoint = folder.last_checkpoint
    if checkpoint:
        remedy = f"remove {checkpoint}, and training goes on from what was before it"
        require_unchanged(checkpoint, remedy=remedy)
    started = time.perf_counter()
    if checkpoint and (state := _finished(trainer, checkpoint)):  # killed after the last step
        assert isinstance(trainer.model, PeftModel)
        load_adapter_weights(trainer.model, checkpoint)
        trainer.state = state
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    after = _validation_nats(trainer, valid)
    if not math.isfinite(after):
        raise RunError(
            "the validation loss after training is no number: lower optim.learning_rate and give the run another `name`"
        )
    return {
        **before,
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


def _validation_nats(trainer: CALRecTrainer, valid: Rows) -> float:
    return validation_loss(trainer.towers, valid, trainer.eval_collator)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while, unless it is set: transformers' reporters read some options from it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
