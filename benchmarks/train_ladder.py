"""The ladder of benchmarks/train.py: row E with one measure taken away at a time. None is an option of the package."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from calrec_lite.method.batch import Chunk, Collator, StepBatch
from calrec_lite.method.step import StepLoss, _cached, _whole
from calrec_lite.method.towers import RowStates, Towers
from calrec_lite.model.head_loss import vocabulary_nll
from calrec_lite.training.trainer import CALRecTrainer, _step


class FullHead(Towers):
    """Logits of every position, as a causal LM gives them."""

    def rows(self, chunk: Chunk, likelihood: bool = True, hidden: Tensor | None = None) -> RowStates:
        if hidden is None:  # (B, T, D)
            (hidden,) = self.all_states([chunk])
        plain = super().rows(chunk, False, hidden)
        if not likelihood:
            return plain
        labels = torch.zeros(hidden.shape[0] * hidden.shape[1], dtype=torch.long, device=hidden.device)
        labels[chunk.positions] = chunk.labels
        nll = vocabulary_nll(hidden.flatten(0, 1), self.head, labels)[chunk.positions].sum()
        return RowStates(nll, plain.user, plain.target)


class TwoForwards(Towers):
    """Rows by one call of the decoder, item texts by others, all with their padding."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.join = None


class Padded(Towers):
    """Both towers by one call, with the padding of rows and of item texts."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.join = "padded"


class AsBefore(TwoForwards):
    """And adapters by PEFT. Rows twice, too, this is the step of 27 November 2026, by which today's is measured."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.fuses = False


class Masked(TwoForwards):
    """An attention mask beside right padding."""

    pad: int

    def states(self, ids: Tensor) -> Tensor:
        mask = (ids != self.pad).long()
        mask[:, 0] = 1
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.autocast):
            return self.decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


class EachAnchor(Collator):
    """Every anchor's text is encoded, those that occur twice in a step too."""

    def _contrast(self, rows: Any) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        texts, item, negatives = super()._contrast(rows)
        order = np.argsort(item, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return [texts[i] for i in item[order]], place, negatives


class ExactWidths(Collator):
    """Padded to the longest row, no further: a new shape nearly every step."""

    def _width(self, length: int) -> int:
        return length


class AsTheyCome(CALRecTrainer):
    """Batches in random order, not by length."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        rows: Any = self.train_dataset
        size = self.args.per_device_train_batch_size
        generator = torch.Generator().manual_seed(0)
        return DataLoader(rows, size, True, collate_fn=partial(_step, self.collator), generator=generator)


class KeptGraphs(CALRecTrainer):
    """The other way to micro-batches (docs/architecture.md): chunks keep their graphs, checkpointed; one backward."""

    run = staticmethod(_whole)

    def _attempt(self, batch: StepBatch) -> StepLoss | None:
        batch = batch.to(self.args.device)
        loss = self.args.objective
        weight = (1 - loss.alpha - loss.beta) / batch.supervised
        with self.towers.working():
            return self.run(self.towers, batch, loss, weight, lambda scalar: scalar.backward())


class RowsTwice(KeptGraphs):
    """Rows without a graph first, as where the softmax runs over anchors (GradCache)."""

    run = staticmethod(_cached)


def _towers(kind: type[Towers]) -> Callable[[CALRecTrainer], None]:
    def prepare(trainer: CALRecTrainer) -> None:
        trainer.towers = kind(trainer.model)  # type: ignore[arg-type]
        if isinstance(trainer.towers, Masked):
            trainer.towers.pad = trainer.collator.pad

    return prepare


def _collator(kind: type[Collator]) -> Callable[[CALRecTrainer], None]:
    def prepare(trainer: CALRecTrainer) -> None:
        own = trainer.collator
        trainer.collator = kind(own.catalogues, own.loss, own.start, own.pad, own.micro_batch_size, own.row_tokens)

    return prepare


def _cast_inputs(trainer: CALRecTrainer) -> None:
    trainer.towers.adapters = []  # none is told to leave its cast out


def _adapters_by_peft(trainer: CALRecTrainer) -> None:
    trainer.towers.fuses = False


def _nothing(trainer: CALRecTrainer) -> None:
    pass


@dataclass(frozen=True)
class Measure:
    """How a rung differs from row E."""

    trainer: type[CALRecTrainer] = CALRecTrainer
    prepare: Callable[[CALRecTrainer], None] = _nothing
    loss: dict[str, Any] = field(default_factory=dict)
    micro: int | None = None
    checkpointing: bool = False


LADDER = {
    "E: one target a row": Measure(loss={"targets": "last"}),
    "E: LM head at every position": Measure(prepare=_towers(FullHead)),
    "E: an attention mask": Measure(prepare=_towers(Masked)),
    "E: adapters by PEFT": Measure(prepare=_adapters_by_peft),
    "E: padding run too": Measure(prepare=_towers(Padded)),
    "E: padding run too, two forwards": Measure(prepare=_towers(TwoForwards)),
    "E: batches not by length": Measure(trainer=AsTheyCome),
    "E: widths not in multiples of 32": Measure(prepare=_collator(ExactWidths)),
    "E: all targets of a row contrasted": Measure(loss={"contrast_per_row": None}),
    "E: equal texts encoded again": Measure(prepare=_collator(EachAnchor)),
    "E: PEFT casts inputs to fp32": Measure(prepare=_cast_inputs),
    "E: micro-batch 4": Measure(micro=4),
    "E: micro-batch 4, graphs kept": Measure(trainer=KeptGraphs, micro=4, checkpointing=True),
    "E: micro-batch 4, checkpointed": Measure(micro=4, checkpointing=True),
    "E: micro-batch 4, checkpointed, rows twice": Measure(trainer=RowsTwice, micro=4, checkpointing=True),
    "E: micro-batch 4, checkpointed, as before": Measure(
        trainer=RowsTwice, prepare=_towers(AsBefore), micro=4, checkpointing=True
    ),
    "E: gradient checkpointing": Measure(checkpointing=True),
}
STEP = ("E: micro-batch 4, checkpointed", "E: micro-batch 4, checkpointed, as before")  # this step, and the one before
