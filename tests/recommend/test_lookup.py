"""Names as users write them: cleaned as `prepare` cleans, case where it decides, and what is near a name not found."""

import time
import unicodedata
from pathlib import Path

import pytest

from calrec_lite.data.prepare import prepare
from calrec_lite.errors import InputError
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.towers import Towers
from calrec_lite.recipe import DomainSpec
from calrec_lite.recommend.lookup import Lookup
from calrec_lite.text.encoding import Encoder
from tests.conftest import item_names
from tests.recommend.test_recommender import recommender

RAW = (
    "Tom &amp; Jerry",
    "Teflon\u2122 pan",
    "\u00bd inch pipe",
    unicodedata.normalize("NFD", "Caf\u00e9 crème"),
    "man\u200dwoman",
    "  two\tblanks ",
    "soft\u00adhyphen",
    "\uff26\uff35\uff2c\uff2c width",
)


def lookup(titles: list[str], ids: list[str] | None = None) -> Lookup:
    return Lookup([f"Title: {t}" for t in titles], titles, ids or [f"id{i}" for i in range(len(titles))], {})


def test_a_title_is_found_as_it_stood_in_the_raw_file(tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    rows = "".join(f'u,i{n},{n},"{title}"\n' for n, title in enumerate(RAW))
    file.write_text(f"user,item,time,title\n{rows}", encoding="utf-8")
    catalogue = prepare("shop", DomainSpec(interactions=str(file), fields={"Title": "title"}), 0).catalogue
    names = Lookup(["?"] * len(catalogue.ids), catalogue.titles, catalogue.ids, catalogue.aliases)
    for n, written in enumerate(RAW):
        item = catalogue.aliases[f"i{n}"]
        for name in (written, catalogue.titles[item], written.upper()):
            assert names.find(name) == item
            assert names.all_named(name) == [item]


def test_case_counts_where_it_decides_which_item_is_meant() -> None:
    names = lookup(["It", "IT", "Heat", "heat", "Fargo", "Fargo"], ["a", "A", "c", "d", "Old", "x2"])
    assert [names.find(n) for n in ("It", "IT", "heat", "fargo", "FARGO")] == [0, 1, 3, 4, 4]
    assert [names.find(n) for n in ("it", "HEAT", "gone")] == [None, None, None]
    assert names.unknown(["it", "IT", "it", "gone"]) == ["it", "gone"]
    assert [names.find(n) for n in ("a", "A", "C", "old", "Title: Heat", "title: fargo")] == [0, 1, 2, 4, 2, 4]
    assert names.all_named("it") == [0, 1]  # a limit may be of several items
    ids = lookup(["x", "y"], ["aB", "Ab"])
    assert [ids.find(n) for n in ("aB", "Ab", "ab")] == [0, 1, None]
    assert lookup(["x1", "y"], ["y0", "X1"]).find("X1") == 1  # an id as written, before a title in another case


def test_the_nearest_titles_are_named_in_a_large_catalogue_too() -> None:
    rest = [f"{a} number {n}" for a in item_names(100) for n in range(500)]
    names = lookup([*rest, "Camembert de Normandie", "camembert", "Roquefort"])
    begun = time.perf_counter()
    assert names.nearest("Camenbert") == ["camembert"]
    assert names.nearest("camembert de normandy")[0] == "Camembert de Normandie"
    assert names.described("zzzz") == "'zzzz'"
    assert time.perf_counter() - begun < 5  # letter by letter it takes a minute


def test_what_is_not_found_is_named_and_can_be_refused(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    made = recommender(towers, encoder, catalogue, k=3)
    known = catalogue.titles[4]
    assert made.unknown([known, "nope", 7, "id3", "nope"]) == ["nope", "7"]
    assert len(made.recommend([[known, "id2"]], strict=True)[0]) == 3
    assert len(made.recommend([[known, "nope"]])[0]) == 3
    with pytest.raises(InputError, match=f"not in the catalogue: '{known}x' .*'{known}'.*, 'nope'"):
        made.recommend([[known, f"{known}x"], ["nope"]], strict=True)
    with pytest.raises(InputError, match=f"deny: the catalogue has no title or id '{known}x' .near it: '{known}'"):
        made.recommend([[known]], deny=[f"{known}x"])
    assert made.not_found([str(n) for n in range(9)]).endswith("and 4 more")
