"""init: from a person's own file to a recipe."""

from pathlib import Path

import click

from calrec_lite.cli.options import quiet_notices


@click.command()
@click.argument("events")
@click.argument("items", required=False)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The recipe; default: named after EVENTS.")
@click.option("--yes", "-y", is_flag=True, help="Take the guesses instead of asking.")
def init(events: str, items: str | None, out: Path | None, yes: bool) -> None:
    """Write a first recipe for the file EVENTS (one row an event), with the items' texts in it or in the file ITEMS.

    Columns are guessed by their names and by what they hold, what is left open is asked; five histories are shown as
    the model will read them, with what would be dropped and why.
    """
    from calrec_lite.starting.first import first_recipe

    quiet_notices()
    path = first_recipe(events, items, out, yes, click.echo)
    click.echo(f"-> {path}\nnext: calrec-lite baselines {path}" if path else "nothing was written")
