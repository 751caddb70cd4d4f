"""Quality a minute: A, E and F on amazon18_scientific, in turns of a few minutes, measured at the same ages.

Turns are interleaved, so that all see the same machine. The state of each is on disk after every turn, and a run that
was stopped goes on there. Only training counts as minutes: weights are kept at each age, and measured after all of it,
on another machine if they are copied there. One learning rate for all, constant after a warm-up.

All are scored alike, with F's prior and scale of the logits, which any model can be given when it is used. What A and E
come to without them, as they were trained, is in the file beside it (`as_trained`).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_rows import LOSSES, SEED, Bench, build, faster

from calrec_lite.evaluate.protocol import Protocol, evaluate_system
from calrec_lite.files import atomic_path
from calrec_lite.measure.cases import build_cases
from calrec_lite.measure.metrics import summarise
from calrec_lite.method.batch import Collator
from calrec_lite.method.rows import Rows, validation_rows
from calrec_lite.method.towers import Towers
from calrec_lite.recipe import Loss, Recommend
from calrec_lite.recommend import Recommender
from calrec_lite.training.sampler import StepSampler
from calrec_lite.training.validation import validation_loss

ROWS = ("A", "E", "F")
BATCH = 16
MICRO = 8  # of A: its batches are not of one length, and 16 of the longest rows took 20 GB
TURN = 150.0  # seconds
WARMUP = 10
MOST = 12_000  # rows of A that are tokenised
RATE = 5e-4


class Student:
    """A row that is trained for so many seconds, and its state on disk."""

    def __init__(self, name: str, bench: Bench, folder: Path, some: np.ndarray) -> None:
        self.name, self.bench, self.folder, self.some = name, bench, folder, some
        micro = MICRO if name == "A" else BATCH
        self.system = build(name, bench, BATCH, micro, folder / "trainer", some)
        self.state = {"seconds": 0.0, "steps": 0, "targets": 0}
        self.order = self._order()

    def _order(self) -> list[np.ndarray]:
        """Rows of each step of an epoch: ours of similar length, as a stage draws them; TRL's in random order."""
        if self.system.rows is self.bench.every:
            return [np.array(rows) for rows in StepSampler(self.bench.every, BATCH, SEED)]
        return list(
            np.random.default_rng(SEED).permutation(self.some)[: len(self.some) // BATCH * BATCH].reshape(-1, BATCH)
        )

    def file(self, minutes: float | None = None) -> Path:
        """Its weights at an age, or the latest with the optimiser's state."""
        return self.folder / (f"{self.name}.pt" if minutes is None else f"{self.name}-{minutes:g}.pt")

    def load(self, file: Path) -> None:
        """Go on from a file; without one, from where it stands."""
        if not file.is_file():
            return
        saved = torch.load(file, weights_only=True)
        self.state = saved["state"]
        if "optimizer" in saved:
            self.system.trainer.optimizer.load_state_dict(saved["optimizer"])
        parameters = dict(self.system.trainer.model.named_parameters())
        for key, value in saved["weights"].items():
            parameters[key].data.copy_(value)

    def train(self, until: float) -> None:
        """Train to an age in seconds, step by step."""
        while self.state["seconds"] < until:
            begin = time.perf_counter()
            step = int(self.state["steps"])
            for group in self.system.trainer.optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / WARMUP)
            for counts in self.system.steps(self.order[step % len(self.order)]):
                self.state["targets"] += counts.targets
            self.state["steps"] += 1
            self.state["seconds"] += time.perf_counter() - begin

    def save(self, minutes: float | None = None) -> None:
        trainer = self.system.trainer
        values = {
            "state": self.state,
            "weights": {n: p.data for n, p in trainer.model.named_parameters() if p.requires_grad},
        }
        if minutes is None:
            values["optimizer"] = trainer.optimizer.state_dict()
        with atomic_path(self.file(minutes)) as temporary:
            torch.save(values, temporary)


def measured(student: Student, users: int) -> dict[str, Any]:
    """Validation loss over the catalogue's items and lists for test users; as it was trained, the loss alone."""
    bench = student.bench
    model = student.system.trainer.model
    towers = Towers(model)
    facts: dict[str, Any] = {"nats_per_item": nats(towers, bench, LOSSES["F"], users)}
    if student.name != "F":
        facts["as_trained"] = {"nats_per_item": nats(towers, bench, Loss(softmax="vocabulary"), users)}
    cases, ids = build_cases(bench.domain, "test", users, SEED), bench.domain.catalogue.ids
    recommender = Recommender(towers, bench.encoder, bench.catalogue(LOSSES["F"]), ids, Recommend(strategy="beam"))
    ranks = evaluate_system(recommender, cases, Protocol(users=users)).ranks
    model.train()
    return {**facts, "ndcg@10": summarise(ranks, 2000, SEED)["ndcg@10"], "users": users, **student.state}


def nats(towers: Towers, bench: Bench, scored_as: Loss, users: int) -> float:
    """Nats an item of validation users over the catalogue, with the prior and the scale of a loss."""
    catalogue = bench.catalogue(scored_as)
    over_items = Loss(alpha=0, beta=0, targets="last", softmax="catalogue")
    rows = Rows([validation_rows(bench.domain, catalogue, bench.encoder, users, SEED)], bench.encoder)
    collator = Collator(
        {bench.domain.name: catalogue}, over_items, int(bench.encoder.start[0]), bench.encoder.pad, 8, held_out=True
    )
    return validation_loss(towers, rows, collator, progress=False)


def run(results: Any, options: argparse.Namespace) -> None:
    """Train all rows in turns, then measure each at each age, the oldest first; at 0 all are the untouched base."""
    ages = sorted({0.0, *(float(m) for m in options.quality_minutes.split(","))})
    bench = Bench("scientific", faster(), options.data, options.runs)
    folder = options.runs / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    some = np.random.default_rng(SEED).permutation(len(bench.last))[:MOST]
    students = [Student(name, bench, folder, some) for name in ROWS]
    grow(students, ages)
    for age in reversed(ages):
        for student in students if age else students[:1]:
            student.load(student.file(age))
            name = student.name if age else "untouched"
            results.part("quality", f"{name} {age:g}", lambda s=student: measured(s, options.users))


def grow(students: list[Student], ages: list[float]) -> None:
    """Train to these ages, in minutes, and keep the weights of each; what is kept already is not made again."""
    for student in students:
        student.load(student.file())
    for age in ages:
        growing = [student for student in students if not student.file(age).is_file()]
        for student in growing:
            if student.state["seconds"] > 60 * age + TURN:
                raise SystemExit(
                    f"{student.name} is {student.state['seconds'] / 60:.1f} minutes old: too old for {age:g}"
                )
        while any(s.state["seconds"] < 60 * age for s in growing):
            youngest = min(s.state["seconds"] for s in growing)
            for student in growing:
                student.train(min(60 * age, youngest + TURN))
                student.save()
                print(f"{student.name}: {student.state}", flush=True)
        for student in growing:
            student.save(age)
