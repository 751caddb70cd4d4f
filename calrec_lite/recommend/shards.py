"""Lists of one file by several processes that know nothing of each other: its blocks of lines shared out, then merged.

A block holds the same users whoever takes it, so the lists are those of one process, and merged they are its bytes.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calrec_lite.claim import claimed_file
from calrec_lite.errors import InputError
from calrec_lite.files import atomic_path
from calrec_lite.stored import read_object

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
# Of launchers that start one command many times: which this is, and of how many.
LAUNCHERS = {"torchrun": ("RANK", "WORLD_SIZE"), "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")}
SCHEMA = pa.schema(
    {
        "user": pa.string(),
        "items": pa.list_(
            pa.struct({"title": pa.string(), "item": pa.string(), "score": pa.float64(), "why": pa.string()})
        ),
    }
)


@dataclass(frozen=True, order=True)
class Shard:
    """The first, second, ... of so many parts, counted from 0."""

    index: int
    count: int

    @classmethod
    def parsed(cls, text: str) -> "Shard":
        """Of `I/N`, I from 1. Raises InputError for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard {text}: give I/N, the I-th of N parts, as 1/4")
        return cls(int(found[1]) - 1, int(found[2]))

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Shard | None":
        """What torchrun or srun says; None where neither started more than one process."""
        for names in LAUNCHERS.values():
            index, count = (environment.get(name, "") for name in names)
            if index.isdigit() and count.isdigit() and int(index) < int(count) > 1:
                return cls(int(index), int(count))
        return None

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    def bounds(self, n: int) -> tuple[int, int]:
        """Which of n things it takes: from the first number, up to before the second one."""
        return n * self.index // self.count, n * (self.index + 1) // self.count

    def path(self, out: Path) -> Path:
        """Where its part of `out` goes: `lists.2-of-4.jsonl` of `lists.jsonl`."""
        suffix = suffix_of(out)
        return out.with_name(f"{out.name.removesuffix(suffix)}.{self.index + 1}-of-{self.count}{suffix}")


def suffix_of(out: Path) -> str:
    """That of a file of lists. Raises InputError for another name."""
    found = next((s for s in SUFFIXES if out.name.endswith(s)), None)
    if found is None:
        raise InputError(f"--out {out}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return found


def rejects_path(out: Path) -> Path:
    """Where lines that cannot be used go, with the reason."""
    return out.with_name(f"{out.name}.rejected.jsonl")


def state_path(out: Path) -> Path:
    """What says how far `out` is; of a part that is done it stays until all are merged."""
    return out.with_name(f"{out.name}.state.json")


def merge_lists(out: Path) -> tuple[int, int]:
    """Put the parts that lie beside `out` together, and remove them. Returns how many users and rejected lines it has.

    Raises:
        InputError: a part is missing, not done, or of another run than the others.
    """
    with claimed_file(out):
        shards = _shards_beside(out)
        states = [_state(shard, out) for shard in shards]
        options = [{key: value for key, value in state["run"].items() if key != "shard"} for state in states]
        for shard, own in zip(shards, options):
            if differing := [key for key in own.keys() | options[0].keys() if own.get(key) != options[0].get(key)]:
                other = ", another ".join(sorted(differing))
                raise InputError(f"{shard.path(out)}: made with another {other} than part 1; make one of both again")
        parts = [shard.path(out) for shard in shards]
        rejects = [rejects_path(part) for part in parts if rejects_path(part).is_file()]
        if rejects:
            with atomic_path(rejects_path(out)) as temporary:
                _concatenate(rejects, temporary)
        with atomic_path(out) as temporary:
            if suffix_of(out) == ".parquet":
                _concatenate_parquet(parts, temporary, int(options[0]["block"]))
            else:
                _concatenate(parts, temporary)
        for path in [*rejects, *parts, *map(state_path, parts)]:
            path.unlink(missing_ok=True)
    return sum(s["done"]["users"] for s in states), sum(s["done"]["rejected"] for s in states)


def _shards_beside(out: Path) -> list[Shard]:
    suffix = suffix_of(out)
    stem = re.escape(out.name.removesuffix(suffix))
    pattern = re.compile(rf"{stem}\.(\d+)-of-(\d+){re.escape(suffix)}(\.state\.json)?")
    names = [path.name for path in out.parent.iterdir()] if out.parent.is_dir() else []
    found = {Shard(int(m[1]) - 1, int(m[2])) for name in names if (m := pattern.fullmatch(name))}
    if not found:
        raise InputError(f"{out}: has no parts beside it; `calrec-lite recommend --out {out} --shard I/N` makes them")
    if len(counts := sorted({shard.count for shard in found})) > 1:
        raise InputError(f"{out}: there are parts of {' and of '.join(map(str, counts))}; remove those of one kind")
    if missing := {Shard(index, counts[0]) for index in range(counts[0])} - found:
        raise InputError(f"{out}: part {min(missing)} is missing; make it by --shard {min(missing)}")
    return sorted(found)


def _state(shard: Shard, out: Path) -> dict[str, Any]:
    """What a part that is done says of itself."""
    part, remedy = shard.path(out), f"make it again by --shard {shard}"
    file = state_path(part)
    state = read_object(file, remedy) if file.is_file() else {}
    with suppress(KeyError, TypeError):
        if not state["done"]["complete"] or not part.is_file():
            raise InputError(f"{part}: not done yet; the same command with --shard {shard} goes on")
        if state["run"]["shard"] == [*astuple(shard)]:
            return state
    raise InputError(f"{part}: {file.name} does not say what it is; {remedy}")


def _concatenate(parts: list[Path], to: Path) -> None:
    with to.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, 1 << 20)


def _concatenate_parquet(parts: list[Path], to: Path, rows: int) -> None:
    """In row groups as one process writes them."""
    every = _rows(parts)
    with pq.ParquetWriter(to, SCHEMA) as writer:
        while group := list(islice(every, rows)):
            writer.write_table(pa.Table.from_pylist(group, SCHEMA))


def _rows(parts: list[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
