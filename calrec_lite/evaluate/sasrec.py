"""SASRec (Kang & McAuley, 2018) with a softmax over the catalogue: the id-based baseline.

Its loss is the cross-entropy over all items, or over a shared sample of them, at every position of a history: not the
original's BCE with one negative, which is what makes many published SASRecs weak (Klenitskiy & Vasilev, 2023). Rows are
padded on the right, and those of a step go through the network in parts of similar length, so that nothing is computed
for most of the padding: that is the reason for a module of our own. docs/evaluation.md has the measurements of a
library's beside it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from calrec_lite import recipe
from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines import Popularity
from calrec_lite.evaluate.kept import kept
from calrec_lite.evaluate.metrics import ndcg_at, ranks_in_chunks
from calrec_lite.evaluate.protocol import Cases, build_cases
from calrec_lite.model.base import device

PARTS = 4  # of a step
FORMAT = 2  # raise it when the same settings come to give another model


class Network(nn.Module):
    """Item embeddings, causal blocks with the norm first, and a dot product with the same embeddings."""

    def __init__(self, n_items: int, options: recipe.Sasrec) -> None:
        super().__init__()
        self.n_items, self.max_len = n_items, options.max_len
        self.items = nn.Embedding(n_items + 1, options.hidden, padding_idx=n_items)
        self.positions = nn.Embedding(options.max_len, options.hidden)
        self.dropout = nn.Dropout(options.dropout)
        layer = nn.TransformerEncoderLayer(
            options.hidden, options.heads, options.hidden, options.dropout, "relu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            layer, options.blocks, nn.LayerNorm(options.hidden), enable_nested_tensor=False
        )
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """States after the last norm, (B, T, D), for right-padded rows (B, T) of `lengths` items, (B,)."""
        steps = torch.arange(rows.shape[1], device=rows.device)
        # As if padded on the left, like the original: the latest item always has the last position.
        places = (self.max_len - lengths[:, None] + steps).clamp(max=self.max_len - 1)  # (B, T)
        x = self.items(rows) * self.items.embedding_dim**0.5 + self.positions(places)  # (B, T, D)
        causal = nn.Transformer.generate_square_subsequent_mask(len(steps), device=rows.device)
        # Causal and padded on the right: no real position can see the padding.
        return self.blocks(self.dropout(x), mask=causal, is_causal=True)

    @property
    def catalogue(self) -> Tensor:
        """Embeddings of the items, (N, D)."""
        return self.items.weight[: self.n_items]

    @torch.no_grad()
    def scores(self, histories: list[NDArray[np.int32]]) -> Tensor:
        """Logits of all items after each history, none of them empty, (U, N)."""
        self.eval()
        rows, lengths = _padded([h[-self.max_len :] for h in histories], self.n_items, self.positions.weight.device)
        states = self(rows, lengths)  # (U, T, D)
        return states[torch.arange(len(rows), device=rows.device), lengths - 1] @ self.catalogue.T


class Sasrec(Popularity):
    """SASRec trained on a domain's training part; `trained` says for how long and how well.

    Args:
        options: its size and training.
        exclude_seen: as the lists will be measured; it decides which epoch is best on validation.

    Raises:
        InputError: no user has two items to train on, or none has a validation case.
    """

    def __init__(self, domain: Domain, seed: int, options: recipe.Sasrec, exclude_seen: bool) -> None:
        super().__init__(domain, seed)
        settings = {
            "format": FORMAT,
            "fingerprint": domain.fingerprint,
            "seed": seed,
            "exclude_seen": exclude_seen,
            **options.model_dump(mode="json"),
        }
        # Trained once for each domain, settings and seed.
        folder = kept("sasrec", settings, lambda to: _train(to, domain, seed, options, exclude_seen))
        self.trained = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        self._network = Network(len(domain.catalogue), options).to(device())
        self._network.load_state_dict(load_file(folder / "model.safetensors"))

    def _scores(self, places: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        scores = super()._scores(places)
        told = [row for row, history in enumerate(places) if len(history)]  # without a history: popularity
        if told:
            logits = self._network.scores([self._order[places[row]].astype(np.int32) for row in told])
            # Probabilities: scores here may not be below 0.
            scores[told] = logits.softmax(dim=1).cpu().numpy()[:, self._order]
        return scores


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean loss in nats a target, NDCG@10 on validation, seconds since the start."""

    loss: float
    ndcg: float
    seconds: float


