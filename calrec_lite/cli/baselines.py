"""baselines."""

from pathlib import Path

import click

from calrec_lite.cli.options import quiet_libraries, recipe_arguments, runs_option


@click.command()
@recipe_arguments
@runs_option
@click.option("--all", "everything", is_flag=True, help="Also those that the recipe does not name; may take minutes.")
def baselines(recipe: str, overrides: tuple[str, ...], runs: Path, everything: bool) -> None:
    """Measure the baselines of RECIPE on all held-out users, without any LLM: is there anything to learn?

    RECIPE may be a run's folder, or that of a prepared domain. `evaluate` takes from here what it would measure again.
    """
    click.echo(f"opening the data of {recipe}")
    from calrec_lite.evaluate.source import Measurable

    opened = Measurable.open(recipe, overrides, runs)
    quiet_libraries()
    from calrec_lite.evaluate.beforehand import FOLDER, chosen_baselines, measure_baselines
    from calrec_lite.evaluate.tables import lead, table

    results = measure_baselines(opened.place, opened.domain, opened.recipe, chosen_baselines(opened.recipe, everything))
    click.echo(f"\n{table(results)}\n\n{lead(results)}\n-> {opened.place / FOLDER / 'metrics.json'}")
    if not Path(recipe).is_dir():
        click.echo(f"next: calrec-lite train {recipe} --dry-run")
