"""One stage: base -> adapter -> merged weights, with the validation loss at every hand-over."""

import math
import shutil
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerState, set_seed

from calrec_lite.claim import claimed
from calrec_lite.data.domain import Domain
from calrec_lite.data.report import summary
from calrec_lite.errors import InputError, RunError
from calrec_lite.files import atomic_path, write_json
from calrec_lite.fitting.fit import require_users
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.method.rows import Rows, training_rows, validation_rows
from calrec_lite.model.base import load_adapter_weights
from calrec_lite.model.device import described_device, device
from calrec_lite.model.memory import free_memory
from calrec_lite.model.merge import merge_adapter
from calrec_lite.processes import Processes, joined
from calrec_lite.recipe import Recipe, Stage
from calrec_lite.recipe.file import load_recipe
from calrec_lite.run import Run, StageFolder
from calrec_lite.stored import read_object, record_also, require_unchanged
from calrec_lite.trackers import PROJECT, require_trackers, tracking
from calrec_lite.training.clock import trained_seconds
from calrec_lite.training.config import CALRecConfig
from calrec_lite.training.float16 import float16_holds
from calrec_lite.training.fsdp import model_to_train
from calrec_lite.training.handover import TrainedStates, check_handover, check_merge, stage_origin, validation_states
from calrec_lite.training.micro_batch import check_offload, remembered_estimate, row_tokens
from calrec_lite.training.progress import RunLog
from calrec_lite.training.sampler import StepSampler
from calrec_lite.training.trainer import CALRecTrainer
from calrec_lite.training.validation import validation_loss
from calrec_lite.training.vocabulary import Vocabulary

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
    recipe, processes = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides), joined()
    run = Run.start(recipe, Path(runs)) if processes.first else Run(recipe, Path(runs) / recipe.name)
    train_run(run)
    return run


def train_run(run: Run) -> None:
    """Train every stage that is not done yet; each stage's merged weights are the next one's base.

    At the end what `strategy: fused` and `fast` need is fitted to the last ones, unless the recipe makes other lists.
    Of several processes that a launcher started the first one leads, and alone writes; the others return as soon as
    all stages are trained.

    Raises:
        InputError, RunError: as described at what they name; the run can be started again. InputError, too, where
            another process is training it.
    """
    processes = joined()
    if not processes.first:
        _follow(run, processes)
        return
    require_trackers(run.recipe.optim.report_to)
    with claimed(run.folder):
        if not all(folder.metrics.is_file() for folder in run.stages):
            print(described_device(run.dtype, run.base))
            if processes.size > 1:
                print(f"{processes.size} processes, each with its share of a step's {run.recipe.optim.batch_size} rows")
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
                _train_stage(run, i, processes)
        processes.tell(None)
        if run.recipe.recommend.fits:
            open_recommender(run, run.final())


def _follow(run: Run, processes: Processes) -> None:
    """Train along in each stage that the first process has made ready."""
    while (index := processes.tell()) is not None:
        domains = [run.domain(name) for name in run.recipe.stages[index].domains]
        _train_adapter(run, index, *stage_rows(run, run.recipe.stages[index], domains), processes)
        free_memory()


def _train_stage(run: Run, index: int, processes: Processes) -> None:
    stage, folder = run.recipe.stages[index], run.stages[index]
    base, carried = stage_origin(run, index)
    name = folder.folder.name
    domains = [run.prepare(d) for d in stage.domains]
    for domain in domains:
        print(summary(domain))
    rows, valid = stage_rows(run, stage, domains)
    print(f"stage {name}: {len(rows):,} rows of {', '.join(stage.domains)}; {len(valid):,} validation users")
    data = {d.name: d.fingerprint for d in domains}
    if not folder.trained and run.stage_data(name) not in ({}, data):  # what a start on other data left
        shutil.rmtree(folder.folder, ignore_errors=True)
    run.note(name, "training", base=str(base), adapter=str(carried) if carried else None, data=data)
    processes.tell(index)
    facts, trained = _train_adapter(run, index, rows, valid, processes)
    free_memory()
    run.note(name, "merging")
    facts["layers_merged"] = merge_adapter(base, folder.adapter, folder.merged)
    facts |= check_merge(trained, valid, folder.merged, run)
    free_memory()
    facts |= check_handover(trained.collator, valid, run, index, facts)
    free_memory()
    folder.record()
    print(
        f"stage {name}: {facts['steps']:,} steps in {facts['train_seconds'] / 60:.1f} minutes; validation "
        f"{facts['valid_nats_before']:.3f} nats an item before, {facts['valid_nats_after']:.3f} after, "
        f"{facts['valid_nats_merged']:.3f} merged"
    )
    write_json(folder.metrics, facts)  # from here on the stage is done
    record_also(folder.folder, folder.metrics.name)
    run.note(name, "done")
    shutil.rmtree(folder.checkpoints, ignore_errors=True)


