"""SASRec (Kang & McAuley, 2018) with a softmax over the catalogue: the id-based baseline, by Cornac.

Network and training rows are the library's (extra `[sasrec]`). The loss is the cross-entropy over all items, or over a
sample, and not the original's BCE with one negative, which is what makes many published SASRecs weak (Klenitskiy &
Vasilev, 2023). The training loop is ours, because the library's scores one user a call. It chooses the epoch on
validation, by the same metric, rule on seen items and draw of users as for all other systems.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines.cache import cached
from calrec_lite.evaluate.baselines.counting import PopularityBaseline
from calrec_lite.measure.cases import Cases, build_cases
from calrec_lite.measure.metrics import CELLS, ndcg_at, ranks_in_chunks
from calrec_lite.model.device import device
from calrec_lite.recipe import SASRecSettings

if TYPE_CHECKING:
    from cornac.models.sasrec.sasrec import SASRecModel

FORMAT = 3  # raise it when the same settings come to give another model


def require_cornac() -> str:
    """The library's version.

    Raises:
        InputError: Cornac cannot be imported.
    """
    try:
        import cornac
    except ImportError as error:
        raise InputError(
            f"evaluate.baselines: sasrec needs the extra ({error}): pip install 'calrec-lite[sasrec]'; or leave it out"
        ) from None
    return str(cornac.__version__)


def make_network(items: int, options: SASRecSettings) -> "SASRecModel":
    """The library's network over `items` items, index `items` being the padding; dropout is off until trained."""
    from cornac.models.sasrec.sasrec import SASRecModel

    network = SASRecModel(
        items,
        options.hidden,
        options.max_len,
        n_layers=options.blocks,
        n_heads=options.heads,
        use_biases=False,
        dropout=options.dropout,
        pad_idx=items,
        device=str(device()),
    )
    return network.eval()


