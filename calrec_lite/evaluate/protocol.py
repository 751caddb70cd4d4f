"""Cases drawn from a domain, systems measured on them, and slices of the result (docs/method.md, 7)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Literal
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from calrec_lite.data.domain import Domain, Split
from calrec_lite.measure.cases import Cases
from calrec_lite.measure.metrics import MRR_CUT, Copies, Interval, Ranks, ranks_from_lists, summarise
from calrec_lite.recipe import Recipe

RARE = 10  # a target that was trained on fewer times than this is rare
SAME = "users: of the models"  # the slice on which baselines and models can be compared
LENGTHS = (1, 5, 10, 20)  # lower ends of the ranges of history length that are reported separately


class Ranker(Interface):
    """What is measured: anything that makes lists from histories."""

    def rank(self, histories: list[NDArray[np.int32]], k: int, exclude_seen: bool) -> NDArray[np.int32]:
        """Distinct catalogue indices for each history, best first, -1 where there are no more, (U, k).

        Args:
            histories: catalogue indices, oldest first, (U,) arrays.
            k: length of a list.
            exclude_seen: leave out what is in the history.
        """
        ...


@dataclass(frozen=True)
class Protocol:
    """How systems are measured. Two tables can be compared only if theirs agree.

    Attributes:
        split: `test` or `validation`; which items these are is the domain's `holdout`.
        users: how many users are measured at most, drawn by the seed; None: all that have a case.
        exclude_seen: items of the history are never recommended, by any system.
        k: length of the lists.
        mrr_cut: MRR counts targets up to this rank.
        seed: of the draw of users and of the bootstrap.
        bootstrap: resamples of the users behind each interval.
        duplicates: `canonical`: items of the same text are one item. `expected`: they stand in a list one after the
            other in random order, and a metric is its mean over such orders.
        model_users: on how many of the users models are measured, whose lists take long; None: on all of them.
    """

    split: Split = "test"
    users: int | None = None
    exclude_seen: bool = True
    k: int = 10
    mrr_cut: int = MRR_CUT
    seed: int = 0
    bootstrap: int = 2000
    duplicates: Literal["canonical", "expected"] = "canonical"
    model_users: int | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> "Protocol":
        """As a recipe says."""
        options = recipe.evaluate
        return cls(
            split=options.split,
            users=options.users,
            exclude_seen=recipe.recommend.exclude_seen,
            k=max(10, recipe.recommend.k, options.mrr_cut),
            mrr_cut=options.mrr_cut,
            seed=recipe.seed,
            bootstrap=options.bootstrap,
            duplicates=options.duplicates,
            model_users=options.model_users,
        )

    def __post_init__(self) -> None:
        if self.k < 10 or self.mrr_cut > self.k:
            raise ValueError(f"lists of k = {self.k} are too short for recall@10 and MRR@{self.mrr_cut}")

    def record(self, cases: Cases) -> dict[str, Any]:
        """The protocol as plain data for a result, with the numbers that it led to on these cases.

        `users` becomes the number measured, `items` the size of the catalogue, all of which is ranked; `unreachable`
        counts users whose target is in their history while exclude_seen is on: a miss for every system alike.
        `tied_share` is the share of targets whose place among events of the same time was drawn by the domain's seed.
        """
        unreachable = int(cases.repeats.sum()) if self.exclude_seen else 0
        settings = asdict(self)
        if self.model_users is None or self.model_users >= len(cases.users):
            del settings["model_users"]  # it changes nothing
        return {
            **settings,
            "users": len(cases.users),
            "items": cases.items,
            "unreachable": unreachable,
            "unreachable_share": unreachable / len(cases.users),
            "holdout": cases.holdout,
            "tied_share": None if cases.tied is None else float(cases.tied.mean()),
        }

    def copies(self, cases: Cases) -> Copies | None:
        """With how many items each target shares its rank, (U,); None where `duplicates` makes them one item."""
        return cases.copies[cases.targets] if self.duplicates == "expected" else None

    def summary(self, cases: Cases, ranks: Ranks, chosen: NDArray[np.bool_] | None = None) -> dict[str, Interval]:
        """The metrics of all cases, or of the chosen ones (a mask, (U,))."""
        copies = self.copies(cases)
        if chosen is not None:
            ranks, copies = ranks[chosen], None if copies is None else copies[chosen]
        return summarise(ranks, self.bootstrap, self.seed, self.mrr_cut, copies)


@dataclass(frozen=True)
class SystemResult:
    """One system, measured."""

    cases: Cases  # on which it was measured
    metrics: dict[str, Interval]
    lists: NDArray[np.int32]  # (U, k)
    ranks: Ranks  # (U,)
    seconds: float  # to make all lists

    @property
    def users_per_second(self) -> float:
        """Lists made a second."""
        return len(self.ranks) / self.seconds


def evaluate_system(ranker: Ranker, cases: Cases, protocol: Protocol) -> SystemResult:
    """Let `ranker` make every user's list, and measure the lists.

    Raises:
        ValueError: the ranker broke its promise: wrong shape, an unknown or repeated item, or a seen one while
            exclude_seen is on. Metrics of such lists would not be comparable.
    """
    start = perf_counter()
    lists = np.asarray(ranker.rank(cases.histories, protocol.k, protocol.exclude_seen), dtype=np.int32)
    return judged(lists, perf_counter() - start, cases, protocol)


def judged(lists: NDArray[np.int32], seconds: float, cases: Cases, protocol: Protocol) -> SystemResult:
    """Measure lists that were made in so many seconds, (U, k). Raises ValueError as `evaluate_system`."""
    _check_lists(lists, cases, protocol)
    ranks = ranks_from_lists(lists, cases.targets, cases.copies if protocol.duplicates == "expected" else None)
    return SystemResult(cases, protocol.summary(cases, ranks), lists, ranks, seconds)


def slices(domain: Domain, cases: Cases, ranks: Ranks, protocol: Protocol) -> dict[str, dict[str, int | Interval]]:
    """The metrics of each kind of users separately; a slice without users is left out.

    `target: new | rare | popular` by how often the target was trained on (0, under 10, 10 and more),
    `history: ...` by the number of items in the history, `target: repeat | explore` by whether the target is in it,
    `time: tied | alone` by whether another event of the user has the target's time, so that their order was drawn,
    `users: of the models`, where `model_users` is set: those on whom models are measured, the same for any system.

    Args:
        ranks: of one system on `cases`, (U,).
    """
    train_counts, repeat = domain.train_counts()[cases.targets], cases.repeats
    length = np.array([len(history) for history in cases.histories])
    masks = {
        "target: new": train_counts == 0,
        "target: rare": (train_counts > 0) & (train_counts < RARE),
        "target: popular": train_counts >= RARE,
        "target: repeat": repeat,
        "target: explore": ~repeat,
    }
    for low, high in zip(LENGTHS, [*LENGTHS[1:], None], strict=True):
        name = f"history: {low}+" if high is None else f"history: {low}-{high - 1}"
        masks[name] = (length >= low) & (True if high is None else length < high)
    if cases.tied is not None:
        masks |= {"time: tied": cases.tied, "time: alone": ~cases.tied}
    if protocol.model_users:
        masks[SAME] = np.isin(cases.users, cases.part(protocol.model_users, protocol.seed).users)
    return {
        name: {"users": int(mask.sum()), **protocol.summary(cases, ranks, mask)}
        for name, mask in masks.items()
        if mask.any()
    }


def _check_lists(lists: NDArray[np.int32], cases: Cases, protocol: Protocol) -> None:
    if lists.shape != (len(cases.users), protocol.k):
        raise ValueError(f"the ranker gave {lists.shape}, not lists of shape {(len(cases.users), protocol.k)}")
    if ((lists < -1) | (lists >= cases.items)).any():
        raise ValueError("the ranker gave an item that is not in the catalogue")
    ordered = np.sort(lists, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ValueError("the ranker gave an item twice in one list")
    if protocol.exclude_seen and _any_seen(lists, cases.histories):
        raise ValueError("the ranker gave an item of the history although exclude_seen is on")


def _any_seen(lists: NDArray[np.int32], histories: Sequence[NDArray[np.int32]]) -> bool:
    return any(bool(np.isin(row, history).any()) for row, history in zip(lists, histories, strict=True))
