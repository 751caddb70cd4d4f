"""Counts of which item followed which in the training part; a model's own scores may be mixed with them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError

SCHEMA = pa.schema(
    [("item", pa.string()), ("other", pa.string()), ("weight", pa.float32()), ("followed", pa.float32())]
)
History = NDArray[Any]  # of catalogue indices, oldest first


class Transitions:
    """Items that followed, or preceded, the last five items of a history within three steps (docs/method.md, 7).

    An item's score is the sum over the history's last 5 items of `.6^age * counts[history item, item]`, divided by the
    item's popularity^0.3. A following item counts 1 at any distance up to 3, a preceding one .5. Of 36 settings (decay,
    weight of a preceding item, weight by distance) these had the highest NDCG@10 on validation, summed over
    amazon18_scientific, amazon14_office and ml-100k.

    Args:
        weights: (N, N) what an item of the history (row) adds to each item's score (column).
        followed: (N, N) how often an item (column) came right after another (row); where it is not 0, `weights` is
            neither.
    """

    WINDOW = 3
    LAST = 5
    DECAY = 0.6
    BACKWARD = 0.5
    POWER = 0.3
    FLOOR = 0.1  # a score's logarithm is of score + FLOOR: an item that never followed is unlikely, not impossible

    def __init__(self, weights: Any, followed: Any) -> None:
        self.weights, self.followed = weights, followed

    @classmethod
    def of(cls, domain: Domain) -> "Transitions":
        """Counted on the domain's training part."""
        sequences = domain.sequences
        return cls.counted((sequences.train_items(u) for u in range(len(sequences))), domain.train_counts())

    @classmethod
    def counted(cls, histories: Iterable[History], counts: NDArray[np.int64]) -> "Transitions":
        """Counted on histories; `counts` (N,) says how often each item stands in them."""
        histories = list(histories)
        before, after = _pairs(histories, cls.WINDOW)
        weight = np.maximum(counts, 1) ** -cls.POWER  # (N,)
        values = np.concatenate([weight[after], cls.BACKWARD * weight[before]]).astype(np.float32)
        rows, columns = np.concatenate([before, after]), np.concatenate([after, before])
        # Equal (row, column) pairs are summed: this is the counting.
        shape = len(counts), len(counts)
        before, after = _pairs(histories, 1)
        return cls(
            _sparse(values, rows, columns, shape), _sparse(np.ones(len(before), np.float32), before, after, shape)
        )

    def scores(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """(U, N) the score of every item; 0 where it never stood near an item of the history."""
        return np.asarray(self.sparse_scores(histories).toarray(), dtype=np.float32)

    def sparse_scores(self, histories: Sequence[History]) -> Any:
        """(U, N) `scores` above 0, as a sparse array of rows."""
        return recent_items(histories, self.LAST, self.DECAY, len(self)) @ self.weights

    @classmethod
    def event_scores(
        cls, histories: Sequence[History], targets: NDArray[Any], counts: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(U,) what each target's own event adds to its score after its history, if the event was counted: its pairs
        with the latest three items. `counts` as `counted` had them."""
        recent = np.full((len(histories), cls.LAST), -1)  # latest first
        for row, history in zip(recent, histories, strict=True):
            latest = history[-cls.LAST :][::-1]
            row[: len(latest)] = latest
        near = recent[:, : cls.WINDOW]
        same = (near[:, :, None] == recent[:, None]) & (near[:, :, None] >= 0)  # (U, 3, 5): an item may come twice
        pairs = 1 + cls.BACKWARD * (near == targets[:, None])  # of an item with itself there are both directions
        return (same @ cls.DECAY ** np.arange(cls.LAST) * pairs).sum(1) * np.maximum(counts, 1)[targets] ** -cls.POWER

    def in_order(self, order: NDArray[np.int64]) -> "Transitions":
        """The same with scores in another order: column i is that of the item `order[i]`."""
        return Transitions(self.weights[:, order], self.followed[:, order])

    def successors(self, histories: Sequence[History]) -> NDArray[np.float32]:
        """(U, N) how often each item came right after the history's last one."""
        last = recent_items(histories, 1, self.DECAY, len(self))  # its age is 0, whatever the decay
        return np.asarray((last @ self.followed).toarray(), dtype=np.float32)

    def __len__(self) -> int:
        return int(self.weights.shape[0])

    def save(self, path: Path, ids: Sequence[str]) -> None:
        """Write the pairs by the items' ids: lines of an export's catalogue may be added, moved or taken out."""
        pairs, names = self.weights.tocoo(), np.array(ids, dtype=object)
        followed = np.asarray(self.followed[pairs.row, pairs.col]).ravel() if len(pairs.data) else pairs.data
        columns = [names[pairs.row], names[pairs.col], pairs.data, followed]
        pq.write_table(pa.table(columns, schema=SCHEMA), path, compression="zstd")

    @classmethod
    def open(cls, path: Path, index: Mapping[str, int], n_items: int) -> "Transitions":
        """Read what `save` wrote; pairs of items that are not in `index` any more are left out.

        Raises:
            InputError: the file is damaged.
        """
        try:
            table = pq.read_table(path, schema=SCHEMA, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not readable ({str(error).splitlines()[0]}); export again") from None
        rows, columns = (
            np.array([index.get(i, -1) for i in table[name].to_pylist()], np.int64) for name in ("item", "other")
        )
        known = (rows >= 0) & (columns >= 0)
        at, shape = (rows[known], columns[known]), (n_items, n_items)
        values = [table[name].fill_null(0).to_numpy()[known] for name in ("weight", "followed")]
        if not all((np.isfinite(column) & (column >= 0)).all() for column in values):
            raise InputError(f"{path}: holds counts that are none; export again")
        return cls(*(_sparse(column, *at, shape) for column in values))


def recent_items(histories: Sequence[History], last: int, decay: float, n_items: int) -> Any:
    """(U, N) sparse: decay^age of the latest `last` items of each history, summed where an item comes twice."""
    recent = [history[-last:][::-1] for history in histories]  # latest first
    rows = np.repeat(np.arange(len(recent)), [len(history) for history in recent])
    columns = np.concatenate([np.empty(0, np.int64), *recent])
    age = np.concatenate([np.empty(0), *(np.arange(len(history)) for history in recent)])
    return _sparse((decay**age).astype(np.float32), rows, columns, (len(recent), n_items))


def _sparse(values: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any], shape: tuple[int, int]) -> Any:
    """A sparse array in which the values of equal places are summed."""
    from scipy import sparse  # a tenth of a second, which those who only read recipes need not wait

    return sparse.csr_array((values, (rows, columns)), shape=shape)


def _pairs(histories: Iterable[History], window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The earlier and the later item of every pair at most `window` steps apart."""
    before, after = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for items in histories:
        for distance in range(1, min(window, len(items) - 1) + 1):
            before.append(items[:-distance])
            after.append(items[distance:])
    return np.concatenate(before), np.concatenate(after)
