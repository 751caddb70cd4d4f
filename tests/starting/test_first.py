"""A first recipe out of a person's own file: what is guessed, what is asked, and that the recipe is accepted."""

import datetime
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from calrec_lite.data.prepare import database, prepare
from calrec_lite.errors import InputError
from calrec_lite.recipe import DomainSpec, Recipe
from calrec_lite.recipe.bases import base_files
from calrec_lite.recipe.file import load_recipe
from calrec_lite.starting.draft import Draft, domain_name, recipe_name
from calrec_lite.starting.first import first_recipe
from calrec_lite.starting.guessing import Guess, guess_columns
from calrec_lite.starting.looking import look

pty = pytest.importorskip("pty")
NAMES = [f"{a} {b} {c}" for a in ("Red", "Blue", "Green") for b in ("steel", "glass") for c in ("cup", "lamp", "pen")]
BRANDS = ["Acme", "Nordic Co", "Zed"]
Event = tuple[str, int, datetime.datetime]  # user, item, when


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def events() -> list[Event]:
    """200 or so purchases of 40 customers, in no order."""
    rng = random.Random(1)
    out = []
    for user in range(40):
        when = datetime.datetime(2023, 1, 1) + datetime.timedelta(days=rng.randint(0, 300))
        for _ in range(rng.randint(3, 7)):
            when += datetime.timedelta(days=rng.randint(0, 20), minutes=rng.randint(1, 600))
            out.append((f"C{1000 + user}", rng.randrange(len(NAMES)), when))
    rng.shuffle(out)
    return out


def lines(rows: list[list[Any]], delimiter: str = ",") -> str:
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def guessed(interactions: Path, items: Path | None = None) -> Guess:
    with database() as (connection, folder):
        first = look(connection, interactions, folder, "first")
        return guess_columns(connection, first, look(connection, items, folder, "second") if items else None)


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def messy() -> Path:
    """As a shop's own program may write it: BOM, semicolons, German dates, a column of row numbers, gaps."""
    rows: list[list[Any]] = [["", "Cust. No", "Order date", "Product Code", "Product Name", "Maker", "Qty", "Note"]]
    for n, (user, item, when) in enumerate(events()):
        maker = "" if n % 9 == 0 else BRANDS[item % 3]
        date = when.strftime("%d.%m.%Y %H:%M")
        rows.append([n, user, date, f"P-{100 + item}", NAMES[item], maker, n % 4 + 1, f"left at door {n % 50}"])
    return write("messy.csv", "\ufeff" + lines(rows, ";"))


def test_names_say_what_columns_are() -> None:
    guess = guessed(messy())
    assert (guess.user, guess.item, guess.time) == ("Cust. No", "Product Code", "Order date")
    assert guess.time_format == "%d.%m.%Y %H:%M"
    assert guess.fields == {"Title": "Product Name", "Brand": "Maker"}  # a note differs from purchase to purchase
    assert guess.doubts == ()


def test_german_names_are_known() -> None:
    rows = [[user, f"P-{i}", f"{when:%d.%m.%Y}", NAMES[i], BRANDS[i % 3], NAMES[i][:3]] for user, i, when in events()]
    header = ["Kundennr", "Produktnr", "Bestelldatum", "Artikelbezeichnung", "Marke", "Warengruppe"]
    guess = guessed(write("shop.csv", lines([header, *rows], ";")))
    assert (guess.user, guess.item, guess.time) == ("Kundennr", "Produktnr", "Bestelldatum")
    assert guess.fields == {"Title": "Artikelbezeichnung", "Category": "Warengruppe", "Brand": "Marke"}


def test_content_says_it_where_names_do_not() -> None:
    rows = [[when.isoformat(), user, f"P-{item}", item % 4 + 1, NAMES[item]] for user, item, when in events()]
    guess = guessed(write("odd.csv", lines([list("abcde"), *rows])))
    assert (guess.time, guess.user, guess.item, guess.fields) == ("a", "b", "c", {"Title": "e"})
    assert set(guess.doubts) == {"user", "item", "fields"}


