"""The prepared domain: a catalogue of canonical items and every user's sequence over it.

On disk it is a folder, written whole or not at all:

    items.parquet      id, fields (label -> value, in the order of the text)   row = canonical index
    aliases.parquet    alias (any original item id), index
    sequences.parquet  user, items (list<int32>, oldest first), times (list<int64>, unix seconds; null if unknown)
    domain.json        name, cuts (of a time split), counts, statistics, options, fingerprint, each file's hash
    bad_rows.jsonl     rows of the raw files that were left out (`on_bad_rows: drop`), if there were any
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from calrec_lite.errors import InputError
from calrec_lite.files import atomic_path, file_sha256, sealed, unsealed, write_json

Split = Literal["validation", "test"]
PART = 1 << 16  # users
BAD_ROWS = "bad_rows.jsonl"
TABLES = ("items.parquet", "aliases.parquet", "sequences.parquet")
ITEMS = pa.schema([("id", pa.string()), ("fields", pa.map_(pa.string(), pa.string()))])
ALIASES = pa.schema([("alias", pa.string()), ("index", pa.int32())])
SEQUENCES = pa.schema([("user", pa.string()), ("items", pa.list_(pa.int32())), ("times", pa.list_(pa.int64()))])


@dataclass(frozen=True)
class Catalogue:
    """Canonical items: no two have the same text.

    Attributes:
        ids: one original id for each canonical item, (N,).
        fields: label -> value for each item, in the order of the text; labels without a value are left out, (N,).
        aliases: every original item id, the canonical ones too, -> canonical index.
    """

    ids: list[str]
    fields: list[dict[str, str]]
    aliases: dict[str, int]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """All labels that any item has, in the order of the text."""
        order: TopologicalSorter[str] = TopologicalSorter()
        for labels in dict.fromkeys(tuple(item) for item in self.fields):
            for i, label in enumerate(labels):
                order.add(label, *labels[:i])
        return tuple(order.static_order())

    @cached_property
    def titles(self) -> list[str]:
        """What a person calls each item: its `Title`, or where it has none the value of its first label, (N,)."""
        return [item.get("Title") or next(iter(item.values())) for item in self.fields]


@dataclass(frozen=True)
class Sequences:
    """Users' events, flat; user u owns the slice `offsets[u]:offsets[u + 1]`, oldest first.

    Attributes:
        users: original user ids, (U,).
        items: canonical indices, int32, (E,).
        offsets: int64, (U + 1,).
        times: unix seconds, int64, (E,); None where the source has no times.
        cuts: the seconds from which events are held out for validation and for test; None: leave-one-out.
    """

    users: list[str]
    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    times: NDArray[np.int64] | None
    cuts: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def _split_ends(self) -> NDArray[np.int64]:
        """How many events of each user are for training, and for training or validation, (U, 2)."""
        lengths = np.diff(self.offsets)
        if self.cuts is None:
            held_out = np.where(lengths >= 3, 1, 0)
            return np.stack([lengths - 2 * held_out, lengths - held_out], axis=1)
        if self.times is None:
            raise ValueError("a time split needs times")
        ends = np.empty((len(self), 2), np.int64)
        for part in self.parts():
            bounds = self.offsets[part.start : part.stop + 1]
            times = self.times[bounds[0] : bounds[-1]]
            for i, cut in enumerate(self.cuts):
                ends[part, i] = np.diff(np.concatenate([[0], np.cumsum(times < cut)])[bounds - bounds[0]])
        return ends

    @property
    def train_lengths(self) -> NDArray[np.int64]:
        """How many events of each user may be trained on, (U,)."""
        return self._split_ends[:, 0]

    def parts(self) -> Iterator[slice]:
        """Slices of the users: what takes a multiple of their events' memory is done to one after the other."""
        return (slice(start, min(start + PART, len(self))) for start in range(0, len(self), PART))

    def of(self, u: int) -> NDArray[np.int32]:
        """All items of user u, oldest first (a view)."""
        return self.items[self.offsets[u] : self.offsets[u + 1]]

    def each(self) -> Iterator[NDArray[np.int32]]:
        """Every user's items, as `of` gives them."""
        return (self.of(u) for u in range(len(self)))

    def train_items(self, u: int) -> NDArray[np.int32]:
        """What may be trained on.

        Leave-one-out: all but the last two items, or all of them if the user has fewer than three. Time split: what
        is earlier than the first cut.
        """
        return self.of(u)[: self._split_ends[u, 0]]

    def held_out(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The users that have a case, ascending, and where in `items` the target of each stands, (C,) and (C,)."""
        lengths = np.diff(self.offsets)
        valid, test = self._split_ends.T
        first, end = (test, lengths) if split == "test" else (valid, test)
        users = np.flatnonzero((first >= 1) & (first < end))
        return users, self.offsets[users] + first[users]

    def tied(self, users: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Whether another event of the user has the time of the event at that position, (C,); None without times.

        Args:
            users, positions: as `held_out` gives them; a target is never its user's first event.
        """
        if self.times is None:
            return None
        after = np.minimum(positions + 1, len(self.times) - 1)
        has_next = positions + 1 < self.offsets[users + 1]
        before_tied = self.times[positions] == self.times[positions - 1]
        return np.asarray(before_tied | (has_next & (self.times[positions] == self.times[after])))

    def case(self, u: int, split: Split) -> tuple[NDArray[np.int32], int] | None:
        """(history, target) of user u, or None if there is none; the history is all that came before the target.

        Leave-one-out, of who has three events or more: `test` the last item, `validation` the last but one. Time
        split: the first item from the cut on (for validation: and before the other cut), if any came before it.
        """
        items = self.of(u)
        valid, test = self._split_ends[u].tolist()
        first, end = (test, len(items)) if split == "test" else (valid, test)
        return (items[:first], int(items[first])) if 1 <= first < end else None


@dataclass(frozen=True)
class Domain:
    """A prepared domain. `info` is what domain.json says: counts, statistics, options, fingerprint.

    `bad_rows` are rows of the raw files that were left out, as `save` writes them; not read back.
    """

    name: str
    catalogue: Catalogue
    sequences: Sequences
    info: dict[str, Any]
    bad_rows: Sequence[Mapping[str, str | int]] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content and the options."""
        return str(self.info["fingerprint"])

    @property
    def html(self) -> bool:
        """Whether the texts were HTML before they were cleaned; of older domains it is not known."""
        return bool(self.info.get("html", False))

    @property
    def holdout(self) -> str:
        """How events are held out, in words."""
        if self.sequences.cuts is None:
            return "leave-one-out"
        valid, test = map(moment, self.sequences.cuts)
        return f"global time split (validation from {valid}, test from {test})"

    def user(self, name: str) -> int:
        """The index of the user of this id. Raises InputError, with ids of some, where there is none."""
        users = self.sequences.users
        if name in users:
            return users.index(name)
        some = ", ".join(map(repr, users[:3]))
        raise InputError(
            f"domain `{self.name}`: no user {name!r} among its {len(users):,} (they are called {some}, ...)"
        )

    def train_items(self, u: int) -> NDArray[np.int32]:
        """See `Sequences.train_items`."""
        return self.sequences.train_items(u)

    def train_counts(self) -> NDArray[np.int64]:
        """Events of each item in the training part, (N,); not to be written to."""
        return self._train_counts

    @cached_property
    def _train_counts(self) -> NDArray[np.int64]:
        training = [self.train_items(u) for u in range(len(self.sequences))]
        counts = np.bincount(np.concatenate([*training, np.empty(0, np.int32)]), minlength=len(self.catalogue))
        counts.flags.writeable = False
        return counts

    def case(self, u: int, split: Split) -> tuple[NDArray[np.int32], int] | None:
        """See `Sequences.case`."""
        return self.sequences.case(u, split)

    def save(self, folder: Path) -> None:
        """Write the domain as a folder, in one step; a folder of that name is replaced."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for name, table in zip(TABLES, self._catalogue_tables(), strict=False):
                pq.write_table(table, temporary / name, compression="zstd")
            with pq.ParquetWriter(temporary / TABLES[2], SEQUENCES, compression="zstd") as writer:
                for part in self.sequences.parts():
                    writer.write_table(_table(self.sequences, part))
            hashes = {name: file_sha256(temporary / name) for name in TABLES}
            info = {"name": self.name, **self.info, "cuts": self.sequences.cuts, "files": hashes}
            write_json(temporary / "domain.json", sealed(info))
            if self.bad_rows:
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.bad_rows)
                (temporary / BAD_ROWS).write_text("".join(lines), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> "Domain":
        """Read a folder written by `save`.

        Raises:
            InputError: the folder is no prepared domain, or its files were not written together.
        """
        info = read_info(folder)
        for name in TABLES:
            if not (folder / name).is_file():
                raise InputError(f"{folder}: {name} is missing; prepare the domain again (`calrec-lite prepare`)")
            if file_sha256(folder / name) != info["files"].get(name):
                raise InputError(f"{folder / name}: does not belong to the domain.json beside it; prepare it again")
        items, aliases = (pq.read_table(folder / name, partitioning=None) for name in TABLES[:2])
        catalogue = Catalogue(
            ids=items["id"].to_pylist(),
            fields=[dict(pairs) for pairs in items["fields"].to_pylist()],
            aliases=dict(zip(aliases["alias"].to_pylist(), aliases["index"].to_pylist(), strict=True)),
        )
        return cls(info["name"], catalogue, _sequences(folder / TABLES[2], info.get("cuts")), info)

    def _catalogue_tables(self) -> tuple[pa.Table, pa.Table]:
        catalogue = self.catalogue
        return (
            pa.table([catalogue.ids, [list(item.items()) for item in catalogue.fields]], schema=ITEMS),
            pa.table([list(catalogue.aliases), list(catalogue.aliases.values())], schema=ALIASES),
        )


def read_info(folder: Path) -> dict[str, Any]:
    """The domain.json of a prepared domain. Raises InputError if the folder is none."""
    path = folder / "domain.json"
    if not path.is_file():
        raise InputError(f"{folder}: not a prepared domain (no domain.json); make one with `calrec-lite prepare`")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}; prepare the domain again") from None
    if not isinstance(info, dict) or not {"name", "files", "fingerprint", "source_key"} <= info.keys():
        raise InputError(f"{path}: not the description of a prepared domain; prepare it again")
    if not unsealed(info):
        raise InputError(f"{path}: its content is not what was written; prepare the domain again")
    return info


