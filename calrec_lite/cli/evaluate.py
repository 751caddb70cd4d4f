"""evaluate, compare, report."""

import shutil
from pathlib import Path

import click

from calrec_lite.cli.options import quiet_libraries

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--users", type=click.IntRange(min=1), help="Measure so many users instead of the recipe's number.")
@click.option("--split", type=click.Choice(["test", "validation"]), help="Instead of the recipe's split.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write metrics.json here.")
def evaluate(run: Path, users: int | None, split: str | None, out: Path | None) -> None:
    """Measure a trained RUN, its base and its stages against the baselines, on the same held-out users."""
    quiet_libraries()
    from calrec_lite.evaluate.results import table
    from calrec_lite.evaluate.systems import evaluate_run
    from calrec_lite.files import atomic_path
    from calrec_lite.train.run import Run

    opened = Run.open(run)
    changes = {key: value for key, value in (("users", users), ("split", split)) if value}
    if changes:
        options = opened.recipe.evaluate.model_copy(update=changes)
        opened = Run(opened.recipe.model_copy(update={"evaluate": options}), run)
    click.echo(table(evaluate_run(opened)))
    written = opened.evaluation / "metrics.json"
    if out:
        with atomic_path(out) as temporary:
            shutil.copy(written, temporary)
    click.echo(f"\n-> {out or written}")


@click.command()
@click.argument("run_a", type=FOLDER)
@click.argument("run_b", type=FOLDER)
def compare(run_a: Path, run_b: Path) -> None:
    """Differences between two evaluated runs, RUN_B minus RUN_A, by paired bootstrap over the same users."""
    from calrec_lite.evaluate.compare import compare as compare_runs
    from calrec_lite.evaluate.compare import comparison_table
    from calrec_lite.train.run import Run

    click.echo(comparison_table(compare_runs(Run.open(run_a).evaluation, Run.open(run_b).evaluation)))


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--no-reasons", is_flag=True, help="Leave the model alone: example lists without why.")
def report(run: Path, no_reasons: bool) -> None:
    """Write an evaluated RUN's report: one HTML page with results, training, example users, data and recipe."""
    quiet_libraries()
    from calrec_lite.evaluate.report import write_report
    from calrec_lite.train.run import Run

    click.echo(f"-> {write_report(Run.open(run), not no_reasons)}")
