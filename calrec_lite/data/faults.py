"""What is wrong with a raw file: the place and the reason, in one short line."""

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import IO

from calrec_lite.errors import InputError

LONGEST = 1 << 24  # bytes of a line
NOT_UTF8 = "is not UTF-8 text; name its `encoding`, or convert it first"


def shown(value: object) -> str:
    """A foreign text for a message: one short line without control characters."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)[:81])
    return text if len(text) <= 80 else text[:77] + "..."


def is_zipped(path: Path) -> bool:
    """Whether its name ends in .gz."""
    return path.suffix.lower() == ".gz"


def open_bytes(path: Path) -> IO[bytes]:
    """The file's content, unzipped."""
    return gzip.open(path) if is_zipped(path) else path.open("rb")  # type: ignore[return-value]


def check_gzip(path: Path, shown_as: Path) -> None:
    """Read the file once to its end: a reader that stops after some rows would not see that the rest is missing.

    Raises:
        InputError: it is cut off or damaged.
    """
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except EOFError:
        raise InputError(f"{shown_as}: the gzip file ends too early (truncated); download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{shown_as}: not a sound gzip file ({error}); download it again") from None


def explain(path: Path, kind: str, message: str, source: Path) -> str:
    """What DuckDB (or pyarrow) says of a file, without what it says of its own query; it was read from `source`."""
    if kind == "json":
        at_line = re.search(r"in line (\d+): (.*)", message)
        return bad_json_line(path, source) or (
            f"{path}:{at_line[1]}: {shown(at_line[2])}" if at_line else _first(path, kind, message)
        )
    at_line = re.search(r"CSV Error on Line: (\d+)", message)
    if at_line is None:
        return _first(path, kind, message)
    # The line itself is quoted before the reason: it may be long, and say anything.
    tail = message.rpartition("Possible fixes")[0] or message
    if "not utf-8" in message:
        reason = NOT_UTF8
    elif found := re.findall(
        r"^(?:Expected Number of Columns: .*|Value with unterminated quote.*)$", tail, re.MULTILINE
    ):
        reason = shown(found[-1])
    elif "Maximum line size" in message:
        reason = f"a line of more than {LONGEST >> 20} MB"
    else:
        reason = shown(message.splitlines()[0])
    return f"{path}:{at_line[1]}: {reason}"


def _first(path: Path, kind: str, message: str) -> str:
    reason = re.sub(r"^[A-Z][A-Za-z ]* Error: ", "", next(iter(message.splitlines()), "no reason given"))
    return f"{path}: not a readable {kind} file: {shown(reason)}; write or download it again"


def bad_json_line(path: Path, source: Path) -> str | None:
    """Where and how the JSON breaks. DuckDB's line numbers are one too high where a line ends early."""
    with open_bytes(source) as file:
        for number, line in enumerate(file, 1):
            if reason := bad_json(line):
                return f"{path}:{number}: {reason}"
    return None


def bad_json(line: bytes) -> str | None:
    """What is wrong with a line of JSON; None: nothing."""
    try:
        value = json.loads(line.rstrip()) if line.strip() else {}
    except UnicodeDecodeError:
        return NOT_UTF8
    except json.JSONDecodeError as error:
        return f"malformed JSON at column {error.colno}: {error.msg}"
    except (RecursionError, ValueError) as error:  # the latter: a number of too many digits
        return "nested too deep" if isinstance(error, RecursionError) else shown(error)
    if not isinstance(value, dict):
        return f"each line must be one JSON object, not {shown(line.decode().strip()[:40])}"
    return None
