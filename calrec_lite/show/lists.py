"""Recommended items, and a user's history, as a person judges them: title, further fields, id, what each part adds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from calrec_lite.recommend.recommender import Recommendation, Recommender
from calrec_lite.show.source import Source
from calrec_lite.table import fitted, on_terminal, tabbed

LATEST = 10  # items of a history that are shown
SAID = 3  # and that are named in a line
BESIDE = 8  # parts within 80 columns
Fields = Mapping[str, Mapping[str, str]]  # item id -> label -> value


def one_list(
    source: Source, titles: Sequence[str], k: int | None, limits: Mapping[str, Any], strict: bool
) -> tuple[str, list[str]]:
    """Load the model and make one list: its text for standard output, and what is to be said beside it.

    Args:
        titles: the history, oldest first, where the source has none.
        k, limits, strict: as `Recommender.recommend` takes them; limits are `allow` and `deny`.

    Raises:
        InputError: as there.
    """
    recommender = source.open()
    history = list(titles) if source.history is None else [_named(recommender, *item) for item in source.history]
    (items,) = recommender.recommend([history], k, **limits, strict=strict)
    unknown = recommender.unknown(history)
    notes = [f"{recommender.not_found(unknown)}; --strict refuses such a history"] if unknown else []
    found = [(name, recommender.find(name)) for name in history]
    past = [(name, "") if n is None else (recommender.catalogue.titles[n], recommender.ids[n]) for name, n in found]
    fields = source.fields_of({item for _, item in past} | {item.item for item in items})
    if on_terminal():
        return f"{shown_history(past, fields)}\n\n{shown_list(items, fields, weights_of(recommender))}", notes
    if source.history is not None:
        latest = " | ".join(title for title, _ in past[-SAID:])
        notes.append(f"a history of {len(past):,} items, the latest: {latest}")
    return plain_list(items, fields), notes


def _named(recommender: Recommender, title: str, item: str) -> str:
    """An item of the data by its id: a title may be that of several."""
    index = recommender.lookup.find_id(item)
    return title if index is None else recommender.catalogue.texts[index]


def plain_list(items: Sequence[Recommendation], fields: Fields) -> str:
    """An item a line: rank, title, id, further fields, score, why; cells set apart by tabs."""
    return tabbed(
        [
            [str(n), i.title, i.item, _further(i.title, fields.get(i.item, {})), _number(i.score, 4), i.why]
            for n, i in enumerate(items, 1)
        ]
    )


def shown_list(
    items: Sequence[Recommendation], fields: Fields, weights: Mapping[str, float], width: int | None = None
) -> str:
    """The same for a terminal; below it what each part adds to a score, under its weight.

    Args:
        weights: of the parts; those at 0 are left out.
        width: of the terminal.
    """
    parts = [name for name in (items[0].parts if items else {}) if weights.get(name, 1.0)]
    label = _label(items, fields)
    head = ["#", "title", *([label.lower()] if label else []), "id", "score", *([] if parts else ["why"])]
    rows = [
        [
            str(n),
            i.title,
            *([_others(i.title, fields.get(i.item, {})).get(label, "")] if label else []),
            i.item,
            _number(i.score, 2),
            *([] if parts else [i.why]),
        ]
        for n, i in enumerate(items, 1)
    ]
    texts = [n for n, name in enumerate(head) if name not in ("#", "score")]
    table = fitted(head, rows, width, texts)
    if not parts:
        return table
    tables = range(-(-len(parts) // BESIDE))
    adds = "\n\n".join(_shares(items, parts[n :: len(tables)], weights, width) for n in tables)
    return f"{table}\n\nwhat each part adds to the score (its weight x what it says):\n{adds}"


def _shares(items: Sequence[Recommendation], parts: Sequence[str], weights: Mapping[str, float], width: Any) -> str:
    """What some parts add to each item's score."""
    sums = [[str(n), *(_number(i.parts.get(name, 0.0), 2) for name in parts)] for n, i in enumerate(items, 1)]
    names = [f"{name}\nx {weights[name]:.2g}" if name in weights else name for name in parts]
    return fitted(["#", *names], sums, width, gap=1)


def shown_history(history: Sequence[tuple[str, str]], fields: Fields, width: int | None = None) -> str:
    """The latest items of a history, (title, id) each, the oldest of them first."""
    latest = history[-LATEST:]
    rows = []
    for n, (title, item) in enumerate(latest, len(history) - len(latest) + 1):
        rows.append([str(n), title, _further(title, fields.get(item, {})), item])
    return fitted(["#", "history", "", "id"], rows, width, (1, 2, 3))


def weights_of(recommender: Recommender) -> dict[str, float]:
    """How much each part counts in the lists; empty where they are no weighted sum."""
    options, fusion = recommender.options, recommender.strategies.fusion
    if options.fits:
        assert fusion is not None
        return dict(fusion.weights(options.strategy))
    if options.strategy == "rerank":
        return {"log-probability": 1.0, "similarity": options.fusion, "log transitions": options.transitions}
    return {}


def _label(items: Sequence[Recommendation], fields: Fields) -> str | None:
    """The field beside the titles: the brand, or else the first one that is there."""
    labels = dict.fromkeys(label for i in items for label in _others(i.title, fields.get(i.item, {})))
    return next((label for label in labels if label.casefold() == "brand"), next(iter(labels), None))


def _others(title: str, fields: Mapping[str, str]) -> dict[str, str]:
    """The fields that are not the title."""
    return {label: value for label, value in fields.items() if value != title}


def _further(title: str, fields: Mapping[str, str]) -> str:
    return ", ".join(f"{label}: {value}" for label, value in _others(title, fields).items())


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""
