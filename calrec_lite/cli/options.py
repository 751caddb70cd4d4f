"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from calrec_lite.errors import InputError

Command = Callable[..., Any]
COUNT = click.IntRange(1, 10**9)  # libraries take no whole number of any size


def require_text(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Raise InputError for a value that was typed in another encoding: no recipe can hold it."""
    for value in values:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"{parameter.opts[0]} {value}: not UTF-8") from None
    return values


def recipe_arguments(command: Command) -> Command:
    """RECIPE and --set."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        callback=require_text,
        help="Override a value of the recipe, e.g. optim.batch_size=32; may be repeated.",
    )(command)
    return click.argument("recipe")(command)


def runs_option(command: Command) -> Command:
    """--runs."""
    return click.option(
        "--runs",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("runs"),
        show_default=True,
        help="Folder that holds the runs.",
    )(command)


def quiet_libraries() -> None:
    """Keep other packages' bars and notices off the screen: ours show what matters."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
