"""The whole way of `init`: look, guess, ask, choose a base, prepare, write."""

import sys
from collections.abc import Callable
from pathlib import Path

import click

from calrec_lite.data.domain import Domain
from calrec_lite.data.formats.known import READERS
from calrec_lite.data.prepare import database, prepare
from calrec_lite.data.report import describe
from calrec_lite.data.tables import listed
from calrec_lite.errors import InputError
from calrec_lite.recipe import Text
from calrec_lite.sources import fetch
from calrec_lite.starting.asking import doubts_in_words, settle
from calrec_lite.starting.draft import Draft, domain_name, draft_text, recipe_name, require_free
from calrec_lite.starting.guessing import Guess, guess_columns
from calrec_lite.starting.known import known_reader
from calrec_lite.starting.looking import Looked, look
from calrec_lite.starting.preview import columns_table, histories

SEED = 0  # a recipe's default
Say = Callable[[str], None]


def first_recipe(events: str, items: str | None, out: Path | None, yes: bool, say: Say) -> Path | None:
    """Write a first recipe for a person's files, and return where; None: the person did not want it.

    Args:
        events, items: locations, as a recipe names them.
        out: None: where the command is run, named after the events.
        yes: take the guesses instead of asking.
        say: prints.

    Raises:
        InputError: a file cannot be read, nothing usable is in it, the recipe's file exists, or nobody can be asked.
    """
    if not yes and not sys.stdin.isatty():
        raise InputError("init: asks, and here is no terminal to ask on; --yes takes the guesses")
    out = out or Path(f"{recipe_name(Path(events))}.yaml")
    require_free(out)
    name = recipe_name(out)
    spec = _columns(events, items, yes, say).spec(events, items)
    say("\nlooking at this machine, then reading all rows ...")
    # Torch, which it takes to see a GPU, is loaded no earlier than this.
    from calrec_lite.machine.fitting import first_base, place_here
    from calrec_lite.machine.hub import ask_hub, is_downloaded

    place, hub = place_here(), ask_hub()
    base = first_base(place, hub.reached)
    if not hub.reached and is_downloaded((wanted := first_base(place, True)).model):
        base = wanted
    text = draft_text(place.gpu)
    domain = prepare(domain_name(name), spec, SEED, text)
    _show(domain, text, say)
    why = "" if hub.reached or not base.packed else f" (from PyPI: the Hub is not reached: {hub.why})"
    size = f"{base.parameters / 1e6:.0f}M parameters"
    say(f"\nbase: {base.name}, {size}, for {place.name}{why}; others: calrec-lite bases")
    if not yes and not click.confirm(f"Write {out}?", default=True):
        return None
    Draft(name, spec, base, domain.info["statistics"]["repeats"], place.gpu).write(out)
    return out


def _columns(events: str, items: str | None, yes: bool, say: Say) -> Guess:
    """The columns, guessed or settled with the person."""
    patterns = sorted({pattern for form in READERS.values() for pattern in form.patterns()})
    paths = [fetch(location, patterns) for location in (events, items) if location]
    with database() as (connection, folder):
        looked, failure = [], None
        try:
            if all(path.is_file() for path in paths):  # a folder may be a publisher's
                looked = [look(connection, path, folder, f"looked{i}") for i, path in enumerate(paths)]
        except InputError as error:  # a publisher's format may be no table
            failure = error
        if reader := known_reader(paths[0], paths[1] if items else None, looked):
            say(f"{paths[0].name}: the reader `{reader}` knows this format")
            return Guess(reader=reader)
        if not looked:
            raise failure or InputError(f"{paths[0]}: no reader knows such a folder; name the file of the events")
        first, second = looked[0], looked[1] if items else None
        guess = guess_columns(connection, first, second)
        say(columns_table(first, second, guess))
        if yes and guess.doubts:
            say(f"not sure of: {doubts_in_words(guess)}")
        settled = guess if yes else settle(guess, first, second)
        _require_columns(settled, first, second)
        if settled.says_ids_only(second or first):
            say("WARNING: the only text of an item is its id, which tells an LLM nothing; give ITEMS with titles")
        return settled


def _require_columns(guess: Guess, events: Looked, items: Looked | None) -> None:
    if not guess.user or not guess.item or guess.user == guess.item:
        columns = listed(events.columns)
        raise InputError(f"{events.path}: needs a column for who and one for what; the columns are: {columns}")
    if items and not guess.record:
        raise InputError(f"{items.path}: no column names the items of {events.path.name}; name it `{guess.item}`")


def _show(domain: Domain, text: Text, say: Say) -> None:
    say(f"{describe(domain)}\n\nfive histories, as the model will read them (`->`: what it is to say):")
    say(histories(domain, text, SEED))
