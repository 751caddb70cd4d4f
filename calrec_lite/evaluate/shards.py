"""An evaluation's lists by several processes: blocks of users shared out and kept, then measured by one."""

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calrec_lite.errors import InputError
from calrec_lite.evaluate.protocol import Protocol, Ranker
from calrec_lite.files import atomic_path, write_json
from calrec_lite.measure.cases import Cases
from calrec_lite.recommend.shards import Shard
from calrec_lite.stored import read_object

BLOCK = 1024  # users ranked together; their lists then do not depend on how many are measured, or where
IDENTITY = "begun.json"
SUFFIX = ".shards"  # of the folder beside an evaluation's
Lists = NDArray[np.int32]


def blocks(users: int) -> list[slice]:
    """The blocks of so many users."""
    return [slice(start, min(start + BLOCK, users)) for start in range(0, users, BLOCK)]


class InBlocks:
    """A ranker that is asked for one block of users after the other."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker

    def rank(self, histories: list[Lists], k: int, exclude_seen: bool) -> Lists:
        """As `Ranker.rank`."""
        every = [self.ranker.rank(histories[block], k, exclude_seen) for block in blocks(len(histories))]
        return np.concatenate(every) if every else np.empty((0, k), np.int32)


class KeptLists:
    """What the processes of an evaluation have made of one system's lists, as a ranker.

    Args:
        folder: of the system.
        count: of processes that shared the users out.

    Attributes:
        seconds: that all of them took to make the lists.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count, self.seconds = folder, count, 0.0

    def rank(self, histories: list[Lists], k: int, exclude_seen: bool) -> Lists:
        """As `Ranker.rank`. Raises InputError where a block is missing."""
        total = len(blocks(len(histories)))
        return np.concatenate([self._block(n, total) for n in range(total)])

    def _block(self, n: int, total: int) -> Lists:
        try:
            with np.load(self.folder / f"{n}.npz", allow_pickle=False) as kept:
                self.seconds += float(kept["seconds"])
                return np.asarray(kept["lists"], np.int32)
        except (OSError, ValueError, KeyError):
            shards = (Shard(index, self.count) for index in range(self.count))
            missing = next(shard for shard in shards if n in range(*shard.bounds(total)))
            raise InputError(f"{self.folder}: part {missing} is not done; make it by --shard {missing}") from None


def keep_lists(folder: Path, ranker: Ranker, cases: Cases, protocol: Protocol, todo: list[int]) -> None:
    """Make the lists of some blocks of users, each written as soon as it is there."""
    every = blocks(len(cases.users))
    for n in todo:
        start = perf_counter()
        lists = ranker.rank(cases.histories[every[n]], protocol.k, protocol.exclude_seen)
        with atomic_path(folder / f"{n}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, lists=np.asarray(lists, np.int32), seconds=perf_counter() - start)


def blocks_left(folder: Path, cases: Cases, shard: Shard) -> list[int]:
    """Those of a part's blocks that are not there yet."""
    own = range(*shard.bounds(len(blocks(len(cases.users)))))
    return [n for n in own if not (folder / f"{n}.npz").is_file()]


def shards_folder(target: Path) -> Path:
    """Where the lists for the evaluation in `target` are kept until it is there."""
    return target.with_name(f"{target.name}{SUFFIX}")


def begin(folder: Path, count: int, identity: dict[str, Any]) -> None:
    """Note what is measured, in how many parts; all of them do. Raises InputError where other parts did otherwise."""
    said = json.loads(json.dumps({"count": count, "identity": identity}))
    if not (folder / IDENTITY).is_file():
        write_json(folder / IDENTITY, said)
    elif read_begun(folder) != said:
        raise InputError(f"{folder}: holds lists of another evaluation, or of another number of parts; remove it")


def read_begun(folder: Path) -> dict[str, Any]:
    """What `begin` noted. Raises InputError where that cannot be read."""
    remedy = f"remove {folder} and make its lists again"
    said = read_object(folder / IDENTITY, remedy)
    if not isinstance(said.get("count"), int) or not isinstance(said.get("identity"), dict):
        raise InputError(f"{folder / IDENTITY}: does not say what these lists are; {remedy}")
    return said


def require_same(folder: Path, identity: dict[str, Any]) -> int:
    """In how many parts the lists of this evaluation were made. Raises InputError where they are of another one."""
    said = read_begun(folder)
    if said["identity"] != json.loads(json.dumps(identity)):
        raise InputError(f"{folder}: holds lists of another evaluation, or of what has changed since; remove it")
    return int(said["count"])
