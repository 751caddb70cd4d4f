"""A library's SASRec beside ours: Cornac's network, rows, negatives and loss, by our evaluator.

    pip install cornac==3.0.1
    python benchmarks/sasrec_cornac.py [--only 0|1] [--minutes 60] [--data ../shared/data]
    python benchmarks/sasrec_cornac.py --on scientific  # or office: where the evidence is, on its test users
    python benchmarks/sasrec_cornac.py --time  # an epoch beside one of ours, into the same file

Trained around its model and iterator, since its `fit` scores one user a call: on Amazon-2014 Beauty in the file's
order, or on a target of the evidence. The epoch is chosen on all validation users. Needs the shared data.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from amazon import TARGETS
from cornac.models.sasrec.sasrec import SASRecModel
from cornac.models.seq_utils import session_seq_iter
from cornac.models.seq_utils.losses import get_loss_function
from numpy.typing import NDArray
from sasrec import ROOT, TEST_USERS, about, beauty, target
from torch import Tensor

from calrec_lite import recipe
from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepare
from calrec_lite.evaluate.baselines import Popularity
from calrec_lite.evaluate.protocol import Protocol, build_cases, evaluate_system
from calrec_lite.evaluate.results import hardware
from calrec_lite.evaluate.sasrec import Sasrec, fit, validation_ndcg
from calrec_lite.files import write_json
from calrec_lite.model.base import device
from calrec_lite.recipe_file import load_recipe


@dataclass(frozen=True)
class Setting:
    """Cornac's parameters; two blocks and its cross-entropy always."""

    negatives: int  # `n_sample`, beside the other targets of the step
    popularity: float  # `sample_alpha`: negatives are drawn by popularity to this power
    hidden: int = 64
    batch_size: int = 512
    learning_rate: float = 1e-3
    dropout: float = 0.5
    heads: int = 2
    max_len: int = 20  # most users of Beauty have fewer items; its default of 50 takes twice as long


# The draw of the negatives is not corrected for: a uniform one, as many as there are items, is near a full softmax.
GRID = [Setting(2048, 0.5), Setting(12_000, 0.0)]  # its defaults for the draw come first; Beauty has 12,058 items
PATIENCE = 8


class Network(SASRecModel):
    """Cornac's network, asked as ours is."""

    def __init__(self, items: int, setting: Setting) -> None:
        super().__init__(
            items,
            setting.hidden,
            setting.max_len,
            n_layers=2,
            n_heads=setting.heads,
            use_biases=False,
            dropout=setting.dropout,
            pad_idx=items,
            device=str(device()),
        )

    @torch.no_grad()
    def scores(self, histories: list[NDArray[np.int32]]) -> Tensor:
        """Logits of all items after each history, (U, N); padded on the left, none of them empty."""
        rows = np.full((len(histories), self.maxlen), self.pad_idx)
        for row, history in zip(rows, histories, strict=True):
            row[max(0, len(row) - len(history)) :] = history[-len(row) :]
        states = self.eval()._encode(torch.from_numpy(rows).to(device()))  # (U, D)
        return states @ self.item_emb.weight[: self.item_num].T


class Trained(Sasrec):
    """A trained network in our evaluator."""

    def __init__(self, domain: Domain, network: Network) -> None:
        Popularity.__init__(self, domain, 0)  # nothing of ours is trained
        self._network = network


def train_set(domain: Domain) -> SimpleNamespace:
    """What Cornac's iterator reads of a data set: all events, and the places of each user's."""
    rows = [items for u in range(len(domain.sequences)) if len(items := domain.train_items(u)) >= 2]
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    places = np.split(np.arange(len(users)), np.cumsum([len(row) for row in rows])[:-1])
    return SimpleNamespace(
        uir_tuple=(users, np.concatenate(rows), np.ones(len(users))), sessions=dict(enumerate(places))
    )


def epochs(model: Network, domain: Domain, setting: Setting) -> Iterator[float]:
    """Train for one epoch after another; the mean loss of each."""
    events, random, loss = train_set(domain), np.random.RandomState(0), get_loss_function("ce")
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.learning_rate, betas=(0.9, 0.98))
    draw = (model.pad_idx, setting.batch_size, setting.max_len, setting.negatives, setting.popularity, random)
    while True:
        model.train()
        total, rows = torch.zeros((), device=device()), 0
        for _, histories, items in session_seq_iter(events, *draw):
            optimizer.zero_grad()
            scores = model(None, torch.from_numpy(histories).to(device()), torch.from_numpy(items).to(device()))
            found = loss(scores)
            found.backward()
            optimizer.step()
            total, rows = total + found.detach() * len(histories), rows + len(histories)
        yield float(total) / rows


