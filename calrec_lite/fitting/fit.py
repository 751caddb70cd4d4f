"""From item vectors to fused lists: whitening, user tower, weights (docs/method.md, 8)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calrec_lite.data.domain import Domain
from calrec_lite.data.transitions import Transitions
from calrec_lite.errors import InputError
from calrec_lite.fitting.lists import FusionRanker, in_parts
from calrec_lite.fitting.tower import fit_tower
from calrec_lite.fitting.weights import Fitted, fit_weights
from calrec_lite.measure.cases import Cases, build_cases
from calrec_lite.measure.metrics import ndcg_at, ranks_from_lists
from calrec_lite.recipe import Fused
from calrec_lite.recommend.fusion import LIKELIHOOD, Fusion, best_items
from calrec_lite.recommend.readings import PARTS, Readings, added_up, telling
from calrec_lite.recommend.repeats import Repeats
from calrec_lite.recommend.user_tower import History
from calrec_lite.recommend.whitening import Whitening, whitened
from calrec_lite.recommend.words import Words

LEAST_USERS = 50  # for so many weights: below, they would say more of the draw than of the readings
LEAST_REACHED = 10  # of those whose target is among the candidates
EACH = 100  # candidates by each part alone, when weights are fitted
LikelihoodOf = Callable[[Sequence[History], Sequence[np.ndarray]], list[np.ndarray]]


def require_users(domain: Domain) -> None:
    """Raise InputError where too few users have a validation case for weights to be fitted."""
    users = len(domain.sequences.held_out("validation")[0])
    if users < LEAST_USERS:
        raise InputError(
            f"domain `{domain.name}`: {users} users have a validation case, and the weights of fused lists need "
            f"{LEAST_USERS}: set recommend.strategy to another, such as beam"
        )


def fit_fusion(
    domain: Domain,
    vectors: Tensor,
    settings: Fused,
    seed: int,
    exclude_seen: bool,
    parts: Sequence[str] = PARTS,
    likelihood: LikelihoodOf | None = None,
    candidates: int = EACH,
) -> Fusion:
    """Everything that `strategy: fast` and, with `likelihood`, `fused` need, fitted on the domain.

    Args:
        vectors: (N, L, D) of every item's text, by each of some layers; or (N, D).
        seed: of the tower and of the draw of users.
        parts: that get a weight, where they tell items apart.
        likelihood: histories, and each one's items -> their log-probabilities.
        candidates: items whose likelihood is asked for, of a user.

    Raises:
        InputError: too few users have a validation case.
    """
    require_users(domain)
    vectors = vectors.float().cpu()
    whitening = Whitening.of_layers(vectors)
    text = whitened(vectors, whitening)
    cases = build_cases(domain, "validation", settings.tower.valid_users, seed)
    tower, trained = fit_tower(domain, text, settings.tower, cases, seed, exclude_seen)
    counted = Transitions.of(domain), Words(domain.catalogue.titles), domain.train_counts(), Repeats.of(domain)
    readings = Readings(text, whitening, tower, *counted)
    return weigh(readings, domain, settings, seed, exclude_seen, parts, likelihood, candidates, {"tower": trained})


def weigh(
    readings: Readings,
    domain: Domain,
    settings: Fused,
    seed: int,
    exclude_seen: bool,
    parts: Sequence[str],
    likelihood: LikelihoodOf | None,
    candidates: int,
    facts: Mapping[str, Any],
) -> Fusion:
    """The weights anew, for readings that are there; arguments as `fit_fusion`'s."""
    cases = build_cases(domain, "validation", settings.users, seed)
    fast = _fit_fast(readings, _reachable(cases, exclude_seen), telling(parts, exclude_seen), exclude_seen)
    fusion = Fusion(readings, fast.weights)
    facts = {**facts, "fast_fit": _facts(fast, fusion, cases, exclude_seen)}
    if likelihood is None:
        return Fusion(readings, fast.weights, None, facts)
    reached = _reached(fusion, _reachable(cases, exclude_seen), candidates, exclude_seen)
    if len(reached.users) < LEAST_REACHED:  # long training may lie behind: lists by the rest are better than none
        print(f"the likelihood has no weight: of {len(reached.users)} users alone the next item is a candidate for it")
        nothing = {"users": len(reached.users), "intervals": {**fast.intervals, LIKELIHOOD: (0.0, 0.0)}}
        return Fusion(readings, fast.weights, {**fast.weights, LIKELIHOOD: 0.0}, {**facts, "fused_fit": nothing})
    fitted = _fit_likelihood(
        fusion, reached.part(settings.likelihood_users, seed), likelihood, candidates, exclude_seen
    )
    weight = max(0.0, fitted.weights[LIKELIHOOD])  # a likelihood below zero would be noise
    fit = {"users": fitted.users, "intervals": {**fast.intervals, **fitted.intervals}}
    return Fusion(readings, fast.weights, {**fast.weights, LIKELIHOOD: weight}, {**facts, "fused_fit": fit})


