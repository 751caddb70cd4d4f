"""Commands killed at random moments and started again: they must end as if nobody had disturbed them."""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.random import default_rng

from tests.campaign.outcome import run
from tests.campaign.world import World

COMMANDS = ("prepare", "train", "merge", "evaluate", "export", "bulk")
MOST = 3  # kills of one round
VOLATILE = ("log.jsonl", "checkpoints", "cache")  # what tells of the way, not of the result
PATIENCE = 600  # seconds for a start that nobody kills


@dataclass(frozen=True)
class Round:
    """A command that was killed `kills` times, then left alone. `difference` is "" where it ended as undisturbed."""

    number: int
    command: str
    kills: int
    difference: str


@dataclass(frozen=True)
class Undisturbed:
    """Seconds a command takes, and its folder afterwards: only what two such runs have in common can be compared."""

    seconds: float
    content: dict[str, Any]


def kill_rounds(world: World, seed: int, kills: int, state: Path) -> dict[str, Any]:
    """Rounds until so many kills have struck. `state` keeps the rounds that are done, a line each."""
    rounds = _read(state, seed)
    known = {command: undisturbed(world, command) for command in COMMANDS}
    with state.open("a", encoding="utf-8") as file:
        if not rounds:
            file.truncate(0)
            file.write(json.dumps({"seed": seed}) + "\n")
        while sum(r.kills for r in rounds) < kills:
            done = kill_round(world, seed, len(rounds), known)
            rounds.append(done)
            file.write(json.dumps(asdict(done)) + "\n")
            file.flush()
            if done.difference:
                print(f"round {done.number}: {done.command}: {done.difference}", file=sys.stderr)
    return {
        "kills": sum(r.kills for r in rounds),
        "kills_equal": sum(r.kills for r in rounds if not r.difference),
        "kill_rounds": len(rounds),
        "kills_by_command": dict(sum((Counter({r.command: r.kills}) for r in rounds), Counter())),
        "kill_differences": [asdict(r) for r in rounds if r.difference],
    }


def kill_round(world: World, seed: int, number: int, known: dict[str, Undisturbed]) -> Round:
    """Kill one command one to three times at moments drawn by the seed, let it end, and compare."""
    random = default_rng([seed, 1, number])
    command = str(random.choice(list(known)))
    folder = world.folder / f"round-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    arguments = _start(world, command, folder)
    kills = 0
    try:
        for _ in range(int(random.integers(1, MOST + 1))):
            kills += _forked(arguments, folder, float(random.uniform(0, known[command].seconds))) is None
        code = _forked(arguments, folder, PATIENCE)
        difference = _difference(known[command].content, _content(folder))
        if code is None:
            difference = f"not ended after {PATIENCE} s"
        elif code and not (command == "merge" and not difference):  # killed after its last step: it is there already
            difference = f"exit {code}; {difference}"
        return Round(number, command, kills, difference)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(world: World, command: str, folder: Path) -> list[str]:
    """The command, and in `folder` what it needs to be there."""
    folder.mkdir()
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


def _forked(arguments: list[str], folder: Path, seconds: float) -> int | None:
    """The exit code of the command in a child of this process, which has all modules; None: killed after `seconds`."""
    child = os.fork()
    if not child:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.environ["CALREC_LITE_CACHE"] = str(folder / "cache")
        os.chdir(folder)
        os._exit(run(arguments)[0])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.002, max(0.0, end - time.monotonic())))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def undisturbed(world: World, command: str) -> Undisturbed:
    """What a command leaves where nobody disturbs it. Raises RuntimeError if it does not end well even so."""
    contents, seconds = [], []
    for copy in "ab":
        folder = world.folder / f"undisturbed-{command}-{copy}"
        shutil.rmtree(folder, ignore_errors=True)
        arguments = _start(world, command, folder)
        began = time.monotonic()
        code = _forked(arguments, folder, PATIENCE)
        seconds.append(time.monotonic() - began)
        if code != 0:
            raise RuntimeError(f"{command} ends with {code} though nobody disturbs it")
        contents.append(_content(folder))
    return Undisturbed(min(seconds), _common(*contents))


def _content(folder: Path) -> dict[str, Any]:
    """Relative path -> JSON as data, other files as a hash."""
    out: dict[str, Any] = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        name = file.relative_to(folder).as_posix()
        if any(part in VOLATILE for part in name.split("/")):
            continue
        content = file.read_bytes()
        try:
            out[name] = json.loads(content) if file.suffix == ".json" else hashlib.sha256(content).hexdigest()
        except ValueError:
            out[name] = "no JSON"
    return out


def _common(a: Any, b: Any) -> Any:
    """What two values have in common: of mappings the keys whose values have something, of others all or nothing."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {key: _common(a[key], b[key]) for key in a if key in b}
    return a if a == b else None


def _difference(known: Any, found: Any, at: str = "") -> str:
    """The first place where `found` is not as `known`, "" where there is none; what is None there may be anything."""
    if isinstance(known, dict):
        if not isinstance(found, dict) or known.keys() != found.keys():
            return f"{at}: {sorted(known.keys() ^ (found.keys() if isinstance(found, dict) else set()))[:5]}"
        return next((d for key in known if (d := _difference(known[key], found[key], f"{at}/{key}"))), "")
    return "" if known is None or known == found else f"{at}: another value"


def _read(state: Path, seed: int) -> list[Round]:
    lines = state.read_text(encoding="utf-8").splitlines() if state.is_file() else []
    if not lines or json.loads(lines[0]) != {"seed": seed}:
        return []
    return [Round(**json.loads(line)) for line in lines[1:] if line.endswith("}")]
