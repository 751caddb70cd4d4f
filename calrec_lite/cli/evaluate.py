"""evaluate, compare, report."""

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from calrec_lite.cli.options import COUNT, quiet_libraries
from calrec_lite.errors import InputError

if TYPE_CHECKING:
    from calrec_lite.run import Run

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--users", type=COUNT, help="Measure all systems on so many, instead of the recipe's.")
@click.option("--split", type=click.Choice(["test", "validation"]), help="Instead of the recipe's split.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write metrics.json here.")
def evaluate(run: Path, users: int | None, split: str | None, out: Path | None) -> None:
    """Measure a trained RUN, its base and its stages against the baselines, on the same held-out users.

    One of another split than the recipe's, or of fewer users than the evaluation that is there, gets a folder of its
    own: it is neither reported nor exported.
    """
    quiet_libraries()
    from calrec_lite.evaluate.evaluate_run import evaluate_run
    from calrec_lite.evaluate.tables import table
    from calrec_lite.files import atomic_path
    from calrec_lite.run import Run

    opened = Run.open(run)
    recipe_split = opened.recipe.evaluate.split
    changes = {key: value for key, value in (("users", users), ("split", split)) if value}
    if changes:
        # Whoever asks for so many users asks for them of every system.
        options = opened.recipe.evaluate.model_copy(update=changes | ({"model_users": None} if users else {}))
        opened = Run(opened.recipe.model_copy(update={"evaluate": options}), run)
    folder = _place(opened, recipe_split)
    click.echo(table(evaluate_run(opened, folder=folder)))
    written = folder / "metrics.json"
    if out:
        with atomic_path(out) as temporary:
            shutil.copy(written, temporary)
    click.echo(f"\n-> {out or written}")


def _place(run: "Run", recipe_split: str) -> Path:
    """The folder of an evaluation: the run's `evaluation`, unless this one is of another split or fewer users."""
    from calrec_lite.evaluate.store import read_metrics

    options = run.recipe.evaluate
    try:
        existing = read_metrics(run.evaluation)
        same_data = existing["domain"]["fingerprint"] == run.domain(run.recipe.target).fingerprint
        protocol = existing["protocol"] if same_data and existing["protocol"]["split"] == recipe_split else {}
    except InputError:  # there is none, or a damaged one, which is made anew
        protocol = {}
    measured, by_models = protocol.get("users", 0), protocol.get("model_users", protocol.get("users", 0))
    users = options.users or math.inf
    if options.split == recipe_split and users >= measured and min(options.model_users or math.inf, users) >= by_models:
        return run.evaluation
    return run.folder / f"evaluation-{options.split}-{options.users or 'all'}"


@click.command()
@click.argument("run_a", type=FOLDER)
@click.argument("run_b", type=FOLDER)
@click.option("--pair", "pairs", nargs=2, multiple=True, metavar="A B", help="Also system A of RUN_A with B of RUN_B.")
def compare(run_a: Path, run_b: Path, pairs: tuple[tuple[str, str], ...]) -> None:
    """Differences between two evaluated runs, RUN_B minus RUN_A, by paired bootstrap over the same users.

    Either may be one of a run's other evaluations (RUN/evaluation-validation-200), and both the same.
    """
    from calrec_lite.evaluate.compare import compare as compare_runs
    from calrec_lite.evaluate.compare import comparison_table

    click.echo(comparison_table(compare_runs(_evaluation(run_a), _evaluation(run_b), pairs)))


def _evaluation(folder: Path) -> Path:
    """A run's evaluation, or the folder itself where it is one."""
    from calrec_lite.run import Run

    return folder if (folder / "rankings.parquet").is_file() else Run.open(folder).evaluation


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--no-reasons", is_flag=True, help="Leave the model alone: example lists without why.")
def report(run: Path, no_reasons: bool) -> None:
    """Write an evaluated RUN's report: one HTML page with results, training, example users, data and recipe."""
    quiet_libraries()
    from calrec_lite.page.report import write_report
    from calrec_lite.run import Run

    click.echo(f"-> {write_report(Run.open(run), not no_reasons)}")
