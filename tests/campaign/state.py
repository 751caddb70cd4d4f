"""What a campaign has done, kept beside the world of the state of the code that did it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.campaign.world import ROOT, World


class Lines:
    """A file of JSON lines that a stop cuts off at most in its last one."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._file = world.folder, world.folder / name

    def read(self) -> list[dict[str, Any]]:
        """The whole lines."""
        return list(_whole(self._file))

    def earlier(self) -> list[dict[str, Any]]:
        """Those of earlier states of the code, the oldest first."""
        files = [f for f in self._world.parent.glob(f"world-*/{self._file.name}") if f != self._file]
        return [line for file in sorted(files, key=lambda f: f.stat().st_mtime) for line in _whole(file)]

    def add(self, line: dict[str, Any]) -> None:
        """Write one more."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _whole(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            yield json.loads(line)
        except ValueError:  # a stop cut it off
            continue


def described_commit() -> str:
    """The commit that is checked out, with `-dirty` where files differ from it."""
    git = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
