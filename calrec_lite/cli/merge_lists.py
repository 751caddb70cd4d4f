"""merge-lists: what several processes made in parts."""

from pathlib import Path
from typing import Any

import click

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.errors import InputError


@click.command("merge-lists")
@click.argument("out", type=click.Path(path_type=Path))
def merge_lists(out: Path) -> None:
    """Put the parts of OUT together and remove them.

    OUT is a file whose parts `recommend --out OUT --shard I/N` made, or the folder (RUN/evaluation.shards) in which
    `evaluate RUN --shard I/N` kept lists: these are measured, with the baselines.
    """
    if out.is_dir():
        _measure(out)
        return
    from calrec_lite.recommend.shards import merge_lists as merge

    users, rejected = merge(out)
    click.echo(f"{users} users -> {out}" + (f"; {rejected} lines rejected" if rejected else ""))


def _measure(kept: Path) -> None:
    from calrec_lite.evaluate.shards import SUFFIX, read_begun

    if not kept.name.endswith(SUFFIX):
        raise InputError(f"{kept}: no folder of lists; `calrec-lite evaluate RUN --shard I/N` names the one it makes")
    said = read_begun(kept)
    quiet_libraries()
    from calrec_lite.evaluate.evaluate_run import evaluate_run
    from calrec_lite.evaluate.tables import table
    from calrec_lite.recipe import resolved
    from calrec_lite.recipe.file import check_recipe
    from calrec_lite.run import Run

    opened = Run.open(kept.parent)
    asked: dict[str, Any] = {**resolved(opened.recipe), "evaluate": said["identity"].get("evaluate")}
    run = Run(check_recipe(asked), kept.parent)
    folder = kept.with_name(kept.name.removesuffix(SUFFIX))
    click.echo(table(evaluate_run(run, folder=folder, merging=True)))
    click.echo(f"\n-> {folder / 'metrics.json'}")