@torch.no_grad()
def scores(network: "SASRecModel", histories: list[NDArray[np.int32]]) -> Tensor:
    """Logits of all items after each history, none of them empty, (U, N)."""
    rows = np.full((len(histories), network.maxlen), network.pad_idx)
    for row, history in zip(rows, histories, strict=True):
        row[max(0, len(row) - len(history)) :] = history[-len(row) :]
    step = max(1, CELLS // (network.attention_layers[0].num_heads * network.maxlen**2))  # its mask: (U * heads, T, T)
    parts = torch.from_numpy(rows).to(device()).split(step)
    return torch.cat([network(None, part, _all_items(network)) for part in parts])


def _all_items(network: "SASRecModel") -> Tensor:
    return torch.arange(network.item_num, device=device())


class SASRecBaseline(PopularityBaseline):
    """SASRec trained on a domain's training part; `trained` says for how long and how well.

    Args:
        options: its size and training.
        exclude_seen: as the lists will be measured; it decides which epoch is best on validation.

    Raises:
        InputError: Cornac is missing, there are not two items to learn to predict, or no user has a validation case.
    """

    def __init__(self, domain: Domain, seed: int, options: SASRecSettings, exclude_seen: bool) -> None:
        super().__init__(domain, seed)
        settings = {
            "format": FORMAT,
            "cornac": require_cornac(),
            "fingerprint": domain.fingerprint,
            "seed": seed,
            "exclude_seen": exclude_seen,
            **options.model_dump(mode="json"),
        }
        # Trained once for each domain, settings and seed.
        folder = cached("sasrec", settings, lambda to: _train_and_save(to, domain, seed, options, exclude_seen))
        self.trained = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        self._network = make_network(len(domain.catalogue), options)
        self._network.load_state_dict(load_file(folder / "model.safetensors"))

    def _scores(self, places: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        values = super()._scores(places)
        with_history = [row for row, history in enumerate(places) if len(history)]  # without a history: popularity
        if with_history:
            logits = scores(self._network, [self._order[places[row]].astype(np.int32) for row in with_history])
            # Probabilities: scores here may not be below 0.
            values[with_history] = logits.softmax(dim=1).cpu().numpy()[:, self._order]
        return values


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch: mean loss in nats a target, NDCG@10 on validation, seconds since the start."""

    loss: float
    ndcg: float
    seconds: float


def _train_and_save(folder: Path, domain: Domain, seed: int, options: SASRecSettings, exclude_seen: bool) -> None:
    state, epochs = fit(domain, seed, options, exclude_seen)
    save_file(state, folder / "model.safetensors")
    best = max(epochs, key=lambda epoch: epoch.ndcg)
    device_name = torch.cuda.get_device_name() if device().type == "cuda" else "CPU"
    report = {"best_epoch": epochs.index(best) + 1, "valid_ndcg": best.ndcg, "epochs": [vars(e) for e in epochs]}
    report |= {"device": device_name}
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def fit(
    domain: Domain, seed: int, options: SASRecSettings, exclude_seen: bool
) -> tuple[dict[str, Tensor], list[Epoch]]:
    """Train; the weights of the epoch that was best on validation, and all epochs.

    Raises:
        InputError: see `SASRecBaseline`.
    """
    events = _events(domain)
    cases = build_cases(domain, "validation", options.valid_users, seed)
    torch.manual_seed(seed)
    random = np.random.RandomState(seed)  # the kind of generator that the library draws with
    network = make_network(len(domain.catalogue), options)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate, betas=(0.9, 0.98))
    epochs: list[Epoch] = []
    best: dict[str, Tensor] = {}
    start = perf_counter()
    bar = tqdm(range(options.epochs), desc="SASRec", unit="epoch")
    for _ in bar:
        loss = _train_epoch(network, optimiser, events, options, random)
        epochs.append(Epoch(loss, validation_ndcg(network, cases, exclude_seen), perf_counter() - start))
        bar.set_postfix(loss=f"{loss:.3f}", valid_ndcg=f"{epochs[-1].ndcg:.4f}")
        latest, highest = len(epochs) - 1, int(np.argmax([epoch.ndcg for epoch in epochs]))  # among equals the first
        if highest == latest:
            best = {name: weight.detach().cpu().clone() for name, weight in network.state_dict().items()}
        if latest - highest >= options.patience:
            break
    bar.close()
    return best, epochs


def _events(domain: Domain) -> SimpleNamespace:
    """What Cornac's iterator reads of a data set: all events as (user, item, 1), and the indices of each user's."""
    rows = [items for u in range(len(domain.sequences)) if len(items := domain.train_items(u)) >= 2]
    lengths = [len(row) for row in rows]
    if sum(lengths) - len(rows) < 2:  # a step needs two targets
        raise InputError(f"domain `{domain.name}`: fewer than two items that SASRec could be trained to predict")
    users = np.repeat(np.arange(len(rows)), lengths)
    places = np.split(np.arange(len(users)), np.cumsum(lengths)[:-1])
    return SimpleNamespace(
        uir_tuple=(users, np.concatenate(rows), np.ones(len(users))), sessions=dict(enumerate(places))
    )


def _train_epoch(
    network: "SASRecModel",
    optimiser: torch.optim.Optimizer,
    events: SimpleNamespace,
    options: SASRecSettings,
    random: np.random.RandomState,
) -> float:
    network.train()
    total, targets = torch.zeros((), device=device()), 0
    for rows, items in _steps(network, events, options, random):
        optimiser.zero_grad()
        loss = _softmax_loss(network, rows, items)
        loss.backward()
        optimiser.step()
        total, targets = total + loss.detach() * len(rows), targets + len(rows)
    network.eval()
    return float(total) / targets


def _steps(
    network: "SASRecModel", events: SimpleNamespace, options: SASRecSettings, random: np.random.RandomState
) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps of one epoch, as the library makes them: rows (B, T), one for each prefix of a user's items, padded on
    the left, users in an order drawn anew; and the rows' targets, (B,), with the drawn negatives after them. If a
    single row is left for the last step, it is left out."""
    from cornac.models.seq_utils import session_seq_iter

    popularity_power = 0.0  # the power of popularity by which negatives are drawn: others would need a correction
    draw = (network.pad_idx, options.batch_size, options.max_len, options.negatives or 0, popularity_power, random)
    for _, rows, items in session_seq_iter(events, *draw):
        yield torch.from_numpy(rows).to(device()), torch.from_numpy(items).to(device())


def _softmax_loss(network: "SASRecModel", rows: Tensor, items: Tensor) -> Tensor:
    """Cross-entropy of the rows' targets, the first B of `items`, among all items; or among the negatives after them.

    The library's loss also takes the other rows' targets as negatives, which is a draw by popularity, and a row's
    target itself where it is drawn. Here only the evenly drawn negatives count, and never the row's target.
    """
    targets, negatives = items[: len(rows)], items[len(rows) :]
    if not len(negatives):
        return F.cross_entropy(network(None, rows, _all_items(network)), targets)
    logits = network(None, rows, items)  # (B, B + S)
    negative_logits = logits[:, len(rows) :].masked_fill(targets[:, None] == negatives, float("-inf"))
    target_logits = logits.diagonal()[:, None]  # (B, 1)
    return F.cross_entropy(torch.cat([target_logits, negative_logits], dim=1), torch.zeros_like(targets))


def validation_ndcg(network: "SASRecModel", cases: Cases, exclude_seen: bool) -> float:
    """Mean NDCG@10 of the cases by the network's `scores`."""

    def score(users: slice) -> NDArray[np.float32]:
        return scores(network, cases.histories[users]).cpu().numpy()

    seen = cases.histories if exclude_seen else None
    return float(ndcg_at(ranks_in_chunks(score, cases.targets, cases.items, seen), 10).mean())
