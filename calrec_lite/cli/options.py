"""Options that several commands share."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calrec_lite.errors import InputError
from calrec_lite.launcher import process_count

if TYPE_CHECKING:
    from calrec_lite.run import Run

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
    return click.argument("recipe")(
        _set("Override a value of the recipe, e.g. optim.batch_size=32; may be repeated.")(command)
    )


def settings_option(example: str) -> Callable[[Command], Command]:
    """--set, of what is trained already."""
    return _set(f"Another setting for this call alone, e.g. {example}; may be repeated.")


def _set(help_text: str) -> Callable[[Command], Command]:
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", callback=require_text, help=help_text)


def runs_option(command: Command) -> Command:
    """--runs."""
    return click.option(
        "--runs",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("runs"),
        show_default=True,
        help="Folder that holds the runs.",
    )(command)


def open_run(folder: Path, overrides: Iterable[str] = ()) -> "Run":
    """The run in a folder, with settings of this call; needs no torch. Raises InputError as `Run.open`."""
    from calrec_lite.recipe.file import with_settings
    from calrec_lite.run import Run

    run = Run.open(folder)
    return Run(with_settings(run.recipe, overrides), folder, run.recipe)


def in_one_process(command: str) -> None:
    """Raise InputError where a launcher has started several: each would do all of it."""
    if process_count() > 1:
        raise InputError(f"{command}: runs in one process; start it without a launcher")


def quiet_notices() -> None:
    """Keep off the screen what other packages say while they are imported."""
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Keep other packages' bars and notices off the screen: ours show what matters.

    It loads transformers, which takes seconds: after all that may be wrong and needs none of it.
    """
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    quiet_notices()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
