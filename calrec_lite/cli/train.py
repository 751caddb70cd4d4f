"""prepare, train."""

from pathlib import Path

import click

from calrec_lite.cli.options import quiet_libraries, recipe_arguments, runs_option


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
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and stop.")
def train(recipe: str, overrides: tuple[str, ...], runs: Path, dry_run: bool) -> None:
    """Train every stage of RECIPE. Started again after a stop, it goes on from the last checkpoint."""
    from calrec_lite.recipe import resolved
    from calrec_lite.recipe.file import load_recipe

    loaded = load_recipe(recipe, overrides)
    if dry_run:
        import yaml

        click.echo(yaml.safe_dump(resolved(loaded), sort_keys=False, allow_unicode=True), nl=False)
        return
    quiet_libraries()
    from calrec_lite.training.stage import train as train_recipe

    run = train_recipe(loaded, runs)
    click.echo(f"trained: {run.final()}\nnext: calrec-lite evaluate {run.folder}")