def trained(setting: Setting, domain: Domain, folder: Path, minutes: float) -> dict[str, Any]:
    """The best epoch's weights in the folder, with what was found; read from there if it was trained before."""
    file = folder / "training.json"
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    cases = build_cases(domain, "validation", None, 0)
    torch.manual_seed(0)
    model, begin, made = Network(len(domain.catalogue), setting), perf_counter(), []
    for loss in epochs(model, domain, setting):
        made.append({"loss": loss, "ndcg": validation_ndcg(model, cases, True), "seconds": perf_counter() - begin})
        print(setting, len(made), made[-1], flush=True)
        best = max(range(len(made)), key=lambda i: made[i]["ndcg"])
        if best == len(made) - 1:
            torch.save(model.state_dict(), folder / "model.pt")
        stopped = len(made) - best > PATIENCE
        if stopped or made[-1]["seconds"] > 60 * minutes:
            break
    facts = {"setting": asdict(setting), "validation_ndcg": made[best]["ndcg"], "best_epoch": best + 1}
    facts |= {"stopped_by": "validation" if stopped else "time", "epochs": made, "hardware": hardware()}
    write_json(file, facts)
    return facts


def measured(domain: Domain, setting: Setting, folder: Path, users: int | None) -> dict[str, Any]:
    model = Network(len(domain.catalogue), setting)
    model.load_state_dict(torch.load(folder / "model.pt", map_location=device(), weights_only=True))
    cases, protocol = build_cases(domain, "test", users, 0), Protocol(users=users)
    return evaluate_system(Trained(domain, model), cases, protocol).metrics


def found(domain: Domain, grid: list[Setting], folder: Path, minutes: float, users: int | None) -> list[dict[str, Any]]:
    """Each setting trained in its own folder, and measured on `users` test users (None: all)."""
    tried = []
    for setting in grid:
        own = folder / f"{setting.negatives}-{setting.popularity:g}"
        facts = trained(setting, domain, own, minutes)
        tried.append(facts | {"test": measured(domain, setting, own, users)})
    return tried


def on_target(name: str, data: Path, runs: Path, minutes: float) -> dict[str, Any]:
    """On a target of the evidence: the grid, as many even negatives as it has items."""
    domain = target(name, data)
    grid = [GRID[0], replace(GRID[1], negatives=len(domain.catalogue))]
    facts = {"domain": domain.fingerprint, "tried": found(domain, grid, runs / name, minutes, TEST_USERS)}
    return about(f"python benchmarks/sasrec_cornac.py --on {name} --minutes {minutes:g}") | facts


def epoch_beside_ours(domain: Domain) -> dict[str, float]:
    """Targets a second of an epoch of the first setting, and of ours of the same size, which takes a user's last 50."""
    begin, first = perf_counter(), GRID[0]
    next(epochs(Network(len(domain.catalogue), first), domain, first))
    seconds = perf_counter() - begin
    lengths = [len(domain.train_items(u)) for u in range(len(domain.sequences))]
    targets = sum(max(0, length - 1) for length in lengths)
    options = recipe.Sasrec(hidden=first.hidden, batch_size=first.batch_size, epochs=1, valid_users=100)
    ours = fit(domain, 0, options, exclude_seen=True)[1][0].seconds
    of_ours = sum(min(options.max_len, max(0, length - 1)) for length in lengths)
    found = {"cornac_seconds": seconds, "ours_seconds": ours, "targets": targets, "targets_of_ours": of_ours}
    return found | {"ratio_targets_per_second": (of_ours / ours) / (targets / seconds)}


def timed(data: Path) -> dict[str, Any]:
    domains = [beauty(data, drawn=True), prepare("movies", load_recipe("demo").domains["movies"], seed=0)]
    return {"hardware": hardware(), **{d.name: epoch_beside_ours(d) for d in domains}}


def add(out: Path, facts: dict[str, Any]) -> None:
    """Into what the file holds by now: another target may have been written since this one was begun."""
    kept = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    targets = kept.get("targets", {}) | facts.get("targets", {})
    write_json(out, kept | facts | {"targets": targets})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "sasrec_cornac")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "sasrec_cornac.json")
    parser.add_argument("--minutes", type=float, default=60, help="of training, of one setting")
    parser.add_argument("--only", type=int, choices=range(len(GRID)), help="one setting")
    parser.add_argument("--on", choices=list(TARGETS), help="on a target of the evidence instead, into the same file")
    parser.add_argument("--time", action="store_true", help="only time an epoch, into the results file")
    options = parser.parse_args()
    if options.time:
        add(options.out, {"epoch": timed(options.data)})
        return
    if options.on:
        facts = on_target(options.on, options.data, options.runs, options.minutes)
        add(options.out, {"targets": {options.on: facts}})
        return
    grid = GRID if options.only is None else [GRID[options.only]]
    tried = found(beauty(options.data, drawn=False), grid, options.runs, options.minutes, None)
    only = "" if options.only is None else f" --only {options.only}"
    add(options.out, about(f"python benchmarks/sasrec_cornac.py{only}") | {"tried": tried})


if __name__ == "__main__":
    main()
