"""The rows of benchmarks/train.py: what is trained on, and who trains (TRL, the straightforward CALRec, ours)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import amazon
import numpy as np
import torch
import yaml
from torch import nn
from train_ladder import LADDER, Measure

from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.rows import Rows, training_rows
from calrec_lite.model.base import add_adapter, base_folder, load_model
from calrec_lite.model.device import choose_dtype
from calrec_lite.recipe import Base, Loss
from calrec_lite.recipe.file import builtin_folder, check_recipe, load_recipe
from calrec_lite.run import Run
from calrec_lite.text.encoding import Row
from calrec_lite.training.config import CALRecConfig

ITEMS = 10  # of a row, the target included
SEED = 0
DTYPES: dict[str, dict[str, Any]] = {  # by name in the tables: how the base is loaded
    "bf16": {"dtype": "bfloat16", "load_in_4bit": False},
    "fp32": {"dtype": "float32", "load_in_4bit": False},
    "nf4": {"dtype": "auto", "load_in_4bit": True},
}
DATA = ("ml100k", "scientific")


def recipe_values(name: str, data: Path) -> dict[str, Any]:
    """A data set as a recipe: default wording, LoRA r=16 on all linear layers."""
    if name == "ml100k":
        file = builtin_folder() / "data" / "ml-100k.yaml"
        source = yaml.safe_load(file.read_text(encoding="utf-8"))["domains"]["movies"]
    else:
        source = amazon.domain(data, "amazon18_scientific")
    return {
        "name": f"train-{name}",
        "base": {"model": load_recipe("demo").base.model},
        "domains": {name: source},
        "text": {"max_items": ITEMS},
        "stages": [{"name": "target", "domains": [name], "max_steps": 1}],
    }


def faster() -> str:
    """Of bf16 and fp32 the one that a run would take on this machine."""
    base = load_recipe("demo").base
    return "bf16" if choose_dtype(base, base_folder(base)).dtype == "bfloat16" else "fp32"


class Bench:
    """A data set, tokenised, with the rows of both kinds of training.

    `every` (`targets: all`): windows of at most 10 items; each item but a user's first is a target once.
    `last` (one row per target): the same events, each target with its own history. On ML-100K both are windows of
    exactly 10 items.
    """

    def __init__(self, name: str, dtype: str, data: Path, runs: Path, run: Run | None = None) -> None:
        self.name, self.dtype = name, dtype
        self.run = run or Run.start(check_recipe(recipe_values(name, data)), runs)
        self.encoder = self.run.encoder
        self.domain = self.run.domain(next(iter(self.run.recipe.domains)))
        self.every = self._rows("all")
        self.last = self.every if name == "ml100k" else self._rows("last")

    @cached_property
    def base(self) -> Base:
        return Base.model_validate(self.run.recipe.base.model_dump() | DTYPES[self.dtype])

    def catalogue(self, loss: Loss) -> EncodedCatalogue:
        """The items, with the prior and the logits' scale that the loss is trained with."""
        plain = self.run.catalogue(self.domain.name)
        bias = plain.bias if loss.effective_prior else np.zeros_like(plain.bias)
        return replace(plain, bias=bias, logit_scale=loss.effective_logit_scale)

    def _rows(self, targets: str) -> Rows:
        loss = Loss(targets=targets)  # type: ignore[arg-type]
        part = training_rows(self.domain, self.catalogue(loss), self.encoder, loss)
        if self.name == "ml100k":
            part = chosen(part, np.flatnonzero(part.end - part.start == ITEMS))
        return Rows([part], self.encoder)

    def seen(self, rows: Rows, loss: Loss) -> Rows:
        """The rows with the items as a loss sees them."""
        return Rows([replace(part, catalogue=self.catalogue(loss)) for part in rows.parts], rows.encoder)

    def model(self, checkpointing: bool = False) -> nn.Module:
        torch.manual_seed(SEED)
        return add_adapter(load_model(self.run.base, self.base), self.base, checkpointing)

    def prompt_completion(self, row: Row) -> dict[str, str]:
        """A row as a user of TRL writes it: the history, and the last item as the completion."""
        text, names = self.run.recipe.text, [self.run.catalogue(row.domain).texts[i] for i in row.items]
        lines = [f"{text.next if i else text.first} {name}" for i, name in enumerate(names[:-1])]
        start = self.encoder.tokenizer.decode(self.encoder.start)
        return {"prompt": start + "\n".join([*lines, text.next]), "completion": f" {names[-1]}\n"}


def chosen(part: Any, rows: np.ndarray) -> Any:
    """Some of a domain's windows."""
    return replace(part, **{name: getattr(part, name)[rows] for name in ("user", "start", "end", "length")})


@dataclass(frozen=True)
class Counts:
    """What one optimiser step trained on."""

    rows: int
    targets: int
    tokens: int


class Ours:
    """CALRecTrainer, as a stage configures it, one optimiser step at a time."""

    def __init__(
        self, bench: Bench, loss: Loss, batch: int, micro: int, out: Path, measure: Measure | None = None
    ) -> None:
        measure = measure or Measure()
        self.rows = bench.every if loss.targets == "all" else bench.last
        config = CALRecConfig(
            output_dir=str(out),
            objective=loss,
            micro_batch_size=measure.micro or micro,
            per_device_train_batch_size=batch,
            learning_rate=5e-4,
            max_grad_norm=1.0,
            seed=SEED,
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
        )
        model = bench.model(measure.checkpointing)
        self.trainer = measure.trainer(model, config, bench.seen(self.rows, loss))
        measure.prepare(self.trainer)
        self.trainer.create_optimizer()

    def steps(self, rows: np.ndarray) -> Iterator[Counts]:
        """Train on these rows once."""
        self.trainer.train_dataset = Rows([chosen(self.rows.parts[0], rows)], self.rows.encoder)
        for inputs in self.trainer.get_train_dataloader():
            batch = inputs["step"]
            self.trainer.training_step(self.trainer.model, inputs)
            finish(self.trainer)
            yield Counts(len(batch.rows), batch.targets, batch.tokens)