def _train(folder: Path, domain: Domain, seed: int, options: recipe.Sasrec, exclude_seen: bool) -> None:
    state, epochs = fit(domain, seed, options, exclude_seen)
    save_file(state, folder / "model.safetensors")
    best = max(epochs, key=lambda epoch: epoch.ndcg)
    where = torch.cuda.get_device_name() if device().type == "cuda" else "CPU"
    report = {"best_epoch": epochs.index(best) + 1, "valid_ndcg": best.ndcg, "epochs": [vars(e) for e in epochs]}
    report |= {"device": where}
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def fit(domain: Domain, seed: int, options: recipe.Sasrec, exclude_seen: bool) -> tuple[dict[str, Tensor], list[Epoch]]:
    """Train; the weights of the epoch that was best on validation, and all epochs.

    Raises:
        InputError: see `Sasrec`.
    """
    longest = options.max_len + 1
    rows = [items[-longest:] for u in range(len(domain.sequences)) if len(items := domain.train_items(u)) >= 2]
    if not rows:
        raise InputError(f"domain `{domain.name}`: no user has two items that SASRec could be trained on")
    cases = build_cases(domain, "validation", options.valid_users, seed)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = Network(len(domain.catalogue), options).to(device())
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate, betas=(0.9, 0.98))
    epochs: list[Epoch] = []
    best: dict[str, Tensor] = {}
    start = perf_counter()
    bar = tqdm(range(options.epochs), desc="SASRec", unit="epoch")
    for _ in bar:
        loss = _epoch(network, optimiser, rows, options, random)
        epochs.append(Epoch(loss, validation_ndcg(network, cases, exclude_seen), perf_counter() - start))
        bar.set_postfix(loss=f"{loss:.3f}", valid_ndcg=f"{epochs[-1].ndcg:.4f}")
        latest, highest = len(epochs) - 1, int(np.argmax([epoch.ndcg for epoch in epochs]))  # among equals the first
        if highest == latest:
            best = {name: weight.detach().cpu().clone() for name, weight in network.state_dict().items()}
        if latest - highest >= options.patience:
            break
    bar.close()
    return best, epochs


def _epoch(
    network: Network,
    optimiser: torch.optim.Optimizer,
    rows: list[NDArray[np.int32]],
    options: recipe.Sasrec,
    random: np.random.Generator,
) -> float:
    network.train()
    total, targets = 0.0, 0
    for batch in _batches(rows, options.batch_size, random):
        supervised = sum(len(row) - 1 for row in batch)
        optimiser.zero_grad()
        for part in _by_length(batch):
            padded, lengths = _padded(part, network.n_items, network.positions.weight.device)
            real = padded[:, 1:] != network.n_items  # (B, T)
            states = network(padded[:, :-1], lengths - 1)[real]  # (M, D)
            loss = len(states) * _softmax_loss(network, states, padded[:, 1:][real], options.negatives, random)
            (loss / supervised).backward()
            total += float(loss.detach())
        optimiser.step()
        targets += supervised
    return total / targets


def _softmax_loss(
    network: Network, states: Tensor, targets: Tensor, negatives: int | None, random: np.random.Generator
) -> Tensor:
    """Cross-entropy of the targets (M,) among all items, or among themselves and a uniform sample shared by all."""
    if negatives is None or negatives >= network.n_items:
        return F.cross_entropy(states @ network.catalogue.T, targets)
    drawn = torch.from_numpy(random.choice(network.n_items, negatives, replace=False)).to(states.device)
    own = (states * network.items(targets)).sum(dim=1, keepdim=True)  # (M, 1)
    others = states @ network.items(drawn).T  # (M, S)
    others = others.masked_fill(targets[:, None] == drawn, float("-inf"))
    return F.cross_entropy(torch.cat([own, others], dim=1), torch.zeros_like(targets))


def validation_ndcg(network: Network, cases: Cases, exclude_seen: bool) -> float:
    """Mean NDCG@10 of the cases by the network's `scores`."""

    def scores(users: slice) -> NDArray[np.float32]:
        return network.scores(cases.histories[users]).cpu().numpy()

    seen = cases.histories if exclude_seen else None
    return float(ndcg_at(ranks_in_chunks(scores, cases.targets, cases.items, seen), 10).mean())


def _batches(
    rows: list[NDArray[np.int32]], size: int, random: np.random.Generator
) -> Iterator[list[NDArray[np.int32]]]:
    """All rows once, in an order drawn anew. Not by length: steps of one length learn less (docs/evaluation.md)."""
    order = random.permutation(len(rows))
    for start in range(0, len(order), size):
        yield [rows[row] for row in order[start : start + size]]


def _by_length(batch: list[NDArray[np.int32]]) -> Iterator[list[NDArray[np.int32]]]:
    """The rows of a step in parts of similar length, whose gradients add up."""
    ordered = sorted(batch, key=len)
    size = -(-len(ordered) // PARTS)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _padded(rows: list[NDArray[np.int32]], padding: int, where: torch.device) -> tuple[Tensor, Tensor]:
    """Rows padded on the right, (B, T), and their lengths, (B,)."""
    lengths = np.array([len(row) for row in rows])
    padded = np.full((len(rows), lengths.max()), padding, dtype=np.int64)
    padded[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(rows)
    return torch.from_numpy(padded).to(where), torch.from_numpy(lengths).to(where)
