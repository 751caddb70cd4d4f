"""Lists for a file of any length in bounded memory; killed at any moment, the same call goes on where it stopped.

Lines are taken in blocks. A block's lists are appended to OUT.part, its bad lines to OUT.rejected.jsonl.part, and only
then is OUT.state.json replaced, which says how long both were. What stands beyond that length is a block that did not
end: it is cut off and done again. OUT itself appears when everything is in it.
"""

import gzip
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from calrec_lite.claim import claimed_file
from calrec_lite.errors import InputError, RunError
from calrec_lite.files import atomic_path, size_and_time, write_json
from calrec_lite.recommend.histories import Histories, Rejected, User
from calrec_lite.recommend.shards import SCHEMA, Shard, rejects_path, state_path, suffix_of

if TYPE_CHECKING:  # torch takes seconds to import, and is of no use where the files are wrong
    from calrec_lite.recommend.recommender import Recommendation

BLOCK = 1024  # lines: enough to sort by length, little enough to do again

Lists = Sequence[Sequence["Recommendation"]]
Rank = Callable[[list[list[str]], list[list[str] | None]], Lists]  # histories, candidates -> lists
Known = Callable[[str], bool]  # whether the catalogue has an item of this name


@dataclass(frozen=True)
class Progress:
    """What is done: lines read, users ranked, lines rejected, items of the ranked users' histories and how many of
    these the catalogue lacks, and the bytes both unfinished files then have."""

    lines: int = 0
    users: int = 0
    rejected: int = 0
    items: int = 0
    unknown: int = 0
    out_bytes: int = 0
    rejected_bytes: int = 0
    complete: bool = False


