"""doctor, bases: what this machine has and can."""

import click

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.errors import RunError

NAMES = 14  # characters of the widest check's name, and a space


@click.command()
def doctor() -> None:
    """Try what training needs on this machine, and say which bases fit. Exit code 1: something that is needed fails."""
    quiet_libraries()
    from calrec_lite.machine.checks import checks
    from calrec_lite.machine.fitting import place_here
    from calrec_lite.machine.hub import ask_hub

    place = place_here()
    failed = []
    for check in checks(place, ask_hub()):
        click.echo(f"{check.state:<6} {check.name:<{NAMES}}{check.said}")
        if check.remedy:
            click.echo(f"{'':<7}{'':<{NAMES}}-> {check.remedy}")
        if check.state == "fails":
            failed.append(check.name)
    click.echo("")
    _show_bases()
    if failed:
        raise RunError(f"doctor: needed, and fails: {', '.join(failed)}; the lines above say the remedies")
    click.echo("next: calrec-lite init EVENTS.csv, or calrec-lite demo")


@click.command()
def bases() -> None:
    """List the bases that come with recipes: licence, download, and what fits this machine's memory."""
    _show_bases()


def _show_bases() -> None:
    from calrec_lite.machine.fitting import place_here
    from calrec_lite.machine.listing import base_table

    click.echo(base_table(place_here()))
