"""What a person sees before anything is written: the columns, and five histories as the model will read them."""

import numpy as np

from calrec_lite.data.domain import Domain
from calrec_lite.data.faults import shown
from calrec_lite.recipe import Text
from calrec_lite.starting.guessing import Guess
from calrec_lite.starting.looking import Column, Looked
from calrec_lite.text.template import Template

USERS = 5
LATEST = 3  # items of a history that are shown before the one that is to be said
CELL = 26  # characters of an example


def columns_table(events: Looked, items: Looked | None, guess: Guess) -> str:
    """A line a column: what it is taken for, and what it holds."""
    lines = []
    for looked in filter(None, (events, items)):
        bare = "" if looked.header else " (no header line: columns are called by their place)"
        lines.append(f"{looked.path.name}{bare}")
        roles = _roles(guess, looked is items, items is not None)
        for column in looked.columns.values():
            lines.append(f"  {roles.get(column.name, ''):<12}{shown(column.name)[:22]:<23}{_held(column)}")
    return "\n".join(lines)


def _roles(guess: Guess, of_items: bool, with_items: bool) -> dict[str, str]:
    texts = {column: label for label, column in (guess.fields or {}).items()}
    if of_items:
        return texts | {guess.record or "": "item"}
    ids = {guess.item: "item", guess.user: "user", guess.time or "": "time"}
    if with_items:
        return ids
    return texts | {name: f"{role}, {texts[name]}" if name in texts else role for name, role in ids.items()}


def _held(column: Column) -> str:
    if not column.filled:
        return "empty"
    examples = ", ".join(
        text if len(text) <= CELL else f"{text[: CELL - 3]}..." for text in map(shown, column.examples)
    )
    gaps = f", {1 - column.filled / column.rows:.0%} empty" if column.filled < column.rows else ""
    return f"{column.distinct:,} different{gaps}: {examples}"[:100]


def histories(domain: Domain, text: Text, seed: int) -> str:
    """Five users' latest items word by word, each with the item that is to be said after them."""
    template = Template(text, tuple(domain.info["labels"]))
    texts = domain.catalogue.fields
    lengths = np.diff(domain.sequences.offsets)
    able = np.flatnonzero(lengths >= min(LATEST + 1, int(lengths.max())))
    drawn = sorted(np.random.default_rng(seed).permutation(able)[:USERS].tolist())
    parts = []
    for user in drawn:
        *before, target = (template.item(texts[i]) for i in domain.sequences.of(user)[-LATEST - 1 :])
        said = "\n".join(f"  {shown_line(line)}" for line in template.prompt(before).split("\n"))
        cut = f", the latest {len(before)} of {lengths[user] - 1:,}" if lengths[user] - 1 > len(before) else ""
        parts.append(f"user {shown(domain.sequences.users[user])}{cut}:\n{said} -> {shown_line(target)}")
    return "\n".join(parts)


def shown_line(text: str, most: int = 160) -> str:
    """A line that is not too long to be shown."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
