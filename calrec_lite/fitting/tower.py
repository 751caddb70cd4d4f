"""The user tower's training: softmax over the whole catalogue, the epoch that is best on validation."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.measure.cases import Cases
from calrec_lite.measure.metrics import ndcg_at, ranks_in_chunks
from calrec_lite.model.device import device
from calrec_lite.recipe import TowerSettings
from calrec_lite.recommend.user_tower import History, UserTower

SORTED = 16  # steps whose pieces are sorted together
Rows = tuple[Tensor, Tensor]  # items read and items to be predicted, both (B, T); nothing to predict: -1


@dataclass(frozen=True)
class Epoch:
    """Mean loss in nats a target, NDCG@10 on validation, seconds since the start."""

    loss: float
    ndcg: float
    seconds: float


def fit_tower(
    domain: Domain, text: Tensor, settings: TowerSettings, cases: Cases, seed: int, exclude_seen: bool
) -> tuple[UserTower, dict[str, Any]]:
    """A tower trained on the domain's training part, with the weights of its best epoch; and how it went.

    Args:
        text: (N, W) whitened text vectors.
        cases: validation cases that choose the epoch.
        exclude_seen: as lists will be made.

    Raises:
        InputError: no user has two items to learn from.
    """
    pieces = _pieces([domain.train_items(u) for u in range(len(domain.sequences))], settings.length)
    if not pieces:
        raise InputError(f"domain `{domain.name}`: no user has two items that a user tower could be trained on")
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    shape = {"dim": settings.dim, "layers": settings.layers, "heads": settings.heads, "length": settings.length}
    tower = UserTower(text, dropout=settings.dropout, memory=settings.memory, **shape).to(device())
    optimiser = torch.optim.AdamW(
        [p for p in tower.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )
    epochs: list[Epoch] = []
    best: dict[str, Tensor] = {}
    start = perf_counter()
    bar = tqdm(range(settings.epochs), desc="user tower", unit="epoch", leave=False)
    for _ in bar:
        loss = _train_epoch(tower, optimiser, pieces, settings, random)
        epochs.append(Epoch(loss, validation_ndcg(tower, cases, exclude_seen), perf_counter() - start))
        bar.set_postfix(loss=f"{loss:.3f}", valid_ndcg=f"{epochs[-1].ndcg:.4f}")
        highest = int(np.argmax([epoch.ndcg for epoch in epochs]))  # among equals the first
        if highest == len(epochs) - 1:
            best = copy.deepcopy(tower.state_dict())
        if len(epochs) - 1 - highest >= settings.patience:
            break
    bar.close()
    tower.load_state_dict(best)
    facts = {"best_epoch": highest + 1, "valid_ndcg": epochs[highest].ndcg, "epochs": [asdict(e) for e in epochs]}
    return tower.cpu().eval(), facts


def validation_ndcg(tower: UserTower, cases: Cases, exclude_seen: bool) -> float:
    """Mean NDCG@10 of the cases by the tower alone."""
    tower.eval()
    with torch.no_grad():
        items = tower.items()

    def score(users: slice) -> np.ndarray:
        return tower.scores(cases.histories[users], items).cpu().numpy()

    seen = cases.histories if exclude_seen else None
    return float(ndcg_at(ranks_in_chunks(score, cases.targets, cases.items, seen), 10).mean())


def _pieces(histories: Sequence[History], length: int) -> list[History]:
    """Stretches of at most `length` items and the one after them; every item but a history's first is a target once."""
    return [history[max(0, end - length - 1) : end] for history in histories for end in range(len(history), 1, -length)]


def _train_epoch(
    tower: UserTower,
    optimiser: torch.optim.Optimizer,
    pieces: Sequence[History],
    settings: TowerSettings,
    random: np.random.Generator,
) -> float:
    tower.train()
    total, targets = 0.0, 0
    for rows, following in _batches(tower, pieces, settings.batch_size, random):
        items = tower.items()
        users = tower.users(rows, items)[following >= 0]  # (P, D)
        labels = following[following >= 0]
        loss = F.cross_entropy(*_candidates(tower, users, items, labels, settings.negatives))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total, targets = total + float(loss.detach()) * len(labels), targets + len(labels)
    return total / targets


def _batches(tower: UserTower, pieces: Sequence[History], size: int, random: np.random.Generator) -> Iterator[Rows]:
    """An epoch in random order; pieces of similar length are in one step, so that there is little padding."""
    order = random.permutation(len(pieces))
    group = size * SORTED
    by_length = [
        i
        for start in range(0, len(order), group)
        for i in sorted(order[start : start + group], key=lambda i: len(pieces[i]))
    ]
    steps = [by_length[start : start + size] for start in range(0, len(order), size)]
    for step in random.permutation(len(steps)):
        part = [pieces[i] for i in steps[step]]
        length = max(map(len, part)) - 1
        rows = np.full((len(part), length), tower.padding)
        following = np.full((len(part), length), -1)
        for row, next_items, piece in zip(rows, following, part, strict=True):
            row[length - len(piece) + 1 :], next_items[length - len(piece) + 1 :] = piece[:-1], piece[1:]
        where = tower.memory.device
        yield torch.from_numpy(rows).to(where), torch.from_numpy(following).to(where)


def _candidates(
    tower: UserTower, users: Tensor, items: Tensor, labels: Tensor, negatives: int | None
) -> tuple[Tensor, Tensor]:
    """Logits and labels of the softmax: all items, or each row's target and items drawn evenly for all rows alike.

    An item drawn that is a row's target counts there once.
    """
    if negatives is None or negatives >= len(items):
        return tower.logits(users, items), labels
    drawn = torch.randint(len(items), (negatives,), device=labels.device)
    others = tower.logits(users, items[drawn]).masked_fill(labels.unsqueeze(1) == drawn, -torch.inf)
    own = tower.log_scale.exp() * (users * items[labels]).sum(1, keepdim=True)
    # The target stands for itself, each item drawn for N / negatives of the others.
    correction = np.log(len(items) / negatives)
    return torch.cat([own, others + correction], dim=1), torch.zeros_like(labels)
