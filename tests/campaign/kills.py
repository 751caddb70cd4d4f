"""Commands disturbed at random moments (killed, asked to stop, out of disk) and started again: they must end as if
nobody had disturbed them."""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from numpy.random import Generator, default_rng

from tests.campaign.disk import can_mount, disk, grown, used
from tests.campaign.equal import common, content, difference
from tests.campaign.outcome import LEFT, cause, run
from tests.campaign.state import Lines, described_commit
from tests.campaign.world import World

COMMANDS = ("prepare", "train", "merge", "evaluate", "export", "bulk")
DISK = "full disk"
SHARES = {"SIGKILL": 0.6, "SIGTERM": 0.1, "SIGINT": 0.1, "SIGHUP": 0.1, DISK: 0.1}
MOST = 3  # signals of one round
FIRST = 0.02  # seconds after which the earliest comes: a child that was just forked off is not the command yet
STOPPING = 60  # seconds for a command that was asked to stop
PATIENCE = 600  # seconds for a start that nobody disturbs


@dataclass(frozen=True)
class Round:
    """A command disturbed `struck` times, then left alone. `difference` is "" where it ended as undisturbed."""

    number: int
    command: str
    how: str
    struck: int
    difference: str
    commit: str = ""


@dataclass(frozen=True)
class Undisturbed:
    """Seconds a command takes, its folder's bytes before and after, and what it then holds: only what two such runs
    have in common can be compared."""

    seconds: float
    before: int
    after: int
    content: dict[str, Any]


def kill_rounds(world: World, seed: int, kills: int, mended: bool = False) -> dict[str, Any]:
    """Rounds until so many signals have struck. What is done is kept, a line each.

    Args:
        mended: take over what earlier states of the code ended as undisturbed.
    """
    lines, commit = Lines(world, f"kills-{seed}.jsonl"), described_commit()
    rounds = {r.number: r for r in (Round(**line) for line in lines.read())}
    if mended:
        earlier = [Round(**line) for line in lines.earlier()]
        rounds = {r.number: r for r in earlier if not r.difference} | rounds
    known = {command: undisturbed(world, command) for command in COMMANDS}
    hows = {how: share for how, share in SHARES.items() if how != DISK or can_mount()}
    for number in (n for n in count() if n not in rounds):
        if sum(r.struck for r in rounds.values() if r.how != DISK) >= kills and number > max(rounds):
            break
        done = replace(kill_round(world, seed, number, known, hows), commit=commit)
        rounds[number] = done
        lines.add(asdict(done))
        if done.difference or len(rounds) % 10 == 0:
            print(f"round {number}: {done.command}, {done.how}: {done.difference or 'equal'}", file=sys.stderr)
    return kill_summary([rounds[n] for n in sorted(rounds)])


def kill_summary(rounds: list[Round]) -> dict[str, Any]:
    """Counts, and the rounds that ended otherwise."""
    by_signal, disks = [r for r in rounds if r.how != DISK], [r for r in rounds if r.how == DISK]
    return {
        "kills": _struck(by_signal),
        "kills_equal": _struck([r for r in by_signal if not r.difference]),
        "kills_by_command": _counted(by_signal, lambda r: r.command),
        "kills_by_signal": _counted(by_signal, lambda r: r.how),
        "full_disks": _struck(disks),
        "full_disks_equal": _struck([r for r in disks if not r.difference]),
        "rounds": len(rounds),
        "rounds_by_commit": dict(Counter(r.commit for r in rounds)),
        "rounds_equal": sum(not r.difference for r in rounds),
        "differences": [asdict(r) for r in rounds if r.difference],
    }


def _struck(rounds: list[Round]) -> int:
    return sum(r.struck for r in rounds)


