"""What only a person can say: asked on the terminal, with the guess as the answer that Enter gives."""

from collections.abc import Iterable
from dataclasses import replace

import click

from calrec_lite.data.faults import shown
from calrec_lite.starting.guessing import Guess, with_time
from calrec_lite.starting.looking import Looked

NONE = "none"
QUESTIONS = {
    "user": "Which column says who it was",
    "item": "Which column says what it was (the item's id)",
    "record": "Which column of the items file is that id",
    "time": "Which column says when (`none`: the file's order)",
}


def settle(guess: Guess, events: Looked, items: Looked | None) -> Guess:
    """Ask what is in doubt; then whether all of it is right, and if not, everything."""
    for doubt in guess.doubts:
        guess = _ask(doubt, guess, events, items)
    if not guess.doubts and not click.confirm("Are these columns right?", default=True):
        for what in ("user", "item", *(["record"] if items else []), "time", "time_format", "fields"):
            guess = _ask(what, guess, events, items)
    return replace(guess, doubts=())


def doubts_in_words(guess: Guess) -> str:
    """What was guessed without being sure of it, for who takes the guesses."""
    values = {"user": guess.user, "item": guess.item, "record": guess.record, "time": guess.time or NONE}
    values |= {"time_format": guess.time_format, "fields": _fields_typed(guess)}
    return ", ".join(f"{what}: {shown(values[what])}" for what in guess.doubts)


def _ask(what: str, guess: Guess, events: Looked, items: Looked | None) -> Guess:
    source = items if items and what in ("record", "fields") else events
    if what == "time_format":
        return _ask_format(guess, events)
    if what == "fields":
        return _ask_fields(guess, source)
    names = [*source.columns, *([NONE] if what == "time" else [])]
    default = str(getattr(guess, what) or (NONE if what == "time" else ""))
    answer = _choose(QUESTIONS[what], names, default)
    if what == "time":
        return with_time(guess, events, None if answer == NONE else answer)
    return replace(guess, **{what: answer})  # type: ignore[arg-type]


def _ask_format(guess: Guess, events: Looked) -> Guess:
    """Day or month first, where no value decides it."""
    if guess.time is None:
        return guess
    formats = events.columns[guess.time].times
    if len(formats) < 2:
        return guess
    example = shown(events.columns[guess.time].examples[0])
    return replace(guess, time_format=_choose(f"How is `{example}` written", formats, formats[0]))


def _ask_fields(guess: Guess, source: Looked) -> Guess:
    """Texts as `Title=name, Brand=maker`."""

    def read(typed: str) -> dict[str, str]:
        pairs = [part.partition("=") for part in typed.split(",") if part.strip()]
        fields = {
            (label if equals else "Title").strip(): (column if equals else label).strip()
            for label, equals, column in pairs
        }
        if unknown := [column for column in fields.values() if column not in source.columns]:
            raise click.BadParameter(f"no column `{unknown[0]}`; there are: {', '.join(map(shown, source.columns))}")
        if not fields:
            raise click.BadParameter("name one at least: an item is known to the model by its text")
        return fields

    fields = click.prompt(
        "Which columns are the item's text (Label=column, ...)", _fields_typed(guess), value_proc=read
    )
    return replace(guess, fields=fields if isinstance(fields, dict) else read(fields))


def _fields_typed(guess: Guess) -> str:
    return ", ".join(f"{label}={column}" for label, column in (guess.fields or {}).items())


def _choose(question: str, names: Iterable[str], default: str) -> str:
    answer: str = click.prompt(question, default=default, type=click.Choice(list(names)), show_choices=True)
    return answer
