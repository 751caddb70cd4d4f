"""What data says before training: said by prepare, and nothing changed by it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from handmade import write

from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepare
from calrec_lite.data.report import describe
from calrec_lite.errors import InputError
from calrec_lite.recipe import DomainSpec

EVENTS = """user,item,time,title,brand
1,12,2023-01-01,Tea,Acme
1,13,2023-01-01,Cup,Acme
1,14,2023-01-01,,Acme
2,12.0,2023-01-01,Tea,Acme
2.0,13,2023-01-01,Cups,Acme
2,16,2023-01-02,,Acme
2,15,2023-01-03,,Zed
"""


def made(interactions: Path, items: Path | None = None) -> Domain:
    spec = DomainSpec(interactions=str(interactions), items=str(items) if items else None, min_user_events=1)
    return prepare("d", spec, 0)


def test_what_is_doubtful_is_counted(tmp_path: Path) -> None:
    domain = made(write(tmp_path / "e.csv", EVENTS))
    doubts = domain.info["doubts"]
    assert doubts["untitled"] == {"items": 3, "texts": 2, "fields": ["Brand"]}
    assert doubts["twin_ids"] == {
        "user": {"ids": 1, "examples": [["2", "2.0"]]},
        "item": {"ids": 1, "examples": [["12", "12.0"]]},
    }
    assert doubts["changing_titles"] == {"items": 1, "examples": [["13", "Cup", "Cups"]]}
    assert "Cups" not in domain.catalogue.titles  # the title that is said to win is the one that did
    assert domain.info["statistics"]["one_day"] == 0.5  # of users 1 and 2: `2.0` has one event
    said = describe(domain)
    assert "3 items have no Title: their text is only Brand, which makes 2 different items of them" in said
    assert "1 item ids are written in two ways, such as `12` and `12.0`" in said
    assert "such as `Cup`, not `Cups`, of item `13`" in said
    assert "50.0% of the users with several events have them all on one day" in said


def test_the_fullest_record_wins(tmp_path: Path) -> None:
    items = write(tmp_path / "i.csv", "item,title,brand\na,Old,\na,New,Acme\nb,Same,\nb,Same,Acme\n")
    domain = made(write(tmp_path / "e.csv", "user,item\nu,a\nu,b\n"), items)
    assert domain.info["doubts"]["changing_titles"] == {"items": 1, "examples": [["a", "New", "Old"]]}
    assert sorted(domain.catalogue.titles) == ["New", "Same"]


def test_sound_data_raise_no_doubt(shop: Callable[..., Domain]) -> None:
    domain = shop([("u", "a", 1), ("u", "b", 10**6), ("1.5", "c", 2), ("1", "d", 2), ("1", "e", 10**7)])
    assert domain.info["doubts"] == {"untitled": {}, "twin_ids": {}, "changing_titles": {}}
    assert domain.info["statistics"]["one_day"] == 0
    assert "look at" not in describe(domain)


def test_no_times_no_days(shop: Callable[..., Domain]) -> None:
    assert shop([("u", "a"), ("u", "b")]).info["statistics"]["one_day"] is None


@pytest.mark.parametrize(("event", "record"), [("12.0", "12"), ("12", "12.0")])
def test_ids_that_two_files_write_in_two_ways(event: str, record: str, tmp_path: Path) -> None:
    events = write(tmp_path / "e.csv", f"user,item\nu,{event}\n")
    items = write(tmp_path / "i.csv", f"item,title\n{record},Tea\n")
    with pytest.raises(InputError, match=rf"such as `{event}`; there it is written like `{record}`"):
        made(events, items)
    items = write(tmp_path / "i.csv", "item,title\n13,Tea\n")
    with pytest.raises(InputError, match=rf"such as `{event}`$"):
        made(events, items)