def _counted(rounds: list[Round], key: Callable[[Round], str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for one in rounds:
        counts[key(one)] += one.struck
    return dict(sorted(counts.items()))


def kill_round(world: World, seed: int, number: int, known: dict[str, Undisturbed], hows: dict[str, float]) -> Round:
    """Disturb one command as the seed draws it, let it end, and compare."""
    random = default_rng([seed, 1, number])
    command = str(random.choice(list(known)))
    how = str(random.choice(list(hows), p=[share / sum(hows.values()) for share in hows.values()]))
    folder, mine = world.folder / f"round-{number}", known[command]
    room = mine.before + int(random.uniform(0.05, 1) * (mine.after - mine.before)) if how == DISK else 0
    with disk(folder, room):
        arguments, faults = _start(world, command, folder), folder.with_name(f"{folder.name}.faults")
        faults.unlink(missing_ok=True)
        if how == DISK:
            struck = int(_forked(arguments, folder, PATIENCE) not in (0, None))
            grown(folder)
        else:
            struck = _stopped(arguments, folder, random, how, mine.seconds)
        code = _forked(arguments, folder, PATIENCE)
        found = difference(mine.content, content(folder))
        if code is None:
            found = f"not ended after {PATIENCE} s"
        elif code and not (command == "merge" and not found):  # killed after its last step: it is there already
            found = f"exit {code}; {found}"
        if faults.is_file():
            found = f"{faults.read_text(encoding='utf-8').strip()}; {found}"
            faults.unlink()
        return Round(number, command, how, struck, found)


def _stopped(arguments: list[str], folder: Path, random: Generator, how: str, seconds: float) -> int:
    """Send the command signals, one to three times from its start on; returns how many found it at work."""
    struck = 0
    for _ in range(int(random.integers(1, MOST + 1))):
        hit = _forked(arguments, folder, float(random.uniform(FIRST, seconds)), signal.Signals[how]) is None
        struck += hit
        left = [path.name for path in folder.rglob("*") if LEFT.search(path.name)]
        if hit and how != "SIGKILL" and left:
            _note(folder, f"{left[0]} stays after {how}")
    return struck


def _start(world: World, command: str, folder: Path) -> list[str]:
    """The command, and in `folder` what it needs to be there."""
    (folder / "tmp").mkdir()
    shutil.copy(world.recipe, folder / "recipe.yaml")
    copied = folder / "runs" / "tiny"
    if command in ("evaluate", "export"):
        shutil.copytree(
            world.run, copied, ignore=shutil.ignore_patterns("evaluation") if command == "evaluate" else None
        )
    if command == "bulk":
        lines = (world.export / "catalogue.jsonl").read_text(encoding="utf-8").splitlines()
        titles = [json.loads(line)["fields"]["Title"] for line in lines]
        users = [
            {"user": f"u{n}", "history": [titles[(n + i) % len(titles)] for i in range(n % 5)]} for n in range(200)
        ]
        (folder / "users.jsonl").write_text("".join(json.dumps(u) + "\n" for u in users), encoding="utf-8")
    return {
        "prepare": ["prepare", "recipe.yaml", "--runs", "runs"],
        "train": ["train", "recipe.yaml", "--runs", "runs"],
        "merge": ["merge", str(world.base), str(world.run / "1-target" / "adapter"), "merged"],
        "evaluate": ["evaluate", "runs/tiny"],
        "export": ["export", "runs/tiny", "--to", "export"],
        "bulk": ["recommend", str(world.export), "--users", "users.jsonl", "--out", "lists.jsonl", "--block", "16"],
    }[command]


def _forked(arguments: list[str], folder: Path, seconds: float, how: signal.Signals = signal.SIGKILL) -> int | None:
    """The exit code of the command in a child of this process, which has all modules; None: it got the signal `how`
    after `seconds`, and ended."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = _in_child(arguments, folder)
        finally:
            os._exit(code)
    if (code := _ended(child, seconds)) is not None:
        if code not in (0, 1, 2):
            _note(folder, f"the process died ({code})")
        return code
    os.kill(child, how)
    code = _ended(child, STOPPING)
    if code is None:
        _note(folder, f"not ended {STOPPING} s after {how.name}")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    elif code not in (0, 1, -how) and not (code == 2 and (folder / "merged").exists()):  # an earlier start had ended
        _note(folder, f"exit {code} after {how.name}")
    return code if code == 0 else None


def _in_child(arguments: list[str], folder: Path) -> int:
    """Run the command with all its places in `folder`; what is no few lines is noted."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a campaign in the background has both ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ["CALREC_LITE_CACHE"], tempfile.tempdir = str(folder / "cache"), str(folder / "tmp")
    os.chdir(folder)
    code, _, err, error = run(arguments)
    if error or "Traceback (most recent call last)" in err:
        _note(folder, f"traceback: {cause(error or err)}")
    return code


def _ended(child: int, seconds: float) -> int | None:
    """The exit code of a child (minus a signal's number) that ends within so many seconds."""
    left, before = seconds, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if left <= 0:
            return None
        time.sleep(min(0.002, left))
        now = time.monotonic()
        left, before = left - min(now - before, 1.0), now  # all processes may have been paused in between


def _note(folder: Path, fault: str) -> None:
    """Beside the folder, which may be full."""
    with folder.with_name(f"{folder.name}.faults").open("a", encoding="utf-8") as file:
        file.write(f"{fault}; ")


def undisturbed(world: World, command: str) -> Undisturbed:
    """What a command leaves where nobody disturbs it. Raises RuntimeError if it does not end well even so."""
    contents, seconds = [], []
    for copy in "ab":
        folder = world.folder / f"undisturbed-{command}-{copy}"
        with disk(folder):
            arguments = _start(world, command, folder)
            before, began = used(folder), time.monotonic()
            code = _forked(arguments, folder, PATIENCE)
            seconds.append(time.monotonic() - began)
            if code != 0:
                raise RuntimeError(f"{command} ends with {code} though nobody disturbs it")
            contents.append(content(folder))
            after = used(folder)
    return Undisturbed(min(seconds), before, after, common(*contents))
