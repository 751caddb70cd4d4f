"""Example users: what they took, what was recommended and why, what they took next."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from calrec_lite.data.domain import Domain, Split
from calrec_lite.errors import InputError, RunError
from calrec_lite.evaluate.settings import changed_settings
from calrec_lite.evaluate.store import read_rankings
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.run import Run

SHOWN = 200  # characters of a title, a user's name, a reason


@dataclass(frozen=True)
class Listed:
    """An item of a list; `why` is empty where the model was not asked, or listed another item."""

    title: str
    why: str
    hit: bool


@dataclass(frozen=True)
class Example:
    """One held-out user. `rank` is None where the target is not in the list."""

    user: str
    history: list[str]  # titles, oldest first
    target: str
    rank: int | None
    items: list[Listed]


def examples(
    run: Run, domain: Domain, system: str, results: dict[str, Any], count: int, reasons: bool
) -> tuple[list[Example], str]:
    """`count` of the measured users, drawn by the seed, and a note on where their lists come from.

    The lists are those that were measured, in `results` (metrics.json). For the reasons the same histories are
    recommended once more: this needs the run's weights, and a recipe whose `recommend` has not changed since; without
    them the lists have no reasons.
    """
    split: Split = results["protocol"]["split"]
    rows = read_rankings(run.evaluation, ["system", "user", "target", "rank", "list"])
    rows = rows.filter(pc.equal(rows["system"], system)).sort_by("user").to_pylist()
    drawn = np.random.default_rng(run.recipe.seed).permutation(len(rows))[:count]
    rows = [rows[i] for i in np.sort(drawn)]
    user_index = {user: u for u, user in enumerate(domain.sequences.users)}
    item_index = {item: i for i, item in enumerate(domain.catalogue.ids)}
    titles = list(map(_short, domain.catalogue.titles))
    histories = [_history(domain, user_index[row["user"]], split) for row in rows]
    reasons_by_item: list[dict[str, str]] = [{} for _ in rows]
    note = "Lists without reasons, as asked."
    if reasons:
        try:
            if changes := changed_settings(run, results):
                raise InputError(f"they were measured with other settings ({'; '.join(changes)})")
            reasons_by_item = _reasons(run, system, histories)
            note = "The reasons are of a second pass over the same histories; its rounding may differ a little."
        except (InputError, RunError) as error:
            note = f"Lists without reasons: {error}."
    return [
        Example(
            user=_short(row["user"]),
            history=[titles[i] for i in history],
            target=titles[item_index[row["target"]]],
            rank=row["rank"],
            items=[
                Listed(titles[item_index[i]], _short(reason_of.get(i, "")), i == row["target"]) for i in row["list"]
            ],
        )
        for row, history, reason_of in zip(rows, histories, reasons_by_item)
    ], note


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _history(domain: Domain, user: int, split: Split) -> list[int]:
    case = domain.case(user, split)
    assert case is not None  # the user was measured
    return case[0].tolist()


def _reasons(run: Run, system: str, histories: list[list[int]]) -> list[dict[str, str]]:
    """For each history, item id -> why it was recommended. Raises InputError where the weights are not there."""
    weights = run.base if system == "base" else run.final()
    recommender = open_recommender(run, weights)
    texts = [[recommender.catalogue.texts[i] for i in history] for history in histories]
    lists = recommender.recommend(texts, max(10, run.recipe.recommend.k))
    return [{item.item: item.why for item in user_list} for user_list in lists]