def stage_rows(run: Run, stage: Stage, domains: Sequence[Domain]) -> tuple[Rows, Rows]:
    """What a stage trains on, and what its validation loss is measured on.

    Args:
        domains: the stage's, prepared.

    Raises:
        InputError: one of both is empty.
    """
    recipe, catalogues = run.recipe, {d.name: run.catalogue(d.name) for d in domains}
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
    return rows, valid


def _train_adapter(
    run: Run, index: int, rows: Rows, valid: Rows, processes: Processes
) -> tuple[dict[str, Any], TrainedStates]:
    """Train the stage's adapter and save it; model, optimiser and trainer are freed with this function."""
    stage, folder, recipe = run.recipe.stages[index], run.stages[index], run.recipe
    base, carried = stage_origin(run, index)
    set_seed(recipe.training_seed)
    print(f"loading {base}", flush=True)
    model = model_to_train(run, base, carried, processes)
    config = stage_config(run, stage, folder, model, rows, processes)
    length = f"{stage.minutes:g} minutes" if stage.minutes else f"{config.max_steps:,} steps"
    print(f"training: {length} of {recipe.optim.batch_size} rows, {config.micro_batch_size} at once", flush=True)
    with tracking(folder.folder / "tensorboard"):
        log = [RunLog(run.log, folder.folder.name)] if processes.first else []
        trainer = CALRecTrainer(model, config, rows, valid, callbacks=[*log])
        if index == 0 and not processes.by_first(lambda: float16_holds(run, trainer, rows)):
            del model, trainer
            free_memory()
            return _train_adapter(run, index, rows, valid, processes)
        with processes.gathering():
            facts = _train_to_end(trainer, valid, folder)
    if processes.first:
        with atomic_path(folder.adapter) as temporary:
            model.save_pretrained(str(temporary))
    with processes.gathering():
        states = [s.cpu() for s in validation_states(trainer.towers, valid)]
    return facts, TrainedStates(states, trainer.towers.head.detach().cpu(), trainer.eval_collator)


def stage_config(
    run: Run, stage: Stage, folder: StageFolder, model: PeftModel, rows: Rows, processes: Processes
) -> CALRecConfig:
    """The trainer's settings of a stage. Raises InputError where activations cannot be offloaded as it asks."""
    optim, seed = run.recipe.optim, run.recipe.training_seed
    if optim.gradient_checkpointing == "offload":
        _refuse_offload(run, model, rows)
    per_epoch = len(StepSampler(rows, optim.batch_size, seed))
    steps = NO_LIMIT if stage.minutes else stage.max_steps or math.ceil((stage.epochs or 1) * per_epoch)
    micro_batch_size = optim.micro_batch_size
    if micro_batch_size == "auto":
        estimate = partial(
            remembered_estimate,
            folder.folder / "micro_batch.json",
            model,
            -(-optim.batch_size // processes.size),
            row_tokens(run.recipe.loss, run.recipe.text, rows),
            optim.gradient_checkpointing,
            device(),
            Vocabulary(model, [rows], run.recipe.loss, device()).spared_bytes,
        )
        micro_batch_size = processes.by_first(estimate)
    return CALRecConfig(
        output_dir=str(folder.checkpoints),
        objective=run.recipe.loss,
        micro_batch_size=micro_batch_size,
        micro_batch_auto=optim.micro_batch_size == "auto",
        offload_checkpoints=optim.gradient_checkpointing == "offload",
        compile_layers=optim.compile,
        cuda_graph=optim.cuda_graph,
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
        run_name=f"{run.recipe.name}/{folder.folder.name}",
        project=PROJECT,
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
    before_file, processes = folder.folder / "before.json", trainer.processes
    if not processes.by_first(before_file.is_file):
        nats = _validation_nats(trainer, valid)
        processes.by_first(lambda: write_json(before_file, {"valid_nats_before": nats}))
    before = read_object(before_file, f"remove {folder.folder} to train the stage again")
    checkpoint = processes.by_first(partial(_sound_checkpoint, folder))
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


def _sound_checkpoint(folder: StageFolder) -> Path | None:
    """The last whole checkpoint, if there is one. Raises InputError where it is damaged."""
    checkpoint = folder.last_checkpoint
    if checkpoint:
        remedy = f"remove {checkpoint}, and training goes on from what was before it"
        require_unchanged(checkpoint, remedy=remedy)
    return checkpoint


def _finished(trainer: CALRecTrainer, checkpoint: Path) -> TrainerState | None:
    """The checkpoint's state if nothing is left to train after it."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    limit = trainer.args.max_seconds
    ended = state.global_step >= trainer.args.max_steps or (limit is not None and trained_seconds(state) >= limit)
    return state if ended else None


def _validation_nats(trainer: CALRecTrainer, valid: Rows) -> float:
    return validation_loss(trainer.towers, valid, trainer.eval_collator, processes=trainer.processes)