class Bulk:
    """One file of histories to one file of lists.

    Args:
        users: see `Histories`.
        out: `.jsonl`, `.jsonl.gz` or `.parquet`; a line (a row) is `{"user": ..., "items": [...]}`, in the input's
            order. A score that is not finite (an item that only fills the list up) is null.
        options: what else the lists depend on, as JSON values: model, k and the like. A run that was begun with
            other options is not continued.
        block: lines taken together. Rankers may sort them by length.
        strict: reject the lines of users whose history holds an item that the catalogue lacks.
        shard: take this part of the blocks only, and write `shard.path(out)`.

    Raises:
        InputError: for files that cannot be used, and for an unfinished run with other input or options.
    """

    def __init__(
        self,
        users: Path,
        out: Path,
        options: Mapping[str, Any],
        block: int = BLOCK,
        strict: bool = False,
        shard: Shard | None = None,
    ) -> None:
        suffix_of(out)
        out = shard.path(out) if shard else out
        self.source, self.out, self.block, self.strict, self.shard = Histories(users), out, block, strict, shard
        self._end: int | None = None  # of its lines; None: that of the file
        self._first = 0
        if shard:
            self._first, self._end = self.source.lines_of(shard, block)
        self.rejects = rejects_path(out)
        self._part = out.with_name(f"{out.name}.part")
        self._rejects_part = out.with_name(f"{self.rejects.name}.part")
        self._state = state_path(out)
        if out.is_dir():
            raise InputError(f"--out {out}: is a folder; name a file")
        if users.resolve() in (out.resolve(), self.rejects.resolve()):
            raise InputError(f"--out {out}: would replace the histories of --users; give it another name")
        self._identity = {
            "input": [users.name, *size_and_time(users)],
            **options,
            "strict": strict,
            "block": block,
            **({"shard": [*astuple(shard)]} if shard else {}),
        }
        self.done = self._saved_progress()

    def run(self, rank: Rank, known: Known = lambda name: True, progress: bool = True) -> Progress:
        """Do what is left to do. Returns the totals, those of earlier calls included.

        Args:
            rank: gives each history its list. Where it raises InputError for a user, the line is rejected.
            known: tells which items of histories are in the catalogue.

        Raises:
            InputError: if `rank` can do nothing at all, no line holds a user, or another process makes the same lists.
            RunError: if the output cannot be written (the same call goes on), or what was written of it is gone.
        """
        if not self.done.complete:
            rank([[]], [None])  # a wrong option must end the run, a wrong line must not; this history cannot be wrong
        try:
            with claimed_file(self.out):
                self.done = self._saved_progress()  # as it is now that no other process can change it
                if not self.done.complete:
                    self._rank_blocks(rank, known, progress)
                self._finish()
        except OSError as error:
            raise RunError(f"--out {self.out}: {error}; the same command goes on where it stopped") from error
        if not self.done.users and not self.shard:
            rejected = f", {self.done.rejected} rejected: {self.rejects}" if self.done.rejected else ""
            raise InputError(f"--users {self.source.path}: holds no user{rejected}")
        return self.done

    def _saved_progress(self) -> Progress:
        if not self._state.exists():
            return Progress(self._first)
        remedy = f"start with the same, or delete {self._state} to begin anew"
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            saved_options, done = state["run"], Progress(**{f.name: state["done"][f.name] for f in fields(Progress)})
            short = not done.complete and (
                self._part.stat().st_size < done.out_bytes or self._rejects_part.stat().st_size < done.rejected_bytes
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._state}: no unfinished run to go on with ({error}); {remedy}") from None
        if short:
            raise InputError(f"{self._state}: the files of the unfinished run were cut short; {remedy}")
        keys = dict.fromkeys([*self._identity, *saved_options])  # one may have an option that the other has not
        differing = [key for key in keys if saved_options.get(key) != self._identity.get(key)]
        if differing:
            raise InputError(f"{self._state}: an unfinished run with another {', another '.join(differing)}; {remedy}")
        return done

    def _rank_blocks(self, rank: Rank, known: Known, progress: bool) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        lines = islice(self.source.read(self.done.lines), None if self._end is None else self._end - self.done.lines)
        with (
            _open_at(self._part, self.done.out_bytes) as part,
            _open_at(self._rejects_part, self.done.rejected_bytes) as rejects,
            tqdm(desc="recommend", unit="user", initial=self.done.users, disable=not progress) as bar,
        ):
            self._save()
            while block := list(islice(lines, self.block)):
                users = [(line, user) for line, user in block if isinstance(user, User)]
                bad = [entry for _, entry in block if isinstance(entry, Rejected)]
                if self.strict:
                    users, strange = _known_only(users, known)
                    bad += strange
                lists, refused = _rank_or_reject(rank, users)
                names = [name for user, _ in lists for name in user.history]
                _append(part, [_list_row(user, items) for user, items in lists], packed=self.out.suffix == ".gz")
                _append(rejects, [asdict(r) for r in sorted([*bad, *refused], key=lambda r: r.line)])
                self.done = Progress(
                    block[-1][0],
                    self.done.users + len(lists),
                    self.done.rejected + len(bad) + len(refused),
                    self.done.items + len(names),
                    self.done.unknown + sum(not known(name) for name in names),
                    part.tell(),
                    rejects.tell(),
                )
                for file, path in ((part, self._part), (rejects, self._rejects_part)):
                    self._require_in_place(file, path)
                self._save()
                bar.total = round(self.done.users / max(self._share(), 1e-9))
                bar.update(len(lists))
        self.done = replace(self.done, complete=True)
        self._save()

    def _share(self) -> float:
        """How much of its lines is done, 0 to 1."""
        if self._end is None:
            return self.source.share
        return (self.done.lines - self._first) / max(1, self._end - self._first)

    def _save(self) -> None:
        write_json(self._state, {"run": self._identity, "done": asdict(self.done)})

    def _finish(self) -> None:
        """Give both files their names. Cut off in between, the rest is done by the next call."""
        if self._left(self._rejects_part, self.rejects, self.done.rejected_bytes):
            self._rejects_part.replace(self.rejects)
        if not self.done.rejected:
            self.rejects.unlink(missing_ok=True)
        if not self.done.users and not self.shard:  # an empty list of lists replaces nothing
            self._part.unlink(missing_ok=True)
        elif self.out.suffix == ".parquet":
            if self._left(self._part, self.out, self.done.out_bytes, self._is_whole_parquet):
                _to_parquet(self._part, self.out, self.block)
                self._part.unlink()
        elif self._left(self._part, self.out, self.done.out_bytes):
            self._part.replace(self.out)
        if not self.shard:  # else it says what the part is when all are merged
            self._state.unlink(missing_ok=True)

    def _left(self, part: Path, final: Path, size: int, is_whole: Callable[[], bool] | None = None) -> bool:
        """Whether `part` has still to become `final`; False: an earlier call did it. Raises RunError for neither."""
        if part.exists():
            if part.stat().st_size == size:
                return True
        elif not size or (is_whole() if is_whole else final.is_file() and final.stat().st_size == size):
            return False
        raise self._gone(part)

    def _is_whole_parquet(self) -> bool:
        try:
            return int(pq.read_metadata(self.out).num_rows) == self.done.users
        except (OSError, pa.ArrowException):
            return False

    def _require_in_place(self, file: IO[bytes], path: Path) -> None:
        """Raise RunError where the name no longer leads to the open file: what is written then goes nowhere."""
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise self._gone(path)

    def _gone(self, part: Path) -> RunError:
        return RunError(
            f"{part}: removed or changed by something else, and the lists in it with it; delete {self._state}, and the "
            "same command begins anew"
        )


