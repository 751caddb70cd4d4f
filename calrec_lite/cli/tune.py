"""tune."""

from contextlib import nullcontext
from pathlib import Path

import click

from calrec_lite.cli.options import COUNT, quiet_libraries


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--users", type=COUNT, help="Validation users; default: the recipe's, or 500.")
@click.option("--apply", "write", is_flag=True, help="Write the weights into the run.")
def tune(run: Path, users: int | None, write: bool) -> None:
    """Choose the weights of a trained RUN's lists, by validation users only; --apply writes them into the run.

    With `strategy: fused` or `fast` they are fitted anew. With another strategy it says which `recommend.fusion` and
    `.transitions` serve best with `strategy: rerank`, and --apply sets these and that strategy.
    """
    from calrec_lite.claim import claimed
    from calrec_lite.run import Run

    opened = Run.open(run)
    opened.final()
    quiet_libraries()
    from calrec_lite.evaluate.tune import fit_anew, try_weights

    fits = opened.recipe.recommend.fits
    with claimed(opened.folder) if write or fits else nullcontext():
        click.echo(fit_anew(opened, users, write) if fits else try_weights(opened, users or 500, write))
