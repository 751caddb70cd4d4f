"""One process's share of an optimiser step that several do together."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from calrec_lite.method.batch import Chunk, ItemChunk, StepBatch
from calrec_lite.processes import Processes

COUNTS = ("supervised", "targets", "tokens", "attended", "vocabulary_positions", "fork_entries")


class SharedStep:
    """What all processes' shares of a step come to, asked for once, however often the own one is cut anew.

    Args:
        batch: this process's share, with its own counts.
        vocabulary_weight: `loss.vocabulary_weight`.
        fill: the start token, where all have to run as many chunks (`filled`).
    """

    def __init__(
        self, processes: Processes, batch: StepBatch, vocabulary_weight: float, fill: int | None = None
    ) -> None:
        self.processes, self.vocabulary_weight, self.fill = processes, vocabulary_weight, fill
        processes.begin_step()
        totals = processes.totals([getattr(batch, name) for name in COUNTS])
        self.totals: dict[str, Any] = dict(zip(COUNTS, totals))

    def share(self, batch: StepBatch) -> StepBatch:
        """The share with the whole step's counts: the losses are means over all rows."""
        if self.processes.size == 1:
            return batch
        self.processes.begin_again()
        scale = self.totals["supervised"] / max(1, self.totals["vocabulary_positions"])
        for chunk in batch.chunks:
            chunk.vocabulary_weight = self.vocabulary_weight * scale
        share = replace(batch, processes=self.processes, **self.totals)
        return share if self.fill is None else filled(share, self.processes, self.fill)


def filled(batch: StepBatch, processes: Processes, start: int) -> StepBatch:
    """The share with as many chunks as each other process's has, by fillers of one start token that add to nothing.

    The layers of a base that is split among processes (`model.sharded`) are computed by all of them together.
    """
    rows, items, cut = processes.most([len(batch.chunks), len(batch.items), not batch.at_once])
    text = torch.tensor([[start]]), torch.tensor([1]), np.array([1])
    none = torch.zeros(0, dtype=torch.int64)
    row = Chunk(*text, none, none, None, none, none, none, none, 0)
    return replace(
        batch,
        chunks=batch.chunks + [row] * (rows - len(batch.chunks)),
        items=batch.items + [ItemChunk(*text, filler=True)] * (items - len(batch.items)),
        at_once=not cut,
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Let dropout draw by the step and the process: a resumed run draws the same, and no two processes do."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))
