"""The two ways a command may end badly.

`InputError` is what the user got wrong: one clear line (what, where, how to mend), exit code 2.
`RunError` is a run that failed for another reason and can be resumed: exit code 1.
"""

LAUNCHED = "CALREC_LITE_LAUNCHED"  # in the environment of processes that a command started: what all say it says once


class InputError(Exception):
    """The user's input is wrong. The message names the file, line or key, and the remedy."""


class RunError(Exception):
    """A run failed. The message says what happened and how to go on."""


class OthersEnded(RunError):
    """Another of the processes that train as one has ended, so that this one cannot go on."""


def one_line(error: BaseException, most: int = 300) -> str:
    """Another library's error in one line of at most so many characters; its class where it has no text."""
    return " ".join(str(error).split())[:most] or type(error).__name__
