"""What the base makes of a plan: tokens, memory, time, disk; estimated by its shape, or measured by some steps."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import torch
from peft import PeftModel

from calrec_lite.data.domain import Domain
from calrec_lite.method.batch import ITEMS_AT_ONCE, Collator
from calrec_lite.method.rows import Rows
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import require_positions
from calrec_lite.model.device import described_device, device
from calrec_lite.model.memory import CUDA_BYTES, activation_bytes, free_bytes
from calrec_lite.model.merge import shards
from calrec_lite.model.skeleton import parameters, resting_bytes, skeleton
from calrec_lite.planning.probe import Measured, measure
from calrec_lite.planning.sizes import StageSize, in_gb, in_time
from calrec_lite.run import Run
from calrec_lite.training.mfu import StepFlops, matmul_rate
from calrec_lite.training.micro_batch import auto_micro_batch, row_tokens
from calrec_lite.training.sampler import StepSampler
from calrec_lite.training.stage import stage_rows
from calrec_lite.training.vocabulary import Vocabulary

SAMPLED = 4  # steps whose tokens are counted
VALIDATIONS = 3  # of a stage: before, after, merged


@dataclass(frozen=True)
class Weighed:
    """A stage by what its steps hold.

    Attributes:
        tokens, flops: of a step, a mean over some. row: the most tokens a row brings, its item texts among them.
        micro_batch_size: rows at once. spared: bytes of weights that a GPU does not hold meanwhile.
    """

    size: StageSize
    rows: Rows
    valid: Rows
    tokens: float
    flops: float
    row: int
    micro_batch_size: int
    spared: int


def by_weights(
    run: Run, weights: Path, sizes: Mapping[int, StageSize], domains: Mapping[str, Domain], probe: bool, folder: Path
) -> Iterator[str]:
    """Lines of a plan that need the base.

    Args:
        run: a trial, in a folder that is removed. folder: the run's own.
        weights: what the first stage that is not done starts from.
        sizes: of the stages that are not done, by their index.

    Raises:
        InputError: the base cannot be trained by this recipe. RunError: by `probe`, memory does not suffice.
    """
    base = run.recipe.base.model_copy(update={"model": str(weights), "revision": None})
    trial = Run(run.recipe.model_copy(update={"base": base}), run.folder)
    yield described_device(trial.dtype, weights).replace("device: ", "device   ")
    model = skeleton(weights, trial.loading, trial.dtype.dtype)
    frozen, trained = parameters(model)
    kind = "4 bits" if base.load_in_4bit else "8 bits" if base.load_in_8bit else trial.dtype.dtype
    name = run.recipe.base.model.partition("#")[0]
    yield f"base     {name}: {_count(frozen)} weights in {kind}, an adapter of {_count(trained)}"
    stages = [_weighed(trial, model, size, domains) for size in sizes.values()]
    for stage in stages:
        in_all = f", {stage.tokens * stage.size.steps:,.0f} in all" if stage.size.steps else ""
        yield f"tokens   {stage.size.stage.name}: about {stage.tokens:,.0f} a step{in_all}"
    measured = measure(trial, weights, stages[0].size.stage, stages[0].rows, stages[0].valid) if probe else None
    yield _memory(model, trial, stages, measured)
    yield from _time(trial, stages, measured)
    yield _disk(folder, len(stages), sum(file.stat().st_size for file in shards(weights)), trained)


def _weighed(run: Run, model: PeftModel, size: StageSize, domains: Mapping[str, Domain]) -> Weighed:
    recipe, batch = run.recipe, run.recipe.optim.batch_size
    rows, valid = stage_rows(run, size.stage, [domains[name] for name in size.stage.domains])
    for data in (rows, valid):
        require_positions(model, int(data.length.max()))
    row = row_tokens(recipe.loss, recipe.text, rows)
    micro = recipe.optim.micro_batch_size
    spared = Vocabulary(model, [rows, valid], recipe.loss, device()).spared_bytes
    if isinstance(micro, str):
        free = spared - resting_bytes(model, run.loading, recipe.optim.name)
        micro = auto_micro_batch(model, batch, row, recipe.optim.gradient_checkpointing, device(), free)
    catalogues = {part.catalogue.name: part.catalogue for part in rows.parts}
    start, longest = int(run.encoder.start[0]), int(rows.length.max())
    at_once = ITEMS_AT_ONCE if device().type == "cpu" else None
    collator = Collator(catalogues, recipe.loss, start, run.encoder.pad, micro, longest, at_once)
    flops = StepFlops(Towers(model).decoder, model.config)  # type: ignore[arg-type]
    steps = [
        collator([rows[i] for i in chosen])
        for chosen in islice(StepSampler(rows, batch, recipe.training_seed), SAMPLED)
    ]
    tokens = float(np.mean([step.tokens for step in steps]))
    mean_flops = float(np.mean([flops(step) for step in steps]))
    return Weighed(size, rows, valid, tokens, mean_flops, row, min(micro, batch), spared)


def _memory(model: PeftModel, run: Run, stages: list[Weighed], measured: Measured | None) -> str:
    room = free_bytes(device())
    free = f"; {in_gb(room)} are free"
    if measured:
        return f"memory   {in_gb(measured.peak_bytes)} in the trial, {measured.micro_batch_size} rows at once{free}"
    optim = run.recipe.optim
    resting = resting_bytes(model, run.loading, optim.name) - min(stage.spared for stage in stages)
    own = psutil.Process().memory_info().rss if device().type == "cpu" else CUDA_BYTES
    largest = max(stages, key=lambda stage: stage.row * stage.micro_batch_size)
    tokens = largest.row * largest.micro_batch_size
    chunk = tokens * activation_bytes(model, optim.gradient_checkpointing)
    short = "; WARNING: not enough" if resting + chunk > room else ""
    return (
        f"memory   about {in_gb(own + resting + chunk)} at most: {in_gb(resting)} for weights and optimiser, "
        f"{in_gb(chunk)} for {largest.micro_batch_size} rows at once of {largest.row:,} tokens with their items, "
        f"{in_gb(own)} for the program{free}{short}"
    )


def _time(run: Run, stages: list[Weighed], measured: Measured | None) -> Iterator[str]:
    if measured is None:
        rate = matmul_rate(device(), getattr(torch, run.dtype.dtype))
        bound = sum(stage.flops * stage.size.steps / rate for stage in stages if stage.size.steps)
        bound += sum(60 * stage.size.stage.minutes for stage in stages if stage.size.stage.minutes)
        yield (
            f"time     {in_time(bound)} and more, if products of matrices were all there is to do, at the rate that "
            "the device has now; `--probe` measures some steps"
        )
        return
    total = 0.0
    for stage in stages:
        step = stage.tokens / measured.tokens_per_second
        limit = stage.size.stage.minutes
        training = 60 * limit if limit else step * (stage.size.steps or 0)
        validating = _validations(run, training / step) * len(stage.valid) / measured.validation_per_second
        total += training + validating
        of = f"about {training / step:,.0f} steps" if limit else in_time(training)
        name = stage.size.stage.name
        yield f"time     {name}: {of}, {step:.2g} seconds a step, and {in_time(validating)} of validation"
    yield f"time     {in_time(total)} in all, by some steps of the first; what is fitted at the end comes on top"


def _validations(run: Run, steps: float) -> int:
    """How often a stage of so many steps measures its validation loss: as the next one loads it, too, where that is
    in fewer bits."""
    base, every = run.recipe.base, run.recipe.optim.eval_every
    return VALIDATIONS + (base.load_in_4bit or base.load_in_8bit) + (int(steps) // every if every else 0)


def _disk(folder: Path, stages: int, weights: int, adapter: int) -> str:
    """What a run takes beside its data: `stages` to be trained, bytes of the base's files, weights of the adapter."""
    needed = stages * (weights + 4 * adapter) + 12 * adapter  # fp32; the checkpoint of one stage has both moments
    place = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    short = "; WARNING: not enough" if needed > free else ""
    return (
        f"disk     {in_gb(needed)} in {folder}: merged weights and adapter of each stage, a checkpoint; an export "
        f"takes {in_gb(weights)} more; {in_gb(free)} are free{short}"
    )


def _count(number: int) -> str:
    return f"{number / 1e6:,.0f}M" if number >= 1e7 else f"{number:,}"