@pytest.mark.parametrize("gap", [False, True])
def test_files_without_a_header(gap: bool) -> None:
    """The item is where the two files meet; a first line that says one value twice is no header either."""
    first = [["7", "7", 3, 1_690_000_000]] if gap else []
    rows = first + [[user, f"{item}", item % 5 + 1, int(when.timestamp())] for user, item, when in events()]
    bought = write("bought.tsv", lines(rows, "\t"))
    items = write("items.csv", lines([[i, name, BRANDS[i % 3]] for i, name in enumerate(NAMES)]))
    guess = guessed(bought, items)
    assert guess.headerless == ("interactions", "items")
    assert (guess.user, guess.item, guess.record, guess.time) == ("column0", "column1", "column0", "column3")
    assert guess.fields == {"Title": "column1", "Column2": "column2"}
    domain = prepare("d", guess.spec(str(bought), str(items)), 0)
    assert domain.info["read"]["rows"] == len(rows)  # the first line is a row
    assert len(domain.catalogue) == len({item for _, item, _ in events()})
    assert {item["Title"] for item in domain.catalogue.fields} <= set(NAMES)


def test_a_header_of_words_is_one() -> None:
    rows = [[user, f"P{item}", NAMES[item]] for user, item, _ in events()]
    guess = guessed(write("e.csv", lines([["wer", "was", "wie"], *rows])))
    assert guess.headerless == ()
    assert (guess.user, guess.item, guess.fields) == ("wer", "was", {"Title": "wie"})


@pytest.mark.parametrize(
    ("written", "format", "doubt"),
    [
        ("%Y-%m-%dT%H:%M:%S", None, False),
        ("%Y%m%d", None, False),
        ("%d/%m/%Y", "%d/%m/%Y", False),
        ("%m/%d/%Y %H:%M", "%m/%d/%Y %H:%M", False),
    ],
)
def test_dates(written: str, format: str | None, doubt: bool) -> None:
    rows = [[user, when.strftime(written), NAMES[item]] for user, item, when in events()]
    guess = guessed(write("e.csv", lines([["user", "day", "product name"], *rows])))
    assert (guess.time, guess.time_format, "time_format" in guess.doubts) == ("day", format, doubt)


def test_whole_histories_in_a_row() -> None:
    histories: dict[str, list[int]] = {}
    for user, item, _ in events():
        histories.setdefault(user, []).append(item)
    rows = [
        {"user": user, "items": items, "ts": list(range(1_600_000_000, 1_600_000_000 + len(items)))}
        for user, items in histories.items()
    ]
    bought = write("seqs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    items = write("items.jsonl", "".join(json.dumps({"id": i, "title": n}) + "\n" for i, n in enumerate(NAMES)))
    guess = guessed(bought, items)
    assert (guess.user, guess.item, guess.record, guess.time) == ("user", "items", "id", "ts")
    assert prepare("d", guess.spec(str(bought), str(items)), 0).info["read"]["rows"] == len(events())


def test_a_publishers_format_is_known() -> None:
    reviews = [
        {"reviewerID": user, "asin": f"B{item}", "unixReviewTime": int(when.timestamp()), "reviewText": "Fine."}
        for user, item, when in events()
    ]
    meta = [
        {"asin": f"B{i}", "title": name, "brand": "Acme", "category": ["Home", "Things"]}
        for i, name in enumerate(NAMES)
    ]
    for name, records in (("r.json.gz", reviews), ("m.json.gz", meta)):
        Path(name).write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))
    said: list[str] = []
    path = first_recipe("r.json.gz", "m.json.gz", Path("mine.yaml"), True, said.append)
    assert path is not None
    spec = load_recipe(path).domains["mine"]
    assert (spec.reader, spec.columns.user, spec.fields) == ("amazon2018", None, None)
    assert "reader `amazon2018`" in said[0]


