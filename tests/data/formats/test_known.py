"""Each publisher's files, in a folder, in a zip, and file by file: what is read of them."""

import re
import zipfile
from pathlib import Path
from typing import get_args

import pytest
from handmade import failing, histories, made
from publishers import PUBLISHERS

from calrec_lite.data.domain import Domain
from calrec_lite.data.formats.known import READERS
from calrec_lite.data.formats.places import looks_like
from calrec_lite.recipe.sections import Reader

DOCS = Path(__file__).parents[3] / "docs" / "formats.md"
NOIR = {"Title": "Café: Noir (1995)", "Genres": "Action, Drama"}
OLD = {"Title": "Old (1990)", "Genres": "Comedy"}
EXPECTED = {  # the catalogue, and each user's history as numbers in it
    "movielens-100k": (
        [
            {"Title": 'Café "Noir" (1995)', "Genres": "Action"},
            {"Title": "Old (1990)", "Genres": "Animation, Children's"},
        ],
        {"1": [1, 0]},
    ),
    "movielens-1m": ([NOIR, OLD], {"1": [1, 0]}),
    "movielens-10m": ([NOIR, OLD], {"1": [1, 0]}),
    "movielens-latest": ([{**NOIR, "Title": "Noir, The (1995)"}, OLD], {"1": [1, 0]}),
    "amazon2014": (
        [
            {"Title": "Kid's & Dice", "Category": "Toys > Dice"},
            {"Title": 'The "Big" Cup', "Brand": "Potter", "Price": "4.5"},
        ],
        {"A1": [1, 0]},
    ),
    "amazon2018": (
        [{"Title": "Cup"}, {"Title": "Dice & Cup", "Category": "Toys > Dice", "Brand": "Potter", "Price": "$4.50"}],
        {"A1": [0, 1]},
    ),
    "amazon2023": (
        [{"Title": "Cup & Lid"}, {"Title": "Dice", "Category": "Toys > Dice", "Brand": "Potter", "Price": "4.5"}],
        {"AE1": [0, 1]},
    ),
    "yelp": (
        [{"Title": "Diner", "City": "Reno"}, {"Title": "Tea House", "Category": "Tea Rooms, Cafes", "City": "Reno"}],
        {"y1": [0, 1]},
    ),
    "steam": (
        [
            {"Title": "Möbius", "Price": "Free to Play"},
            {"Title": "Saber's Edge", "Genres": "Action > Indie", "Developer": "D", "Price": "4.99"},
        ],
        {"Max ☆": [0, 1]},
    ),
    "goodreads": ([{"Title": "Rivers"}, {"Title": "Stones", "Publisher": "Mill", "Year": "1984"}], {"g1": [0, 1]}),
    "hm": (
        [
            {"Title": "OP T-shirt", "Type": "Bra", "Colour": "White", "Section": "Ladieswear"},
            {"Title": "Strap top", "Type": "Vest top", "Colour": "Black", "Section": "Ladieswear"},
        ],
        {"c1": [0, 1, 1]},
    ),
    "instacart": (
        [
            {"Title": "Soda", "Aisle": "soft drinks", "Department": "beverages"},
            {"Title": "Tea, green", "Aisle": "tea", "Department": "beverages"},
        ],
        {"1": [1, 0, 0]},
    ),
    "recbole": (
        [
            {"Title": '"Noir" night', "Year": "1995", "Category": "Action, Drama"},
            {"Title": "Old", "Year": "1990", "Category": "Comedy"},
        ],
        {"1": [1, 0]},
    ),
    "mind": (
        [{"Title": t, "Category": "news", "Subcategory": "local"} for t in ("Goal", "Rain", 'The "cat', "Vote")],
        {"U1": [0, 2, 1, 2], "U2": [3]},
    ),
}


def seen(domain: Domain) -> tuple[list[dict[str, str]], dict[str, list[int]]]:
    users = domain.sequences.users
    return domain.catalogue.fields, {user: domain.sequences.of(u).tolist() for u, user in enumerate(users)}


@pytest.mark.parametrize("name", PUBLISHERS)
def test_a_publishers_folder_and_zip(tmp_path: Path, name: str) -> None:
    reader, write_files = PUBLISHERS[name]
    (tmp_path / name).mkdir()
    folder = write_files(tmp_path / name)
    domain = made(folder, reader=reader)
    assert seen(domain) == EXPECTED[name]
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"{name}/{path.name}")
            archive.writestr(f"__MACOSX/{name}/._{path.name}", b"\0")
    zipped = made(tmp_path / "all.zip", reader=reader)
    assert (zipped.fingerprint, seen(zipped)) == (domain.fingerprint, EXPECTED[name])
    assert made(tmp_path, reader=reader).fingerprint == domain.fingerprint if name == "mind" else True
    by_sign = {"amazon2014", "amazon2018", "amazon2023", "yelp", "goodreads"}  # whose names are patterns
    assert looks_like(folder) == looks_like(tmp_path / "all.zip") == (None if name in by_sign else reader)


@pytest.mark.parametrize(
    "name", ["movielens-1m", "movielens-100k", "amazon2014", "amazon2023", "steam", "hm", "instacart"]
)
def test_the_two_files_by_their_names(tmp_path: Path, name: str) -> None:
    reader, write_files = PUBLISHERS[name]
    folder, form = write_files(tmp_path), READERS[reader]
    events, items = (
        next(path for path in sorted(folder.iterdir()) for layout in layouts if is_of(path, layout.files[0].name))
        for layouts in (form.events, form.items)
    )
    assert seen(made(events, items, reader=reader)) == EXPECTED[name]


