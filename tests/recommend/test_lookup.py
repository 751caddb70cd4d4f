"""Names as users write them: cleaned as `prepare` cleans, case where it decides, and what is near a name not found."""

import copy
import pickle
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


def test_an_entity_is_decoded_where_the_data_were_html(tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    file.write_text('user,item,time,title\nu,a,1,"Tom &amp; Jerry"\nu,b,2,"<b>Heat</b> 2"\n', encoding="utf-8")
    spec = DomainSpec(interactions=str(file), fields={"Title": "title"}, min_user_events=1)
    for html, titles in ((True, ["Heat 2", "Tom & Jerry"]), (False, ["<b>Heat</b> 2", "Tom &amp; Jerry"])):
        domain = prepare("shop", spec.model_copy(update={"html": html}), 0)
        assert (domain.html, domain.catalogue.titles) == (html, titles)
        names = Lookup(["?"] * 2, domain.catalogue.titles, domain.catalogue.ids, {}, domain.html)
        found = [names.find(n) for n in ("Tom &amp; Jerry", "TOM &AMP; JERRY", "<b>heat</b> 2", "Tom & Jerry")]
        assert found == [1, 1, 0, 1] if html else found == [1, 1, 0, None]
        assert names.all_named("Tom &amp; Jerry") == [1]


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


def test_what_was_found_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's clients choose the names: many, long ones, or none that there are may not fill its memory."""
    monkeypatch.setattr("calrec_lite.recommend.lookup.KEPT", 4)
    names = lookup([f"item {n}" for n in range(9)])
    asked = [f"item {n}" for n in range(9)] + ["id3", "ITEM 5", "none", "x" * 5000]
    wanted = [*range(9), 3, 5, None, None]
    for _ in range(3):
        assert [names.find(name) for name in asked] == wanted
        assert len(names._found) <= 4
        assert "x" * 5000 not in names._found
    copied, sent = copy.deepcopy(names), pickle.loads(pickle.dumps(names))
    assert [sent.find(name) for name in asked] == wanted
    assert copied._found is not names._found


def test_the_nearest_titles_are_named_in_a_large_catalogue_too() -> None:
    rest = [f"{a} number {n}" for a in item_names(100) for n in range(500)]
    names = lookup([*rest, "Camembert de Normandie", "camembert", "Roquefort"])
    begun = time.process_time()
    assert names.nearest("Camenbert") == ["camembert"]
    assert names.nearest("camembert de normandy")[0] == "Camembert de Normandie"
    assert names.nearest("de camembert") == ["Camembert de Normandie", "camembert"]
    assert names.nearest("normandie") == ["Camembert de Normandie"]  # not alike, but all its words are there
    assert names.described("zzzz") == "'zzzz'"
    assert time.process_time() - begun < 5  # letter by letter it takes a minute


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