def accepted(path: Path) -> Recipe:
    """The recipe, after its domain was prepared by it."""
    recipe = load_recipe(path)
    (name,) = recipe.domains
    assert len(prepare(name, recipe.domains[name], recipe.seed, recipe.text).sequences) == 40
    return recipe


def test_yes_takes_the_guesses() -> None:
    said: list[str] = []
    path = first_recipe(str(messy()), None, None, True, said.append)
    assert path == Path("messy.yaml")
    recipe = accepted(path)
    assert recipe.base.model.startswith("pypi://")  # no Hub here
    shown = "\n".join(said)
    assert shown.count("\nuser C1") == 5
    assert "-> " in shown
    assert "40 users" in shown
    titles = [line for line in shown.splitlines() if line.startswith("  Next: ")]
    assert all(any(name in line for name in NAMES) for line in titles)
    with pytest.raises(InputError, match=r"messy.yaml: exists, and is not written over"):
        first_recipe(str(messy()), None, None, True, said.append)


def test_an_id_is_no_text() -> None:
    """It is said, and a file with one column for both is refused."""
    said: list[str] = []
    write("ids.csv", lines([["user", "item"], *([user, item] for user, item, _ in events())]))
    assert first_recipe("ids.csv", None, None, True, said.append)
    assert any(line.startswith("WARNING: the only text of an item is its id") for line in said)
    write("one.csv", "user\nu\nu\nv\n")
    with pytest.raises(InputError, match="needs a column for who and one for what; the columns are: user"):
        first_recipe("one.csv", None, None, True, said.append)
    assert not Path("one.yaml").exists()


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(InputError, match="no terminal to ask on; --yes"):
            first_recipe(str(messy()), None, None, False, print)
    assert not Path("messy.yaml").exists()


def test_asks_on_a_terminal() -> None:
    """Day or month first cannot be known where no day is above 12."""
    rows = [[user, when.replace(day=when.day % 12 + 1).strftime("%m/%d/%Y"), NAMES[i]] for user, i, when in events()]
    write("us.csv", lines([["who", "bought_on", "what"], *rows]))
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "calrec_lite", "init", "us.csv"]
    with subprocess.Popen(command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        os.write(master, b"month first\n%m/%d/%Y\ny\n")
        said = process.communicate()[0].decode()
    os.close(master)
    os.close(slave)
    assert process.returncode == 0, said
    assert "kernels" not in said, "what bitsandbytes says as it is imported"
    assert "'month first' is not one of '%d/%m/%Y', '%m/%d/%Y'" in said
    assert said.strip().endswith("next: calrec-lite baselines us.yaml")
    assert accepted(Path("us.yaml")).domains["us"].columns.time_format == "%m/%d/%Y"


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("odd", ["Größe: 'x' #1, {a}", "no", "007", "a\tb"])
def test_any_column_name_can_be_written(gpu: bool, odd: str, tmp_path: Path) -> None:
    columns = {"user": odd, "item": "it", "time": None}
    spec = DomainSpec.model_validate(
        {"interactions": f"{odd}.csv", "headerless": ["interactions"], "columns": columns, "fields": {odd: odd}}
    )
    draft = Draft("mine", spec, base_files()[0], 0.3, gpu)
    draft.write(tmp_path / "mine.yaml")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.domains == {"mine": spec}
    assert recipe.base.load_in_4bit is gpu
    assert not recipe.recommend.exclude_seen


@pytest.mark.parametrize("file", ["Über uns!.csv", "2023 Q1.csv.gz", "_x.tsv", "...", "a/b/Events.json"])
def test_names_of_recipes(file: str) -> None:
    name = recipe_name(Path(file))
    values = {"name": name, "base": {"model": "m"}, "domains": {domain_name(name): {"interactions": "e.csv"}}}
    assert Recipe.model_validate({**values, "stages": [{"name": "t", "domains": [domain_name(name)], "epochs": 1}]})
