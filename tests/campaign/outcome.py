"""One input run in this process as `calrec-lite` runs it, and what came of it."""

import contextlib
import io
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign.case import Case
from tests.campaign.inputs import make
from tests.campaign.world import ROOT, World

LINES = 25  # a recipe may have twenty mistakes
WIDEST = 2000  # characters of a line
LEFT = re.compile(r"\.(tmp|old|work)$")


@dataclass(frozen=True)
class Outcome:
    """What came of an input.

    Attributes:
        result: `ok`, `clear` (exit 2, a few lines), `failed` (exit 1, likewise), `traceback`, `long` (an error that is
            no few lines), `refused` (though nothing is wrong with it), `wrong` (exit 0, and what came out is not
            right), `lost` (a file that was only to be read is gone or another), `left` (something half-written stays).
        cause: of what is neither ok nor clear, in a line that is the same for the same cause.
        commit: the state of the code.
    """

    number: int
    kind: str
    done: str
    result: str
    cause: str = ""
    commit: str = ""


def attempt(world: World, seed: int, number: int, kinds: Sequence[str] = (), show: bool = False) -> Outcome:
    """Make an input (of `kinds`, as `make` says), run it, look at what is left."""
    folder = Path(tempfile.mkdtemp(prefix="input-", dir=world.folder))
    before = os.getcwd()
    try:
        kind, case = make(world, folder, seed, number, kinds)
        if show:
            print(f"calrec-lite {' '.join(map(repr, case.command))}\n{case.done}", file=sys.stderr)
        kept = _states([*case.guarded, *_files(world.base), *_files(world.export), *_files(world.run)])
        os.chdir(folder)
        code, out, err, error = run(case.command)
        if show:
            print(f"exit {code}\n{out}{err}{error or ''}", file=sys.stderr)
        return Outcome(number, kind, case.done, *_judged(case, code, out, err, error, folder, kept))
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def run(command: list[str]) -> tuple[int, str, str, str | None]:
    """Exit code, standard output and error, and the traceback of an exception that nobody caught."""
    from calrec_lite.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    arguments, handlers = sys.argv, {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    code, error = 0, None
    sys.argv = ["calrec-lite", *command]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        code, error = 1, traceback.format_exc()
    finally:
        sys.argv = arguments
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = []
    for stream in (out, err):
        stream.flush()
        said.append(stream.buffer.getvalue().decode("utf-8", "replace"))  # type: ignore[attr-defined]
    return code, said[0], said[1], error


def _judged(
    case: Case, code: int, out: str, err: str, error: str | None, folder: Path, kept: dict[Path, Any]
) -> tuple[str, str]:
    if error:
        return "traceback", cause(error)
    if "Traceback (most recent call last)" in err or "Exception ignored" in err:
        return "traceback", cause(err)
    if changed := [path for path, state in kept.items() if _state(path) != state]:
        return "lost", f"{case.command[0]}: {changed[0].name} was changed or removed"
    if left := [path for path in folder.rglob("*") if LEFT.search(path.name)]:
        return "left", f"{case.command[0]}: {re.sub(r'[0-9]+', 'N', left[0].name)} stays"
    if code:
        said = [line for line in err.splitlines() if "calrec-lite: " in line or code == 2]
        if not said:
            return "long", f"{case.command[0]}: exit {code} without a word"
        if len(said) > LINES or max(map(len, said)) > WIDEST:
            return "long", f"{case.command[0]}: {len(said)} lines, up to {max(map(len, said))} long: {_plain(said[0])}"
        if case.right:
            return "refused", f"{case.command[0]}: {_plain(said[-1])}"
        return ("clear", "") if code == 2 else ("failed", _plain(said[-1]))
    problem = case.judge(out) if case.judge else None
    return ("wrong", f"{case.command[0]}: {_plain(problem)}") if problem else ("ok", "")


def cause(error: str) -> str:
    """The exception's type and where it left this package."""
    places = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', error)
    own = [(f, line, name) for f, line, name in places if f.startswith(str(ROOT / "calrec_lite"))]
    file, line, name = (own or places or [("?", "0", "?")])[-1]
    last = next((x for x in reversed(error.strip().splitlines()) if re.match(r"[A-Za-z_][\w.]*(:|$)", x)), "?")
    where = Path(file).relative_to(ROOT) if file.startswith(str(ROOT)) else Path(file).name
    return f"{where}:{line} {name}: {_plain(last)}"


def _plain(line: str) -> str:
    """A line without what differs from input to input."""
    line = re.sub(r"/\S*/", "/", line)
    return re.sub(r"\d+", "N", " ".join(line.split()))[:200]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _states(paths: list[Path]) -> dict[Path, Any]:
    return {path: _state(path) for path in paths}


def _state(path: Path) -> Any:
    try:
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns, stat.st_ino
    except OSError:
        return None