def _facts(fitted: Fitted, fusion: Fusion, cases: Cases, exclude_seen: bool) -> dict[str, Any]:
    """What a person may want to know of a fit: users, intervals, NDCG@10 of the lists on validation."""
    lists = FusionRanker(fusion).rank(cases.histories, 10, exclude_seen)
    ndcg = float(ndcg_at(ranks_from_lists(lists, cases.targets), 10).mean())
    return {"users": fitted.users, "intervals": fitted.intervals, "valid_ndcg": ndcg}


def _reachable(cases: Cases, exclude_seen: bool) -> Cases:
    """The cases whose target may be recommended at all."""
    return cases.of(np.flatnonzero(~cases.repeats)) if exclude_seen else cases


def _fit_fast(readings: Readings, cases: Cases, names: Sequence[str], exclude_seen: bool) -> Fitted:
    """Among the EACH best items by each part."""
    values: list[dict[str, Tensor]] = []
    places: list[int] = []
    for part, allowed in in_parts(cases.histories, cases.items, exclude_seen, "candidates of each reading"):
        parts = readings.parts(cases.histories[part])
        by_part = [best_items(parts[name], allowed, EACH) for name in names]
        for u, target in enumerate(cases.targets[part].tolist()):
            pool = torch.cat([best[u] for best in by_part]).unique()
            if (place := _place(pool, target)) is not None:
                values.append({name: parts[name][u, pool] for name in names})
                places.append(place)
    return _fit(values, places)


def _reached(fusion: Fusion, cases: Cases, candidates: int, exclude_seen: bool) -> Cases:
    """The cases whose target is among the best items by `fast`."""
    found = [
        part.start + u
        for part, allowed in in_parts(cases.histories, cases.items, exclude_seen, "candidates")
        for u, items in enumerate(fusion.best(cases.histories[part], allowed, candidates))
        if cases.targets[part.start + u] in items
    ]
    return cases.of(np.array(found, np.int64))


def _fit_likelihood(
    fusion: Fusion, cases: Cases, likelihood: LikelihoodOf, candidates: int, exclude_seen: bool
) -> Fitted:
    """The weight of the likelihood beside those of `fast`, among the best items by `fast`.

    One number, as the likelihood of few users is known: weights fitted anew for all parts were worse than none.
    """
    values: list[dict[str, Tensor]] = []
    places: list[int] = []
    pools: list[np.ndarray] = []
    for part, allowed in in_parts(cases.histories, cases.items, exclude_seen, "candidates"):
        scores = added_up(fusion.readings.parts(cases.histories[part]), fusion.fast)
        for u, items in enumerate(best_items(scores, allowed, candidates)):
            values.append({"fast": scores[u, items]})
            places.append(int((items == cases.targets[part.start + u]).nonzero()))
            pools.append(items.numpy())
    for user_values, logp in zip(values, likelihood(cases.histories, pools), strict=True):
        user_values[LIKELIHOOD] = torch.from_numpy(np.asarray(logp, dtype=np.float32))
    fitted = _fit(values, places)
    scale = max(fitted.weights["fast"], 1e-3)  # lists are the same for all weights times a number
    interval = fitted.intervals[LIKELIHOOD]
    return Fitted(
        {LIKELIHOOD: fitted.weights[LIKELIHOOD] / scale},
        {LIKELIHOOD: (interval[0] / scale, interval[1] / scale)},
        fitted.users,
    )


def _place(pool: Tensor, target: int) -> int | None:
    """Where among its candidates the target stands; a user whose target is none of them says nothing of weights.

    To add it would be wrong: among many candidates of high scores, the only low ones would be targets.
    """
    found = (pool == target).nonzero()
    return int(found) if len(found) else None


def _fit(values: Sequence[Mapping[str, Tensor]], places: Sequence[int]) -> Fitted:
    """`fit_weights` of users with candidates of different number."""
    if len(values) < LEAST_REACHED:
        raise InputError(
            f"weights of fused lists: of {len(values)} validation users alone the next item is among the candidates; "
            "raise fused.users, or set recommend.strategy to another, such as beam"
        )
    names = list(values[0])
    sizes = torch.tensor([len(v[names[0]]) for v in values])
    padded = {
        name: torch.nn.utils.rnn.pad_sequence([v[name] for v in values], batch_first=True) for name in names
    }  # (U, C)
    open_ = torch.arange(int(sizes.max())) < sizes[:, None]
    return fit_weights(padded, torch.tensor(places), open_)