def finish(trainer: Any) -> None:
    """Clip, step, clear: what `Trainer.train` does after the gradient."""
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.model.zero_grad()


class TRL:
    """Row A: TRL's SFTTrainer over the same adapted model, prompt/completion, one row per target."""

    def __init__(self, bench: Bench, batch: int, micro: int, out: Path, checkpointing: bool, some: np.ndarray) -> None:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        self.bench, self.rows, self.place = bench, bench.last, {int(i): n for n, i in enumerate(some)}
        config = SFTConfig(
            output_dir=str(out),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=batch // micro,
            gradient_checkpointing=checkpointing,
            max_length=None,
            learning_rate=5e-4,
            seed=SEED,
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
        )
        model = bench.model(checkpointing)
        data = Dataset.from_list([bench.prompt_completion(self.rows[int(i)]) for i in some])
        self.trainer = SFTTrainer(model, config, train_dataset=data, processing_class=bench.encoder.tokenizer)
        self.trainer.create_optimizer()
        self.data, self.batch = self.trainer.train_dataset, batch

    def steps(self, rows: np.ndarray) -> Iterator[Counts]:
        """Train on these rows once (they have to be among `some`), in the Trainer's own random order."""
        trainer = self.trainer
        trainer.train_dataset = self.data.select([self.place[int(i)] for i in rows])
        loader = iter(trainer.get_train_dataloader())
        parts = self.batch // trainer.args.per_device_train_batch_size
        trainer.current_gradient_accumulation_steps = parts
        trainer.model.train()
        for _ in range(len(rows) // self.batch):
            inputs, items = trainer.get_batch_samples(loader, parts, trainer.args.device)
            for part in inputs:
                trainer.training_step(trainer.model, part, items)
            self.contrast(inputs)
            finish(trainer)
            yield Counts(self.batch, self.batch, sum(int(part["attention_mask"].sum()) for part in inputs))

    def contrast(self, inputs: list[dict[str, torch.Tensor]]) -> None:
        """A has no contrastive terms."""


class Straightforward(TRL):
    """Row B: A, and a separately encoded user and item tower under sentence-transformers' cached in-batch loss."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

        causal = self.trainer.model.get_base_model()
        tower = Tower(causal.get_decoder())
        modules = [tower, Pooling(causal.config.hidden_size, "mean"), Normalize()]
        encoder = SentenceTransformer(modules=modules, device=str(self.trainer.args.device))
        micro = self.trainer.args.per_device_train_batch_size
        self.loss = CachedMultipleNegativesRankingLoss(encoder, scale=2.0, mini_batch_size=micro)  # tau = 0.5

    def contrast(self, inputs: list[dict[str, torch.Tensor]]) -> None:
        """History against target text, both encoded by themselves."""
        history, target = [], []
        for part in inputs:
            for ids, labels, mask in zip(part["input_ids"], part["labels"], part["attention_mask"]):
                supervised = labels != -100
                history.append(ids[mask.bool() & ~supervised])
                target.append(ids[supervised])
        with torch.autocast(history[0].device.type, torch.bfloat16, enabled=self.trainer.model.dtype is torch.bfloat16):
            loss = 0.15 * self.loss([padded(history), padded(target)], None)
            loss.backward()


def padded(texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Right-padded, with a mask, as a tokenizer gives them."""
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(texts, batch_first=True),
        "attention_mask": pad([torch.ones_like(t) for t in texts], batch_first=True),
    }


class Tower(nn.Module):
    """The decoder as a sentence-transformers module."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        out = self.decoder(input_ids=features["input_ids"], attention_mask=features["attention_mask"], use_cache=False)
        return {**features, "token_embeddings": out.last_hidden_state}


PAPER = {"alpha": 0.125, "beta": 0.025, "softmax": "vocabulary"}
LOSSES = {
    "C": Loss(alpha=0, beta=0, targets="last", softmax="vocabulary"),
    "D": Loss(**PAPER, targets="last"),
    "E": Loss(**PAPER, targets="all"),
    "F": Loss(**{**PAPER, "softmax": "catalogue"}, targets="all"),
}
WHAT = {
    "A": "TRL SFTTrainer, one row per target, no checkpointing",
    "A (TRL's default)": "A with gradient checkpointing, which TRL turns on by itself",
    "B": "A, and two towers under sentence-transformers' cached loss",
    "C": "ours, `targets: last`, LM only",
    "D": "ours, `targets: last`, full objective",
    "E": "ours, `targets: all`, full objective",
    "F": "E with `softmax: catalogue`",
}


def build(row: str, bench: Bench, batch: int, micro: int, out: Path, some: np.ndarray) -> Ours | TRL:
    """A row of the table, or `E: ...`, a rung of the ladder. `some`: rows of `bench.last` that may be asked for."""
    if row in ("A", "A (TRL's default)"):
        return TRL(bench, batch, micro, out, row != "A", some)
    if row == "B":
        return Straightforward(bench, batch, micro, out, False, some)
    if row in LADDER:
        measure = LADDER[row]
        return Ours(bench, LOSSES["E"].model_copy(update=measure.loss), batch, micro, out, measure)
    return Ours(bench, LOSSES[row], batch, micro, out)