def moment(seconds: int) -> str:
    """Unix seconds as a UTC date, with the time of day unless it is midnight."""
    try:
        full = datetime.fromtimestamp(int(seconds), timezone.utc)
    except (ValueError, OverflowError, OSError):  # beyond the calendar: such times only order events
        return str(int(seconds))
    return full.strftime("%Y-%m-%d" if seconds % 86400 == 0 else "%Y-%m-%d %H:%M:%S")


def _table(sequences: Sequences, part: slice) -> pa.Table:
    bounds = sequences.offsets[part.start : part.stop + 1]
    offsets = pa.array((bounds - bounds[0]).astype(np.int32))
    items, times = (
        None if events is None else pa.ListArray.from_arrays(offsets, pa.array(events[bounds[0] : bounds[-1]]))
        for events in (sequences.items, sequences.times)
    )
    columns = [sequences.users[part], items, pa.nulls(len(offsets) - 1) if times is None else times]
    return pa.table(columns, schema=SEQUENCES)


def _sequences(path: Path, cuts: list[int] | None) -> Sequences:
    with pq.ParquetFile(path) as file:
        columns = [file.metadata.row_group(i).column(1) for i in range(file.num_row_groups)]  # the items
        room = sum(column.num_values for column in columns)  # one too many for each empty list
        items, times = np.empty(room, np.int32), np.empty(room, np.int64)
        users: list[str] = []
        lengths = [np.zeros(1, np.int64)]
        end, has_times = 0, True
        for batch in file.iter_batches(PART):
            users += batch["user"].to_pylist()
            lengths.append(batch["items"].value_lengths().to_numpy())
            here = slice(end, end := end + int(lengths[-1].sum()))
            items[here] = batch["items"].flatten().to_numpy()
            has_times = has_times and batch["times"].null_count == 0
            if has_times:
                times[here] = batch["times"].flatten().to_numpy()
    return Sequences(
        users,
        items[:end],
        np.cumsum(np.concatenate(lengths)),
        times[:end] if has_times else None,
        (cuts[0], cuts[1]) if cuts else None,
    )
