"""The command line. Heavy imports stand inside the commands, so that `--help` answers at once."""

import os
import signal
import sys
from functools import partial

import click

from calrec_lite import __version__
from calrec_lite.cli.ablate import ablate
from calrec_lite.cli.demo import demo
from calrec_lite.cli.evaluate import compare, evaluate, report
from calrec_lite.cli.export import export, merge
from calrec_lite.cli.push import push
from calrec_lite.cli.recommend import recommend
from calrec_lite.cli.train import prepare, train
from calrec_lite.cli.tune import tune
from calrec_lite.errors import InputError, RunError
from calrec_lite.threads import share_cores


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def group() -> None:
    """Finetune a pretrained LLM into a sequential recommender on one consumer GPU (CALRec).

    A recipe says everything: `calrec-lite train recipe.yaml --set stages.0.epochs=2`.
    """


for command in (
    demo,
    prepare,
    train,
    evaluate,
    tune,
    compare,
    ablate,
    report,
    recommend,
    merge,
    export,
    push,
):
    group.add_command(command)


def main() -> None:
    """Entry point: exit 2 for what the user got wrong, 1 for a run that failed and can be resumed."""
    share_cores()  # before anything imports NumPy or torch
    signal.signal(signal.SIGTERM, partial(_interrupt, os.getpid()))
    try:
        group(standalone_mode=False)
    except click.exceptions.Abort:
        _end("interrupted; the same command goes on where it stopped", 1)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except InputError as error:
        _end(str(error), 2)
    except RunError as error:
        _end(str(error), 1)


def _interrupt(process: int, number: int, frame: object) -> None:
    """As Ctrl+C does, so that nothing half-written stays; a process that was forked off just ends."""
    if os.getpid() != process:
        os._exit(128 + number)
    raise KeyboardInterrupt


def _end(message: str, code: int) -> None:
    for line in message.splitlines():
        click.echo(f"calrec-lite: {line}", err=True)
    sys.exit(code)
