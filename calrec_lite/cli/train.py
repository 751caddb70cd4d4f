"""prepare, train."""

import os
from contextlib import redirect_stderr
from pathlib import Path

import click

from calrec_lite.cli.options import quiet_libraries, recipe_arguments, runs_option
from calrec_lite.errors import InputError
from calrec_lite.launcher import is_launched, rank


@click.command()
@recipe_arguments
@runs_option
def prepare(recipe: str, overrides: tuple[str, ...], runs: Path) -> None:
    """Prepare the domains of RECIPE and say what was kept, what was dropped and why."""
    from calrec_lite.claim import claimed
    from calrec_lite.data.report import describe
    from calrec_lite.recipe.file import load_recipe
    from calrec_lite.run import Run

    loaded = load_recipe(recipe, overrides)
    run = Run(loaded, runs / loaded.name)
    with claimed(run.folder):
        for name in loaded.domains:
            click.echo(describe(run.prepare(name)))
            click.echo(f"-> {run.folder / 'domains' / name}\n")


@click.command()
@recipe_arguments
@runs_option
@click.option("--dry-run", is_flag=True, help="Print the plan and what the recipe says beside the defaults; train not.")
@click.option("--probe", is_flag=True, help="With --dry-run: measure some real steps.")
@click.option("--full", is_flag=True, help="With --dry-run: all keys of the recipe, with their descriptions.")
@click.option("--nproc", type=click.IntRange(1, 1024), default=1, help="Processes that train as one, each on a GPU.")
def train(
    recipe: str, overrides: tuple[str, ...], runs: Path, dry_run: bool, probe: bool, full: bool, nproc: int
) -> None:
    """Train every stage of RECIPE. Started again after a stop, it goes on from the last checkpoint."""
    from calrec_lite.recipe.file import load_recipe

    if (probe or full) and not dry_run:
        raise InputError(f"--{'probe' if probe else 'full'}: together with --dry-run only")
    loaded = load_recipe(recipe, overrides)
    if dry_run:
        quiet_libraries()
        from calrec_lite.planning.plan import written_plan

        for text in written_plan(loaded, runs, probe, full):
            click.echo(text, nl=False)
        click.echo(f"# next: calrec-lite train {recipe}")
        return
    if nproc > 1:
        _train_in(nproc, recipe, overrides, runs, loaded.optim.batch_size)
        return
    if not rank():
        click.echo(f"training `{loaded.name}` into {runs / loaded.name}: loading PyTorch and transformers")
    quiet_libraries()
    from calrec_lite.training.stage import train as train_recipe

    if rank():  # the first process's bars are enough
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            train_recipe(loaded, runs)
        return
    run = train_recipe(loaded, runs)
    click.echo(f"trained: {run.final()}\nnext: calrec-lite evaluate {run.folder}")


def _train_in(nproc: int, recipe: str, overrides: tuple[str, ...], runs: Path, batch_size: int) -> None:
    """Start the same command in so many processes."""
    if is_launched():
        raise InputError("--nproc: this process was started by a launcher; give the number to one of both")
    if batch_size < nproc:
        raise InputError(f"--nproc {nproc}: optim.batch_size is {batch_size}; each process takes one row or more")
    quiet_libraries()
    from calrec_lite.training.launch import launch

    settings = [word for override in overrides for word in ("--set", override)]
    launch(nproc, ["train", *settings, "--runs", str(runs), "--", recipe])