def is_of(path: Path, pattern: str) -> bool:
    return path.match(pattern) or path.match(pattern + ".gz")


def test_times_of_each_format(tmp_path: Path) -> None:
    words = {}
    for name in ("amazon2023", "yelp", "goodreads", "instacart", "mind"):
        reader, write_files = PUBLISHERS[name]
        (tmp_path / name).mkdir()
        domain = made(write_files(tmp_path / name), reader=reader)
        assert domain.sequences.times is not None
        words[name] = (domain.info["times"], domain.sequences.times.tolist())
    assert words == {
        "amazon2023": ("unix milliseconds", [1588687728, 1588687728]),
        "yelp": ("dates (ISO 8601)", [1531001350, 1531001351]),
        "goodreads": ("dates as %a %b %d %H:%M:%S %z %Y", [1503694501, 1503694502]),
        "instacart": ("places in an order, no dates", [1, 2, 3]),
        # U1's history stands before the first impression, a second apart.
        "mind": ("unix seconds", [1573463156, 1573463157, 1573463158, 1573477558, 1573582290]),
    }


def test_an_order_has_no_dates(tmp_path: Path) -> None:
    from calrec_lite.data.report import describe

    domain = made(PUBLISHERS["instacart"][1](tmp_path), reader="instacart")
    assert (domain.info["statistics"]["first"], domain.info["statistics"]["tied_test_targets"]) == (None, 0.0)
    assert "3 events, ordered, no dates" in describe(domain)
    said = failing(tmp_path, reader="instacart", holdout={"by": "time"})
    assert said == "domain `d`: holdout.by is `time`, but its events have an order only; use leave_one_out"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    instacart = PUBLISHERS["instacart"][1](tmp_path)
    (instacart / "orders.csv").rename(instacart / "later.csv")
    assert failing(instacart, reader="instacart") == (
        f"{instacart}/order_products__prior.csv: needs orders.csv beside it, which is not there"
    )
    (instacart / "orders.csv").write_text("order_id,user_id,order\n11,1,2\n")
    assert failing(instacart, reader="instacart") == (
        f"{instacart}/orders.csv: no column `order_number`; is it the publisher's orders.csv?"
    )
    (instacart / "orders.csv").write_text("order_id,user_id,order_number\n11,1,2\n12,1\n")
    assert failing(instacart, reader="instacart").startswith(f"{instacart}/orders.csv:3: Expected Number of Columns: 3")
    (tmp_path / "none").mkdir()
    assert failing(tmp_path / "none", reader="yelp") == (
        f"{tmp_path}/none: holds none of the reader's tables of events (*review.json); name a file"
    )


def test_two_of_a_kind_are_asked_about(tmp_path: Path) -> None:
    for part in ("train", "dev"):
        (tmp_path / f"MIND_{part}").mkdir()
        PUBLISHERS["mind"][1](tmp_path / f"MIND_{part}")
    said = failing(tmp_path, reader="mind")
    assert said == f"{tmp_path}: holds several tables: behaviors.tsv, behaviors.tsv; name the file that is meant"


def test_reviews_hold_no_titles_of_items(tmp_path: Path) -> None:
    """Of Amazon 2023 they have a column `title`, the review's own."""
    folder = PUBLISHERS["amazon2023"][1](tmp_path)
    said = failing(folder / "Toys.jsonl.gz", reader="amazon2023")
    assert said == (
        f"{folder}/Toys.jsonl.gz: holds no texts of items; name the file that does by `items` (meta_*.jsonl)"
    )
    own = made(folder / "Toys.jsonl.gz", reader="amazon2023", fields={"Title": "parent_asin"})
    assert histories(own) == {"AE1": ["B2", "B1"]}


def test_interactions_without_times_are_not_goodreads(tmp_path: Path) -> None:
    folder = PUBLISHERS["goodreads"][1](tmp_path)
    (folder / "goodreads_interactions.csv").write_text("user_id,book_id,is_read,rating,is_reviewed\n0,948,1,5,0\n")
    said = failing(folder / "goodreads_interactions.csv", folder / "goodreads_books_poetry.json.gz", reader="goodreads")
    assert said.startswith(f"{folder}/goodreads_interactions.csv: no column `date_added` for `columns.time`")


def test_the_domain_is_another_when_any_file_of_it_is(tmp_path: Path) -> None:
    folder = PUBLISHERS["instacart"][1](tmp_path)
    keys = {made(folder, reader="instacart").info["source_key"] for _ in range(2)}
    (folder / "aisles.csv").write_text("aisle_id,aisle\n9,sodas\n3,tea\n")
    keys.add(made(folder, reader="instacart").info["source_key"])
    (folder / "README.txt").write_text("not read")
    keys.add(made(folder, reader="instacart").info["source_key"])
    assert len(keys) == 2


def test_recipe_docs_and_table_name_the_same_readers() -> None:
    assert list(READERS) == list(get_args(Reader))
    page = DOCS.read_text(encoding="utf-8")
    assert re.findall(r"^### .*`(\w+)`$", page, re.MULTILINE) == list(READERS)
    for reader, form in READERS.items():
        part = page.partition(f"`{reader}`\n")[2].partition("\n### ")[0]
        names = [*form.user, *form.item, *form.time, *form.item_id, *(c for cs in form.fields.values() for c in cs)]
        names += [*form.fields, *(layout.files[0].name for layout in (*form.events, *form.items))]
        missing = [name for name in names if f"`{name}`" not in part and f"{name}" not in re.findall(r"[\w.*]+", part)]
        assert not missing, (reader, missing)
