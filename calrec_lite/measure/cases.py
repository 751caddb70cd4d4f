"""Held-out users and the items they really took next: every system is measured on these (docs/method.md, 7)."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calrec_lite.data.domain import Domain, Split
from calrec_lite.errors import InputError
from calrec_lite.measure.metrics import Copies


@dataclass(frozen=True)
class Cases:
    """Held-out users: histories[i] -> targets[i] is what user users[i] (an index of the domain's sequences) did."""

    users: NDArray[np.int64]  # (U,)
    histories: list[NDArray[np.int32]]  # (U,) arrays, oldest first
    targets: NDArray[np.int64]  # (U,)
    items: int  # size of the catalogue that is ranked
    copies: Copies  # how many original items each item of the catalogue stands for, (N,)
    tied: NDArray[np.bool_] | None  # whether another event of the user has the target's time, (U,); None: no times
    holdout: str  # how they were held out, in words

    @property
    def repeats(self) -> NDArray[np.bool_]:
        """Whether the target is already in the history, (U,)."""
        pairs = zip(self.histories, self.targets, strict=True)
        return np.array([bool((history == target).any()) for history, target in pairs], dtype=np.bool_)

    def part(self, n: int | None, seed: int) -> "Cases":
        """`n` of the users, drawn by the seed, in the same order; all of them if n is None or there are no more."""
        if n is None or n >= len(self.users):
            return self
        return self.of(np.sort(np.random.default_rng(seed).choice(len(self.users), size=n, replace=False)))

    def of(self, chosen: NDArray[np.int64]) -> "Cases":
        """Those at these places."""
        return replace(
            self,
            users=self.users[chosen],
            histories=[self.histories[i] for i in chosen],
            targets=self.targets[chosen],
            tied=None if self.tied is None else self.tied[chosen],
        )


def build_cases(domain: Domain, split: Split, n_users: int | None, seed: int) -> Cases:
    """The cases of `n_users` users, drawn by the seed, ascending; of all that have a case if there are no more.

    Raises:
        InputError: no user has a case.
    """
    sequences = domain.sequences
    users, positions = sequences.held_out(split)
    if not len(users):
        required = "the three events" if sequences.cuts is None else "the events before and after the cut"
        raise InputError(
            f"domain `{domain.name}`: no user has {required} that a {split} case needs by {domain.holdout}; "
            "nothing can be evaluated: add data, or lower its min_user_events and min_item_events"
        )
    starts = sequences.offsets[users]
    copies = np.bincount(list(domain.catalogue.aliases.values()), minlength=len(domain.catalogue))
    all_cases = Cases(
        users=users,
        histories=[sequences.items[start:end] for start, end in zip(starts.tolist(), positions.tolist(), strict=True)],
        targets=sequences.items[positions].astype(np.int64),
        items=len(domain.catalogue),
        copies=np.maximum(copies, 1),
        tied=sequences.tied(users, positions),
        holdout=domain.holdout,
    )
    return all_cases.part(n_users, seed)
