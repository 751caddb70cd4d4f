"""What is known of every item after a history without running the LLM, part by part (docs/method.md, 8).

A part is a score of all items (PARTS). `strategy: fast` adds them up, weighed;
`fused` does so too, and adds the LLM's log-probability of the best.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calrec_lite.data.transitions import Transitions
from calrec_lite.errors import InputError
from calrec_lite.recommend.repeats import Repeats
from calrec_lite.recommend.user_tower import History, UserTower
from calrec_lite.recommend.whitening import Whitening, whitened
from calrec_lite.recommend.words import Words

PARTS = ("tower", "recent", "text", "words", "transitions", "successors", "popularity", "repeats")
READINGS = {  # parts that are lists of their own
    "fast": PARTS,
    "vectors": ("tower", "recent", "text"),  # no counts
    "text": ("text", "words"),  # no purchase was ever seen, but by the weights: items that are new are found, too
}
DECAY = 0.6  # of an item's weight in the user vectors of `text` and `recent`, with each later item
LATEST = 20  # items of a history in it: older ones weigh less than a ten-thousandth
ITEMS_FILE = "items.parquet"
TOWER_FILE = "tower.safetensors"
LIMITS = {"dim": 1 << 16, "layers": 64, "heads": 1 << 10, "length": 1 << 16}  # of a tower that is read
TEXT, MEMORY, AGAIN = "text", "memory", "again"  # columns of ITEMS_FILE
# What reading a damaged file may raise.
DAMAGED = (
    OSError,
    LookupError,
    ValueError,
    AttributeError,
    RuntimeError,
    TypeError,
    pa.ArrowException,
    SafetensorError,
)


@dataclass(frozen=True)
class Readings:
    """All parts over one catalogue; every array of items has its order.

    Attributes:
        text: (N, W) whitened text vectors of unit length.
        whitening: how they were made of each layer's vectors, for items that are added later.
        tower: trained over them.
        transitions: counts of what followed what.
        words: of the titles.
        counts: (N,) how often each item was trained on.
        repeats: how often each is bought again.
    """

    text: Tensor
    whitening: tuple[Whitening, ...]
    tower: UserTower
    transitions: Transitions
    words: Words
    counts: np.ndarray
    repeats: Repeats

    @cached_property
    def _tower_items(self) -> Tensor:
        with torch.no_grad():
            return self.tower.items()

    @cached_property
    def _popularity(self) -> Tensor:
        """(N,) log share of the purchases."""
        return torch.from_numpy(np.log((self.counts + 1) / (self.counts + 1).sum()).astype(np.float32))

    @torch.no_grad()
    def parts(self, histories: Sequence[History]) -> dict[str, Tensor]:
        """Part -> (U, N) its score of every item after each history; after an empty one popularity alone decides."""
        scores = torch.from_numpy(self.transitions.scores(histories))
        tower = self._popularity.repeat(len(histories), 1)
        text, recent = torch.zeros(2, len(histories), len(self.text))
        some = [u for u, history in enumerate(histories) if len(history)]
        if some:
            with_items = [histories[u] for u in some]
            tower[some] = self.tower.scores(with_items, self._tower_items)
            text[some] = recent_items(self.text, with_items)
            recent[some] = recent_items(self._tower_items, with_items)
        return {
            "tower": tower,
            "recent": recent,
            "text": text,
            "words": torch.from_numpy(self.words.scores(histories)),
            "transitions": torch.log(scores + Transitions.FLOOR),
            "successors": torch.log(torch.from_numpy(self.transitions.successors(histories)) + Transitions.FLOOR),
            "popularity": self._popularity.expand(len(histories), -1),
            "repeats": self.repeats.scores(histories),
        }

    def save(self, folder: Path, ids: Sequence[str]) -> None:
        """Write into `folder`, items by their ids: lines of an export's catalogue may be added, moved or taken out."""
        columns = {"item": pa.array(ids, pa.string())}
        for name, values in ((TEXT, self.text), (MEMORY, self.tower.memory.detach())):
            flat = pa.array(values.to(torch.float16).flatten().numpy(), pa.float16())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        columns[AGAIN] = pa.array(self.repeats.again, pa.float32())
        pq.write_table(pa.table(columns), folder / ITEMS_FILE, compression="zstd")
        state = {name: value.contiguous() for name, value in self.tower.state_dict().items() if name != MEMORY}
        whitening = {
            f"whitening.{layer}.{name}": values.contiguous()
            for layer, one in enumerate(self.whitening)
            for name, values in (("mean", one.mean), ("matrix", one.matrix))
        }
        # One entry: the library writes several in another order each time.
        save_file({**state, **whitening}, folder / TOWER_FILE, {"settings": json.dumps(self.tower.settings)})

    @classmethod
    def open(
        cls, folder: Path, ids: Sequence[str], titles: Sequence[str], transitions: Transitions, counts: np.ndarray
    ) -> "tuple[Readings, np.ndarray]":
        """Read what `save` wrote, for the items `ids`; and which of them (indices) it has no text vector of.

        Raises:
            InputError: the files are missing or damaged.
        """
        try:
            table = pq.read_table(folder / ITEMS_FILE, partitioning=None)
            known = {item: row for row, item in enumerate(table["item"].to_pylist())}
            stored = [_matrix(table[name]) for name in (TEXT, MEMORY)]
            again = table[AGAIN].to_numpy().astype(np.float32)
            with safe_open(folder / TOWER_FILE, "pt") as file:
                stored_settings = json.loads((file.metadata() or {})["settings"])
                settings: dict[str, Any] = {name: int(value) for name, value in stored_settings.items()}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            layers = range(sum(name.startswith("whitening.") for name in state) // 2)
            whitening = tuple(
                Whitening(state.pop(f"whitening.{layer}.mean"), state.pop(f"whitening.{layer}.matrix"))
                for layer in layers
            )
            rows = np.array([known.get(item, -1) for item in ids], np.int64)
            text, memory = (_placed(values, rows) for values in stored)
            again = np.append(again, np.float32(1))[rows]  # an item that is new is bought again as the mean one is
            if (
                not all(bool(values.isfinite().all()) for values in (text, memory, *state.values()))
                or not (np.isfinite(again) & (again >= 0)).all()
            ):
                raise ValueError("a value that is no number")
            if not settings.keys() <= LIMITS.keys() or any(not 0 < n <= LIMITS[name] for name, n in settings.items()):
                raise ValueError("a tower of other sizes than there are")
            tower = UserTower(text, **settings)
            tower.load_state_dict({**state, MEMORY: memory})
        except DAMAGED as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{folder}: not readable as fitted readings ({reason}); fit or export again") from None
        made = cls(text, whitening, tower.eval(), transitions, Words(titles), counts, Repeats(again))
        return made, np.flatnonzero(rows < 0)

    def with_items(self, added: np.ndarray, vectors: Tensor) -> "Readings":
        """The same with text for items that had none: (M, L, D) vectors of the items `added` (M,)."""
        text = self.text.clone()
        text[added] = whitened(vectors.float().cpu(), self.whitening)
        settings: dict[str, Any] = {**self.tower.settings}
        tower = UserTower(text, **settings)
        tower.load_state_dict(self.tower.state_dict())
        return replace(self, text=text, tower=tower.eval())


def telling(parts: Sequence[str], exclude_seen: bool) -> tuple[str, ...]:
    """The parts that tell items apart: where seen items are masked, none that may be recommended is bought again."""
    return tuple(part for part in parts if part != "repeats" or not exclude_seen)


def recent_items(vectors: Tensor, histories: Sequence[History]) -> Tensor:
    """(U, N) cosines of all items (N, W) with each history's latest items, the later the more; none may be empty."""
    users = torch.stack([_recent(vectors, history) for history in histories])
    return torch.nn.functional.normalize(users, dim=-1) @ vectors.T


def _recent(vectors: Tensor, history: History) -> Tensor:
    latest = history[-LATEST:][::-1].astype(np.int64)
    return torch.from_numpy(DECAY ** np.arange(len(latest), dtype=np.float32)) @ vectors[torch.from_numpy(latest)]


def added_up(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """(U, N) the weighted sum of the parts that have a weight."""
    scores = torch.zeros_like(next(iter(parts.values())))
    for name, weight in weights.items():
        scores.add_(parts[name], alpha=weight)
    return scores


def _matrix(column: pa.ChunkedArray) -> Tensor:
    array = column.combine_chunks()
    return torch.from_numpy(array.flatten().to_numpy().reshape(len(array), -1).astype(np.float32))


def _placed(stored: Tensor, rows: np.ndarray) -> Tensor:
    """Rows of `stored`; zeros where there is none (-1)."""
    values = torch.cat([stored, stored.new_zeros(1, stored.shape[1])])
    return values[torch.from_numpy(rows)]
