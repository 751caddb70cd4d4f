"""The plan of a training in lines: data, device, base, each stage's rows and steps, memory, time, disk."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepared_in
from calrec_lite.data.report import summary
from calrec_lite.errors import InputError, RunError
from calrec_lite.files import work_folder
from calrec_lite.planning.sizes import StageSize, stage_size
from calrec_lite.recipe import Recipe, resolved
from calrec_lite.recipe.deciding import changed
from calrec_lite.recipe.described import differing, explained
from calrec_lite.run import Run

WIDTH = 110  # characters of a line


def written_plan(recipe: Recipe, runs: Path, probe: bool, full: bool) -> Iterator[str]:
    """The plan as comments, then the recipe: all of it is a recipe file.

    Args:
        full: every key with its description, not only what differs from the defaults.

    Raises:
        InputError, RunError: as `plan`, after the recipe.
    """
    yield f"# plan of `{recipe.name}`\n"
    wrong = None
    try:
        for line in plan(Run(recipe, runs / recipe.name), probe):
            parts = textwrap.wrap(line, WIDTH, subsequent_indent=" " * 9, break_on_hyphens=False)
            yield "".join(f"# {part}\n" for part in parts)
    except (InputError, RunError) as error:
        wrong = error
    yield f"# the recipe: {'every key' if full else 'what differs from the defaults; --full shows every key'}\n"
    yield explained(recipe) if full else differing(recipe)
    if wrong:
        raise wrong


def plan(run: Run, probe: bool = False) -> Iterator[str]:
    """The lines of the plan, each as soon as it is known. Nothing is written into the run.

    Args:
        probe: load the base and measure some steps.

    Raises:
        InputError: the data cannot be prepared, or the base is not what it has to be.
    """
    recipe = run.recipe
    if refused := _other_run(run):
        yield refused
    done = [folder.metrics.is_file() for folder in run.stages] if not refused else [False] * len(run.stages)
    names = {name for stage, over in zip(recipe.stages, done) if not over for name in stage.domains}
    with _trial(run, sorted(names | {recipe.target})) as trial:
        domains = {name: trial.domain(name) for name in recipe.domains if name in names | {recipe.target}}
        for domain in domains.values():
            yield f"data     {summary(domain)}"
        sizes = {}
        for i, (stage, folder) in enumerate(zip(recipe.stages, run.stages)):
            if not done[i]:
                sizes[i] = stage_size(stage, domains, recipe)
            yield f"stage    {folder.folder.name}: {'done already' if done[i] else sizes[i]}"
        if sizes:
            yield from _by_base(run, trial, sizes, domains, probe)


def _by_base(
    run: Run, trial: Run, sizes: dict[int, StageSize], domains: dict[str, Domain], probe: bool
) -> Iterator[str]:
    """What depends on the base: nothing is known of it before it is here."""
    done = [folder for folder in run.stages if folder.done]
    if done:
        weights: Path | None = run.weights
    else:
        from calrec_lite.model.base import base_at_hand

        weights = base_at_hand(run.recipe.base)
    if weights is None:
        yield (
            f"base     {run.recipe.base.model.partition('#')[0]} is not here yet: downloaded when training "
            "begins, if the Hub has it; until then nothing is known of tokens, memory and time"
        )
        return
    from calrec_lite.planning.weighing import by_weights

    yield from by_weights(trial, weights, sizes, domains, probe, run.folder)


def _other_run(run: Run) -> str | None:
    """A warning where `train` would refuse this recipe in this folder."""
    if not (run.folder / "recipe.yaml").is_file():
        return None
    existing = Run.open(run.folder)
    sections = changed(resolved(existing.recipe), resolved(run.recipe), existing.asked_or_chosen_dtype)
    if not sections or not existing.holds_results:
        return None
    return f"WARNING: {run.folder} holds a run that differs in {', '.join(sections)}: give this one another `name`"


@contextmanager
def _trial(run: Run, names: list[str]) -> Iterator[Run]:
    """The run in a folder that is removed at the end, with the domains that its own folder holds already."""
    recipe = run.recipe
    with work_folder() as folder:
        trial = Run(recipe, folder)
        (folder / "domains").mkdir()
        for name in names:
            own = run.folder / "domains" / name
            if prepared_in(own, name, recipe.domains[name], recipe.seed, recipe.text):
                (folder / "domains" / name).symlink_to(own.resolve(), target_is_directory=True)
        if choice := run.chosen_dtype:
            trial.remember_dtype(choice)
        yield trial
