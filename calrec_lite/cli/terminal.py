"""What is printed: foreign text without its control characters, in any encoding, and to pipes that nobody reads."""

import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO

from calrec_lite.table import CONTROL

BARS = "\r", "\x1b[A"  # progress bars go to a line's begin and up a line


class Screen(io.TextIOBase):
    """A text stream that escapes control characters, and what its encoding lacks.

    Titles, labels and keys come from other people: raw, they could move the cursor or retitle the window. Where nothing
    can be written any more the work goes on: a closed pipe is no fault, and any other is kept as `failure`.

    Args:
        stream: None: closed from the start.
        kept: control sequences that pass.
    """

    def __init__(self, stream: TextIO | None, kept: tuple[str, ...] = ()) -> None:
        self.failure: OSError | None = None
        self._stream, self._kept = stream, kept
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self._stream is None:
            self.failure = OSError(errno.EBADF, "it is closed")
        else:
            with self._going_on():
                self._stream.write(CONTROL.sub(self._escaped, text))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with self._going_on():
                self._stream.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("closed")
        return self._stream.fileno()

    def _escaped(self, found: re.Match[str]) -> str:
        return found[0] if found[0] in self._kept else found[0].encode("unicode_escape").decode()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.failure = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # what is left in the stream's own buffer goes there, too
            os.close(nowhere)


@contextmanager
def screens() -> Iterator[Screen]:
    """Standard output and error are Screens within the block. Gives that of standard output."""
    for number in range(3):  # a closed one's number would be given to the next file that is opened
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)
    out, error = Screen(sys.stdout), Screen(sys.stderr, BARS)
    with redirect_stdout(out), redirect_stderr(error):
        try:
            yield out
        finally:
            out.flush()
            error.flush()
