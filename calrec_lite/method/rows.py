"""Windows of histories to train on, as a data set whose rows are built on demand."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from calrec_lite.data.domain import Domain, Sequences
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.recipe import Loss
from calrec_lite.text.encoding import Encoder, Row


@dataclass(frozen=True)
class DomainRows:
    """A domain's windows: row i is `items[start[i] : end[i]]` of `user[i]`'s part of the flat item sequence.

    `length` is in tokens, those of items that do not fit counted too, up to `Encoder.longest_row`.
    """

    catalogue: EncodedCatalogue
    items: np.ndarray
    user: np.ndarray
    start: np.ndarray
    end: np.ndarray
    length: np.ndarray


class Rows(Dataset[Row]):
    """Rows of several domains, one after the other."""

    def __init__(self, parts: Sequence[DomainRows], encoder: Encoder) -> None:
        self.parts, self.encoder = parts, encoder
        self.domain = np.repeat(np.arange(len(parts)), [len(p.start) for p in parts])  # (N,)
        self.length = np.concatenate([p.length for p in parts])  # (N,)
        self._first = np.cumsum([0, *(len(p.start) for p in parts)])

    def __len__(self) -> int:
        return len(self.domain)

    def __getitem__(self, i: int) -> Row:
        part = self.parts[self.domain[i]]
        j = i - self._first[self.domain[i]]
        items = part.items[part.start[j] : part.end[j]]
        return self.encoder.row(items, part.catalogue.tokens, part.catalogue.name, int(part.user[j]))


def training_rows(domain: Domain, catalogue: EncodedCatalogue, encoder: Encoder, loss: Loss) -> DomainRows:
    """Windows over every user's training part (see `Sequences.train_items`: nothing held out), as `history_rows`."""
    sequences = domain.sequences
    lengths = [len(domain.train_items(u)) for u in range(len(sequences))]
    return _windows(sequences, sequences.offsets[:-1] + np.array(lengths, np.int64), catalogue, encoder, loss)


def history_rows(histories: Sequences, catalogue: EncodedCatalogue, encoder: Encoder, loss: Loss) -> DomainRows:
    """Windows over whole histories.

    With `targets: all` windows share one item, so that each item but a user's first is a target exactly
    once (unless `max_history_tokens` cuts a window's oldest items off); with `targets: last` each item
    but the first ends one window.
    """
    return _windows(histories, histories.offsets[1:], catalogue, encoder, loss)


def last_item_rows(histories: Sequences, catalogue: EncodedCatalogue, encoder: Encoder) -> DomainRows:
    """One row a user of two items or more, ending in the last one."""
    users = np.flatnonzero(np.diff(histories.offsets) >= 2)
    return _rows_ending_at(histories, users, histories.offsets[users + 1], catalogue, encoder)


def validation_rows(domain: Domain, catalogue: EncodedCatalogue, encoder: Encoder, users: int, seed: int) -> DomainRows:
    """One row a user, ending in the validation target, for `users` users that have one, drawn by `seed`."""
    eligible, targets = domain.sequences.held_out("validation")
    drawn = np.sort(np.random.default_rng(seed).permutation(eligible)[:users])
    return _rows_ending_at(domain.sequences, drawn, targets[np.searchsorted(eligible, drawn)] + 1, catalogue, encoder)


def _windows(
    sequences: Sequences, stops: np.ndarray, catalogue: EncodedCatalogue, encoder: Encoder, loss: Loss
) -> DomainRows:
    """Of each user's items up to `stops` (U,)."""
    max_items = encoder.text.max_items
    stride = 1 if loss.targets == "last" else max_items - 1
    users, starts, ends = [], [], []
    for u, (begin, stop) in enumerate(zip(sequences.offsets[:-1].tolist(), stops.tolist())):
        for end in range(stop, begin + 1, -stride):
            users.append(u)
            starts.append(max(begin, end - max_items))
            ends.append(end)
            if encoder.text.windows == "last" or (end - max_items <= begin and stride > 1):
                break
    return _rows(sequences.items, catalogue, encoder, *(np.array(v, np.int64) for v in (users, starts, ends)))


def _rows_ending_at(
    sequences: Sequences, users: np.ndarray, end: np.ndarray, catalogue: EncodedCatalogue, encoder: Encoder
) -> DomainRows:
    start = np.maximum(sequences.offsets[users], end - encoder.text.max_items)
    return _rows(sequences.items, catalogue, encoder, users, start, end)


def _rows(
    items: np.ndarray,
    catalogue: EncodedCatalogue,
    encoder: Encoder,
    user: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
) -> DomainRows:
    item_tokens = catalogue.tokens.lengths[items] + len(encoder.next)
    total = np.concatenate([[0], np.cumsum(item_tokens)])
    around = len(encoder.start) + len(encoder.first) - len(encoder.next) + 1  # what a row has beside its items
    length = np.minimum(total[end] - total[start] + around, encoder.longest_row)
    return DomainRows(catalogue, items, user, start, end, length)