def begun_option(out: Path, name: str) -> Any:
    """An option of the unfinished run of `out`; None where there is none, or it cannot be read (`Bulk` says so)."""
    try:
        return json.loads(state_path(out).read_text(encoding="utf-8"))["run"].get(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _known_only(users: list[tuple[int, User]], known: Known) -> tuple[list[tuple[int, User]], list[Rejected]]:
    kept, strange = [], []
    for line, user in users:
        if missing := [name for name in dict.fromkeys(user.history) if not known(name)]:
            strange.append(Rejected(line, f"not in the catalogue: {', '.join(map(repr, missing))}", user.text))
        else:
            kept.append((line, user))
    return kept, strange


def _rank_or_reject(
    rank: Rank, users: list[tuple[int, User]]
) -> "tuple[list[tuple[User, Sequence[Recommendation]]], list[Rejected]]":
    """The lists of the users who can be ranked, and the others with the reason; halves the block to find them."""
    if not users:
        return [], []
    try:
        lists = rank([u.history for _, u in users], [u.candidates for _, u in users])
    except InputError as error:
        if len(users) == 1:
            line, user = users[0]
            return [], [Rejected(line, str(error), user.text)]
        first, second = (_rank_or_reject(rank, part) for part in (users[: len(users) // 2], users[len(users) // 2 :]))
        return [*first[0], *second[0]], [*first[1], *second[1]]
    return [(user, items) for (_, user), items in zip(users, lists, strict=True)], []


def _list_row(user: User, items: "Sequence[Recommendation]") -> dict[str, Any]:
    records = [
        {"title": i.title, "item": i.item, "score": i.score if math.isfinite(i.score) else None, "why": i.why}
        for i in items
    ]
    return {"user": user.name, "items": records}


def _open_at(path: Path, size: int) -> IO[bytes]:
    """Open `path` for appending after its first `size` bytes; the rest is cut off."""
    path.touch()
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file


def _append(file: IO[bytes], rows: Sequence[Mapping[str, Any]], packed: bool = False) -> None:
    """Write rows as JSON lines, safely on disk; `packed`: as one gzip member, which may follow others."""
    if rows:
        text = "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in rows).encode()
        file.write(gzip.compress(text, mtime=0) if packed else text)
        file.flush()
        os.fsync(file.fileno())


def _to_parquet(lines: Path, out: Path, rows: int) -> None:
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer, lines.open("rb") as file:
        for group in _groups(file, rows):
            writer.write_table(pa.Table.from_pylist([json.loads(line) for line in group], SCHEMA))


def _groups(file: IO[bytes], size: int) -> Iterator[list[bytes]]:
    while group := list(islice(file, size)):
        yield group
