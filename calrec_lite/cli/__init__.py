"""The command line. Heavy imports stand inside the commands, so that `--help` answers at once."""

import io
import sys

import click

from calrec_lite import __version__
from calrec_lite.cli.ablate import ablate
from calrec_lite.cli.baselines import baselines
from calrec_lite.cli.demo import demo
from calrec_lite.cli.ending import environment_failed, interruption, stopped_by_signals
from calrec_lite.cli.evaluate import compare, evaluate, report
from calrec_lite.cli.export import export, merge
from calrec_lite.cli.index import index
from calrec_lite.cli.init import init
from calrec_lite.cli.machine import bases, doctor
from calrec_lite.cli.merge_lists import merge_lists
from calrec_lite.cli.push import push
from calrec_lite.cli.recommend import recommend
from calrec_lite.cli.serve import serve
from calrec_lite.cli.terminal import screens
from calrec_lite.cli.train import prepare, train
from calrec_lite.cli.tune import tune
from calrec_lite.errors import InputError, OthersEnded, RunError
from calrec_lite.threads import share_cores

LONGEST = 1800  # characters of an error's line


# `color`: click would take colour codes out of titles without a word; here they are escaped as they are printed.
@click.group(context_settings={"help_option_names": ["-h", "--help"], "color": True})
@click.version_option(__version__)
def group() -> None:
    """Finetune a pretrained LLM into a sequential recommender on one consumer GPU (CALRec).

    A recipe says everything: `calrec-lite train recipe.yaml --set stages.0.epochs=2`.
    """


for command in (
    init,
    doctor,
    bases,
    demo,
    prepare,
    baselines,
    train,
    evaluate,
    tune,
    compare,
    ablate,
    report,
    recommend,
    serve,
    merge_lists,
    merge,
    export,
    index,
    push,
):
    group.add_command(command)


def main() -> None:
    """Entry point: exit 2 for what the user got wrong, 1 for a run that failed and can be resumed."""
    share_cores()  # before anything imports NumPy or torch
    with screens() as out:
        message, code = _run()
        out.flush()
        if out.failure and not code:
            message, code = f"standard output: {out.failure.strerror}; what stood there is lost", 1
        for line in message.splitlines():
            print(f"calrec-lite: {_cut(line)}", file=sys.stderr)
    if code:
        sys.exit(code)


def _run() -> tuple[str, int]:
    """Run the command. Returns what is to be said at the end, and the exit code."""
    with stopped_by_signals() as stop:
        try:
            group(standalone_mode=False)
        except (click.exceptions.Abort, KeyboardInterrupt) as error:
            if isinstance(error.__cause__, EOFError):  # click makes an interruption of it
                return _said(error.__cause__)
            return interruption(), 1
        except Exception as error:
            if stop.asked:  # a library made another error of it
                return interruption(), 1
            return _said(error)
    return "", 0


def _said(error: Exception) -> tuple[str, int]:
    """What is said of an error, and the exit code; raised again where it is a fault of this program."""
    if isinstance(error, click.ClickException):
        shown = io.StringIO()
        error.show(shown)
        for line in shown.getvalue().splitlines():
            print(_cut(line), file=sys.stderr)
        return "", 2
    if isinstance(error, OthersEnded) and not interruption():
        return "", 1
    if isinstance(error, InputError | RunError):
        return str(error), 2 if isinstance(error, InputError) else 1
    if failed := environment_failed(error):
        return failed
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return "something that was typed, or that a file holds, is no text in UTF-8; write it anew", 2
    raise error


def _cut(line: str) -> str:
    """Without its middle where it is too long: what was typed may be of any length, and the remedy comes last."""
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} [...] {line[-half:]}"
