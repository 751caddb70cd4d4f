"""Rows of one optimiser step as tensors: what both towers read, and where the losses look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.model.on_device import OnDevice
from calrec_lite.prior.bias import UserBias
from calrec_lite.processes import ALONE, WHOLE, Processes, Share
from calrec_lite.recipe import Loss
from calrec_lite.text.encoding import Row
from calrec_lite.text.trie import gather_ranges

MULTIPLE = 32  # lengths are padded to a multiple: kernels are rebuilt for each new shape on a CPU
ITEMS_AT_ONCE = 16  # item texts of one forward on a CPU: sorted by length, smaller parts are padded less


@dataclass
class Forks(OnDevice):
    """The decisions of a chunk's targets in the catalogue's trie; the children of its forks lie in one flat list.

    A fork's children are in that list once, however many targets pass it (all pass the root): its length does not grow
    with the rows.

    Attributes:
        positions: (F,) index into the flattened (B * T) states of the state that decides.
        fork: (F,) which of the K distinct forks it decides.
        ptr: (K + 1,) where each distinct fork's children begin.
        tokens: (U,) distinct child tokens.
        entry_token: (E,) for each child of each distinct fork its column in `tokens`.
        entry_bias: (E,) what is added to its logit, once that is multiplied by `logit_scale`.
        chosen: (F,) the entry that is taken.
        children: (F,) how many children each decision has; on the CPU, so that slicing waits for no device.
        target: (F,) which of the chunk's targets it leads to.
        own: what each target's history adds to `entry_bias`; None: nothing.
    """

    positions: Tensor
    fork: Tensor
    ptr: Tensor
    tokens: Tensor
    entry_token: Tensor
    entry_bias: Tensor
    chosen: Tensor
    children: np.ndarray
    logit_scale: float
    target: Tensor
    own: UserBias | None

    def slice(self, at: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """The children of decisions `at` to `end`, one after another: (N,) of which decision, counted from `at`; (N,)
        its entry; (end - at,) which of the N is taken."""
        begin = self.ptr[self.fork[at:end]]
        lengths = self.ptr[self.fork[at:end] + 1] - begin
        start = lengths.cumsum(0) - lengths
        total = int(self.children[at:end].sum())
        decision = torch.repeat_interleave(lengths, output_size=total)
        entry = torch.arange(total, device=begin.device) + (begin - start)[decision]
        return decision, entry, start + self.chosen[at:end] - begin


@dataclass
class Chunk(OnDevice):
    """Pass B: rows of histories with their targets, right-padded.

    Attributes:
        ids: (B, T).
        ends: (B,) tokens of each row; `lengths`: the same, on the CPU.
        positions, labels: (P,) flattened index of the state before each supervised token, and that token.
        forks: decisions in the trie; None where the loss is over the vocabulary only.
        anchor_row, anchor_place: (A,) row of each contrasted target, and which of its row's it is.
        anchor_start, anchor_end: (A,) its text; the history span is what stands before it.
        vocabulary_weight: of a token's loss over the vocabulary beside a fork's: both are means over the step.
    """

    ids: Tensor
    ends: Tensor
    lengths: np.ndarray
    positions: Tensor
    labels: Tensor
    forks: Forks | None
    anchor_row: Tensor
    anchor_place: Tensor
    anchor_start: Tensor
    anchor_end: Tensor
    anchors_per_row: int  # at most
    vocabulary_weight: float = 0.0


@dataclass
class ItemChunk(OnDevice):
    """Pass A: item texts alone, each after the start token. `ids` (M, L) right-padded, `ends` (M,) and `lengths`, the
    same on the CPU. Of a `filler` none is used: it is run so that all processes run as many (`filled`)."""

    ids: Tensor
    ends: Tensor
    lengths: np.ndarray
    filler: bool = False


@dataclass
class StepBatch(OnDevice):
    """One optimiser step, or the share of it that one of several processes does.

    Attributes:
        chunks, items: micro-batches of pass B and of pass A; own ones.
        texts: M, of pass A in all processes; `first_text`, `first_anchor`: where own texts and anchors begin.
        anchor_item: (A,) each anchor's item among the texts of pass A.
        negatives: (A, A) whether column j's text is a negative of row i.
        supervised: tokens (or forks) L_NIG is divided by.
        targets: target items supervised.
        tokens: ids of both passes, padding not counted.
        attended: pairs of positions that see each other in both passes, padding not counted.
        vocabulary_positions, fork_entries: positions whose loss is over the vocabulary, and children at forks.
        at_once: whether the graphs of the whole step fit in memory: one chunk of rows, no more tokens in item texts.
        rows, micro_batch_size: what the step was made of and how it was cut, so that it can be cut again.
        processes: which do the step together.
    """

    chunks: list[Chunk]
    items: list[ItemChunk]
    texts: int
    first_text: int
    first_anchor: int
    anchor_item: Tensor
    negatives: Tensor
    supervised: int
    targets: int
    tokens: int
    attended: int
    vocabulary_positions: int
    fork_entries: int
    at_once: bool
    rows: Sequence[Row]
    micro_batch_size: int
    processes: Processes = ALONE


class Collator:
    """Rows to a StepBatch.

    Args:
        catalogues: the domains' items by name.
        loss: which targets, which softmax, how many anchors a row.
        start, pad: ids of the first token of pass A and of padding.
        micro_batch_size: full-length rows in memory at once, or more shorter rows or item texts of as many tokens. It
            may be set later too, for background workers as well.
        row_tokens: the full length; None: that of a step's longest row.
        items_at_once: item texts of one forward at most; None: as many as fit where the rows do, so that a
            GPU has fewer kernels to launch.
        held_out: the targets are in no count. Else a user's prior leaves each target's own event out.
        share: the part of each step's rows and texts that is made, with the counts of that part.
    """

    def __init__(
        self,
        catalogues: Mapping[str, EncodedCatalogue],
        loss: Loss,
        start: int,
        pad: int,
        micro_batch_size: int,
        row_tokens: int | None = None,
        items_at_once: int | None = ITEMS_AT_ONCE,
        held_out: bool = False,
        share: Share = WHOLE,
    ) -> None:
        self.catalogues, self.loss, self.start, self.pad = catalogues, loss, start, pad
        self.row_tokens, self.items_at_once, self.held_out, self.share = row_tokens, items_at_once, held_out, share
        self._micro_batch_size = torch.tensor(micro_batch_size).share_memory_()

    def __call__(self, rows: Sequence[Row]) -> StepBatch:
        step = sorted(rows, key=lambda row: -len(row.tokens))  # longest first: if memory runs out, it does so early
        dealt, own = self.share.dealt(step), self.share.own(len(step))
        rows = dealt[own]
        longest = self._width(len(rows[0].tokens))
        micro = self.micro_batch_size
        token_budget = micro * max(longest, self._width(self.row_tokens or 1))
        chunks = [self._chunk(part) for part in _parts(rows, token_budget // longest)]
        texts, anchor_item, negatives = self._contrast(dealt)
        distinct, own_texts = len(texts), self.share.own(len(texts))
        texts = texts[own_texts]
        width = _padded(1 + max(map(len, texts), default=0), 8)
        texts_at_once = min(self.items_at_once or token_budget, max(1, token_budget // width))
        items = [item_chunk(part, self.start, self.pad) for part in _parts(texts, texts_at_once)]
        vocabulary = self.loss.softmax == "vocabulary"
        over_vocabulary = vocabulary or self.loss.vocabulary_weight > 0
        supervised = max(1, sum(len(c.labels if vocabulary or c.forks is None else c.forks.chosen) for c in chunks))
        positions = sum(len(c.labels) for c in chunks if over_vocabulary or c.forks is None)
        for chunk in chunks:  # the step divides by forks, this loss is a mean over tokens (docs/method.md, 5b)
            chunk.vocabulary_weight = self.loss.vocabulary_weight * supervised / max(1, positions)
        lengths = np.array([len(r.tokens) for r in rows] + [len(t) + 1 for t in texts], np.int64)
        return StepBatch(
            chunks=chunks,
            items=items,
            texts=distinct,
            first_text=own_texts.start,
            first_anchor=sum(len(self.anchors(row)) for row in dealt[: own.start]),
            anchor_item=torch.from_numpy(anchor_item),
            negatives=torch.from_numpy(negatives),
            supervised=supervised,
            targets=sum(len(self.targets(r)) for r in rows),
            tokens=int(lengths.sum()),
            attended=int((lengths * (lengths + 1) // 2).sum()),
            vocabulary_positions=positions,
            fork_entries=sum(int(c.forks.children.sum()) for c in chunks if c.forks is not None),
            at_once=len(chunks) == 1 and sum(i.ids.numel() for i in items) <= token_budget,
            rows=step,
            micro_batch_size=micro,
        )

    @property
    def micro_batch_size(self) -> int:
        return int(self._micro_batch_size)

    @micro_batch_size.setter
    def micro_batch_size(self, rows: int) -> None:
        self._micro_batch_size.fill_(rows)

    def _width(self, length: int) -> int:
        return _padded(length, MULTIPLE)

    def targets(self, row: Row) -> np.ndarray:
        """Positions (in items) of the row that are targets."""
        return np.arange(1, len(row.items))[-1 if self.loss.targets == "last" else 0 :]

    def anchors(self, row: Row) -> np.ndarray:
        """Targets of the row that enter the contrastive terms: the latest `contrast_per_row`."""
        targets = self.targets(row)
        return targets[-(self.loss.contrast_per_row or 0) :] if self.loss.contrastive else targets[:0]

    def _chunk(self, rows: Sequence[Row]) -> Chunk:
        lengths = np.array([len(r.tokens) for r in rows])
        width = self._width(int(lengths.max()))
        ids = np.full((len(rows), width), self.pad, np.int64)
        positions, labels, anchors = [], [], []
        for b, row in enumerate(rows):
            ids[b, : len(row.tokens)] = row.tokens
            for k in self.targets(row):
                end = row.ends[k] + (k == len(row.items) - 1)  # end-of-text after the last one is supervised too
                supervised = np.arange(row.starts[k], end)
                positions.append(b * width + supervised - 1)
                labels.append(row.tokens[supervised])
            anchors += [(b, n, row.starts[k], row.ends[k]) for n, k in enumerate(self.anchors(row))]
        labelled = torch.from_numpy(np.concatenate(positions)), torch.from_numpy(np.concatenate(labels))
        forks = self._forks(rows, width) if self.loss.softmax == "catalogue" else None
        columns = np.array(anchors, np.int64).reshape(-1, 4).T.copy()
        of_row, place, start, end = map(torch.from_numpy, columns)
        most = int(columns[1].max(initial=-1)) + 1
        tokens = torch.from_numpy(ids), torch.from_numpy(lengths), lengths
        return Chunk(*tokens, *labelled, forks, of_row, place, start, end, most)

    def _forks(self, rows: Sequence[Row], width: int) -> Forks:
        if len(domains := {row.domain for row in rows}) > 1:
            raise ValueError(f"a chunk holds rows of one domain, not of {sorted(domains)}")
        catalogue = self.catalogues[domains.pop()]
        trie, prior, counted = catalogue.trie, catalogue.collaborative, not self.held_out
        targets = [(b, row, k) for b, row in enumerate(rows) for k in self.targets(row)]
        before, items = np.array([(b * width + row.starts[k] - 1, row.items[k]) for b, row, k in targets]).T
        histories = [row.items[:k] for _, row, k in targets]
        edges, target = gather_ranges(trie.path_ptr[items], trie.path_ptr[items + 1])
        edges = trie.path[edges]  # (F,)
        forks = trie.owner[edges]
        distinct, fork = np.unique(forks, return_inverse=True)  # (K,), (F,)
        entries, _ = gather_ranges(trie.ptr[distinct], trie.ptr[distinct + 1])
        tokens, entry_token = np.unique(trie.token[entries], return_inverse=True)
        ptr = np.concatenate([[0], np.cumsum(trie.ptr[distinct + 1] - trie.ptr[distinct])])  # (K + 1,)
        return Forks(
            positions=torch.from_numpy(before[target] + trie.depth[forks]),
            fork=torch.from_numpy(fork),
            ptr=torch.from_numpy(ptr),
            tokens=torch.from_numpy(tokens),
            entry_token=torch.from_numpy(entry_token),
            entry_bias=torch.from_numpy(catalogue.bias[entries]),
            chosen=torch.from_numpy(ptr[fork] + edges - trie.ptr[forks]),
            children=np.diff(ptr)[fork],
            logit_scale=catalogue.logit_scale,
            target=torch.from_numpy(target),
            own=None if prior is None else UserBias.of(prior, histories, items if counted else None, entries),
        )

    def _contrast(self, rows: Sequence[Row]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Distinct texts of pass A (shortest first, dealt), each anchor's text, and who is a negative of whom."""
        users, keys = [], []
        for b, row in enumerate(rows):
            for k in self.anchors(row):
                users.append(-1 - b if row.user is None else row.user)
                keys.append((row.domain, int(row.items[k])))
        texts = {key: self.catalogues[key[0]].tokens[key[1]] for key in keys}
        distinct = self.share.dealt(sorted(texts, key=lambda key: (len(texts[key]), key)))
        index = {key: i for i, key in enumerate(distinct)}
        item = np.array([index[key] for key in keys], np.int64)
        user = np.array(users, np.int64)  # windows of one user, and rows drawn again to fill a step, are one history
        negatives = item[:, None] != item[None, :]  # (A, A); the same text is never its own negative
        if self.loss.mask_same_history:
            negatives &= user[:, None] != user[None, :]
        return [texts[key] for key in distinct], item, negatives


def item_chunk(texts: Sequence[np.ndarray], start: int, pad: int) -> ItemChunk:
    """Item texts after the start token, right-padded to a multiple of 8."""
    lengths = np.array([1 + len(text) for text in texts])
    width = _padded(int(lengths.max()), 8)
    ids = np.full((len(texts), width), pad, np.int64)
    ids[:, 0] = start
    for m, text in enumerate(texts):
        ids[m, 1 : 1 + len(text)] = text
    return ItemChunk(torch.from_numpy(ids), torch.from_numpy(lengths), lengths)


def _parts(values: Sequence[Any], largest: int) -> list[Sequence[Any]]:
    """The fewest parts of at most `largest`, all of the same size but the last."""
    size = -(-len(values) // -(-len(values) // largest)) if values else 1
    return [values[i : i + size] for i in range(0, len(values), size)]


def _padded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
