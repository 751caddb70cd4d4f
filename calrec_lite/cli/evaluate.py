"""evaluate, compare, report."""

import shutil
from pathlib import Path

import click

from calrec_lite.cli.options import COUNT, open_run, quiet_libraries, settings_option
from calrec_lite.errors import InputError
from calrec_lite.table import shown

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--users", type=COUNT, help="Measure all systems on so many, instead of the recipe's.")
@click.option("--split", type=click.Choice(["test", "validation"]), help="Instead of the recipe's split.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write metrics.json here.")
@settings_option("recommend.strategy=beam")
@click.option("--shard", metavar="I/N", help="Make the I-th of N parts of the models' lists only; see merge-lists.")
def evaluate(
    run: Path,
    users: int | None,
    split: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    shard: str | None,
) -> None:
    """Measure a trained RUN, its base and its stages against the baselines, on the same held-out users.

    One of another split than the recipe's, of fewer users than the evaluation that is there, or by other settings
    (--set recommend.* and evaluate.*) gets a folder of its own. It is not reported; an export by the same settings
    shows it.
    """
    opened = open_run(run, overrides)
    opened.final()
    quiet_libraries()
    from calrec_lite.evaluate.evaluate_run import evaluate_run, make_lists
    from calrec_lite.evaluate.settings import evaluation_folder
    from calrec_lite.evaluate.tables import caption, table_rows
    from calrec_lite.files import atomic_path
    from calrec_lite.recommend.shards import Shard
    from calrec_lite.run import Run

    changes = {key: value for key, value in (("users", users), ("split", split)) if value}
    if changes:
        # Whoever asks for so many users asks for them of every system.
        options = opened.recipe.evaluate.model_copy(update=changes | ({"model_users": None} if users else {}))
        opened = Run(opened.recipe.model_copy(update={"evaluate": options}), run, opened.own)
    folder = evaluation_folder(opened)
    if part := Shard.parsed(shard) if shard else Shard.of_environment():
        if out:
            raise InputError("--out: a part has no metrics yet; leave it out")
        kept = make_lists(opened, folder, part)
        click.echo(f"part {part} -> {kept}; when all are done: calrec-lite merge-lists {kept}")
        return
    results = evaluate_run(opened, folder=folder)
    click.echo(f"{shown(*table_rows(results))}\n\n{caption(results)}")
    written = folder / "metrics.json"
    if out:
        with atomic_path(out) as temporary:
            shutil.copy(written, temporary)
    click.echo(f"\n-> {out or written}")


@click.command()
@click.argument("run_a", type=FOLDER)
@click.argument("run_b", type=FOLDER)
@click.option("--pair", "pairs", nargs=2, multiple=True, metavar="A B", help="Also system A of RUN_A with B of RUN_B.")
def compare(run_a: Path, run_b: Path, pairs: tuple[tuple[str, str], ...]) -> None:
    """Differences between two evaluated runs, RUN_B minus RUN_A, by paired bootstrap over the same users.

    Either may be one of a run's other evaluations (RUN/evaluation-validation-200), and both the same.
    """
    from calrec_lite.evaluate.compare import compare as compare_runs
    from calrec_lite.evaluate.compare import comparison_notes, comparison_rows

    compared = compare_runs(_evaluation(run_a), _evaluation(run_b), pairs)
    click.echo(f"{shown(*comparison_rows(compared))}\n\n{comparison_notes(compared)}")


def _evaluation(folder: Path) -> Path:
    """A run's evaluation, or the folder itself where it is one."""
    from calrec_lite.run import Run

    return folder if (folder / "rankings.parquet").is_file() else Run.open(folder).evaluation


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--no-reasons", is_flag=True, help="Leave the model alone: example lists without why.")
def report(run: Path, no_reasons: bool) -> None:
    """Write an evaluated RUN's report: one HTML page with results, training, example users, data and recipe."""
    from calrec_lite.evaluate.store import read_metrics

    opened = open_run(run)
    read_metrics(opened.evaluation)
    quiet_libraries()
    from calrec_lite.page.report import write_report

    click.echo(f"-> {write_report(opened, not no_reasons)}")
