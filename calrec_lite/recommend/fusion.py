"""Lists by several readings at once, each with the weight that validation users gave it (docs/method.md, 8)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calrec_lite.data.transitions import Transitions
from calrec_lite.decode.ranked import Ranked
from calrec_lite.errors import InputError
from calrec_lite.files import write_json
from calrec_lite.recommend.readings import PARTS, Readings, added_up
from calrec_lite.recommend.user_tower import History

WEIGHTS_FILE = "weights.json"
LARGEST = 1e6  # weight of a reading
LIKELIHOOD = "likelihood"  # the part that only the LLM knows
UNREAD = {"popularity": 1.0}  # weights where no item of a history is known: the fitted ones are of users who have some
Likelihood = Callable[[Sequence[np.ndarray]], list[np.ndarray]]  # each user's items -> their log-probabilities


@dataclass(frozen=True)
class Fusion:
    """The readings of one catalogue and their weights.

    Attributes:
        readings: every part but the likelihood.
        fast: part -> weight, without the LLM.
        fused: part -> weight, `likelihood` among them; None: not fitted.
        facts: how they were fitted: users, intervals, what validation says.
    """

    readings: Readings
    fast: Mapping[str, float]
    fused: Mapping[str, float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def rank(
        self,
        histories: Sequence[History],
        allowed: np.ndarray,
        k: int,
        n: int = 0,
        likelihood: Likelihood | None = None,
    ) -> list[Ranked]:
        """The best `k` allowed items of each user.

        Args:
            allowed: (U, N).
            n: with `likelihood`: so many of each user's best by `fast` are put in order by `fused`.
        """
        parts = self.readings.parts(histories)
        best = best_items(self._scores(histories, parts), allowed, max(n, k) if likelihood else k)
        values = [{name: part[u, items].numpy() for name, part in parts.items()} for u, items in enumerate(best)]
        weights, unread = self.fast, UNREAD
        if likelihood:
            assert self.fused is not None
            weights, unread = self.fused, {**UNREAD, LIKELIHOOD: self.fused[LIKELIHOOD]}
            for user_values, logp in zip(values, likelihood([items.numpy() for items in best])):
                user_values[LIKELIHOOD] = logp
        return [
            _ranked(items.numpy(), user_values, weights if len(history) else unread, k)
            for history, items, user_values in zip(histories, best, values)
        ]

    def best(self, histories: Sequence[History], allowed: np.ndarray, k: int) -> list[np.ndarray]:
        """As `rank` without the likelihood, of each user the items alone: reasons take longer than lists."""
        scores = self._scores(histories, self.readings.parts(histories))
        return [items.numpy() for items in best_items(scores, allowed, k)]

    def _scores(self, histories: Sequence[History], parts: Mapping[str, Tensor]) -> Tensor:
        """(U, N) without the likelihood."""
        scores = added_up(parts, self.fast)
        unread = [u for u, history in enumerate(histories) if not len(history)]
        if unread:
            scores[unread] = added_up({name: parts[name][unread] for name in UNREAD}, UNREAD)
        return scores

    def with_items(self, added: np.ndarray, vectors: Tensor) -> "Fusion":
        """The same with text for items that had none: (M, L, D) vectors of the items `added` (M,)."""
        return replace(self, readings=self.readings.with_items(added, vectors))

    def save(self, folder: Path, ids: Sequence[str]) -> None:
        """Write everything but the transitions into `folder`."""
        self.readings.save(folder, ids)
        self.save_weights(folder)

    def save_weights(self, folder: Path) -> None:
        """Write the weights alone, where all else lies already."""
        weights = {"fast": dict(self.fast), "fused": None if self.fused is None else dict(self.fused)}
        write_json(folder / WEIGHTS_FILE, {**weights, **self.facts})

    @classmethod
    def open(
        cls, folder: Path, ids: Sequence[str], titles: Sequence[str], transitions: Transitions, counts: np.ndarray
    ) -> "tuple[Fusion, np.ndarray]":
        """Read what `save` wrote, for the items `ids`; and which of them (indices) have no text vector yet.

        Raises:
            InputError: it is not there, or damaged.
        """
        fast, fused, facts = read_weights(folder)
        readings, missing = Readings.open(folder, ids, titles, transitions, counts)
        return cls(readings, fast, fused, facts), missing

    def weights(self, strategy: str) -> Mapping[str, float]:
        """Those of `fused` or `fast`."""
        weights = self.fused if strategy == "fused" else self.fast
        assert weights is not None
        return weights

    @cached_property
    def described(self) -> str:
        """The weights in a few words."""
        weights = self.fused or self.fast
        return ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())


def require_fitted(folder: Path, strategy: str) -> None:
    """Raise InputError where `folder` lacks the weights that the strategy needs: before anything large is loaded."""
    _, fused, _ = read_weights(folder)
    if strategy == "fused" and fused is None:
        raise InputError(
            f"{folder / WEIGHTS_FILE}: weights for `strategy: fast` alone; choose that, or export again with "
            "`recommend.strategy: fused` in the recipe"
        )


def best_items(scores: Tensor, allowed: np.ndarray, n: int) -> list[Tensor]:
    """For each user the `n` allowed items of the highest scores (U, N), or all that are allowed, best first."""
    scores = scores.masked_fill(~torch.from_numpy(allowed), -torch.inf)
    values, items = scores.topk(min(n, scores.shape[1]), dim=1)
    return [row[finite] for row, finite in zip(items, values.isfinite())]


def read_weights(folder: Path) -> tuple[dict[str, float], dict[str, float] | None, dict[str, Any]]:
    """`fast`, `fused` and all else of WEIGHTS_FILE. Raises InputError where it is missing or damaged."""
    file = folder / WEIGHTS_FILE
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        fast, fused = facts.pop("fast"), facts.pop("fused")
        for weights in (fast, fused or {LIKELIHOOD: 1.0}):
            if not weights or not weights.keys() <= {*PARTS, LIKELIHOOD}:
                raise ValueError("a weight of no part")
            if not (np.abs([*map(float, weights.values())]) <= LARGEST).all():
                raise ValueError("a weight that is no number, or none that could be fitted")
        for name, weights in (("fast_fit", fast), ("fused_fit", fused or {})):
            if name in facts:
                _check_fit(facts[name], weights)
        if LIKELIHOOD in fast or (fused is not None and LIKELIHOOD not in fused):
            raise ValueError("the likelihood belongs to `fused`, and only there")
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no fitted weights there, which `strategy: fused` and `fast` need: train (or tune) a run "
            "with `recommend.strategy: fused` and export it, or choose another strategy"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not the weights of readings ({error}); fit or export again") from None
    return fast, fused, facts


def _check_fit(fit: Mapping[str, Any], weights: Mapping[str, float]) -> None:
    """Raise what `read_weights` catches where it is not what a fit says of its weights."""
    intervals = [fit["intervals"][name] for name in weights]
    if not isinstance(fit["users"], int) or not all(np.shape(i) == (2,) and np.isfinite(i).all() for i in intervals):
        raise ValueError("an interval or a number of users that is none")


def _ranked(items: np.ndarray, values: Mapping[str, np.ndarray], weights: Mapping[str, float], k: int) -> Ranked:
    shares = {name: weight * values[name] for name, weight in weights.items()}
    scores = np.sum(list(shares.values()), axis=0)
    order = np.argsort(-scores, kind="stable")[:k]
    parts = [{name: float(share[i]) for name, share in shares.items()} for i in order]
    why = [", ".join(f"{name} {share:.2f}" for name, share in item.items()) for item in parts]
    return Ranked(items[order], scores[order], why, parts)
