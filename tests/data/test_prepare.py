"""Each rule of the preparation on a few rows, with the outcome worked out by hand."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import TITLES, histories, json_lines, write, write_csv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepare, prepare_to
from calrec_lite.data.report import describe
from calrec_lite.errors import InputError
from calrec_lite.recipe import DomainSpec, Text

Shop = Callable[..., Domain]


def test_events_are_ordered_by_time_and_items_by_text(shop: Shop) -> None:
    domain = shop([("u", "c", 30), ("v", "b", 5), ("u", "a", 10), ("u", "b", 20)], {"a": "Zoo", "b": "Yak", "c": "Ant"})
    assert histories(domain) == {"u": ["Zoo", "Yak", "Ant"], "v": ["Yak"]}
    assert domain.catalogue.titles == ["Ant", "Yak", "Zoo"]
    assert domain.catalogue.ids == ["c", "b", "a"]
    assert domain.catalogue.aliases == {"a": 2, "b": 1, "c": 0}
    assert domain.sequences.times is not None
    assert domain.sequences.times.tolist() == [10, 20, 30, 5]


def test_rows_that_cannot_be_used_are_dropped_and_counted(shop: Shop) -> None:
    events = [("u", "a", 1), ("", "a", 2), ("u", " ", 2), ("u", "b", 2), ("u", "b", 2), ("u", "b", 3), ("u", "c", "")]
    domain = shop(
        [*events, ("u", "gone", 4), ("v", "gone", 4), ("u", "mute", 5), ("u", "mute", 6)], TITLES | {"mute": ""}
    )
    assert histories(domain) == {"u": ["Apple", "Bread", "Bread"]}
    assert domain.info["dropped"] == {
        "no user or item": {"events": 2},
        "no time": {"events": 1},
        "same user, item and time": {"events": 1},
        "item without record": {"events": 2, "items": 1},
        "item without text": {"events": 2, "items": 1},
        "user with too few events": {"events": 0, "users": 0},
        "item with too few events": {"events": 0, "items": 0},
    }
    assert domain.info["read"]["rows"] == 11


def test_without_times_the_inputs_order_stands_and_nothing_is_a_duplicate(shop: Shop) -> None:
    domain = shop([("u", "c"), ("u", "a"), ("v", "a"), ("u", "a"), ("u", "b")])
    assert histories(domain) == {"u": ["Cheese", "Apple", "Apple", "Bread"], "v": ["Apple"]}
    assert domain.sequences.times is None
    assert domain.info["statistics"]["tied_neighbours"] is None


def test_items_with_the_same_text_are_one(shop: Shop) -> None:
    titles = {"a": "Apple", "b": " apple", "x": "App\u200ble", "y": "Apple  ", "unseen": "Apple"}
    domain = shop([("u", "y", 1), ("u", "x", 2), ("v", "b", 1), ("v", "a", 2)], titles)
    assert domain.catalogue.titles == ["Apple", "apple"]
    assert domain.catalogue.aliases == {"a": 0, "x": 0, "y": 0, "b": 1}
    assert domain.catalogue.ids == ["a", "b"]
    assert histories(domain) == {"u": ["Apple", "Apple"], "v": ["apple", "Apple"]}
    assert domain.info["merged_items"] == 2


REPAIRED = {
    "a": "Java List<String>",
    "b": "Java List<Integer>",
    "c": "Pens <Blue",
    "d": "Pens <Red",
    "e": "Pens &lt;Red",
    "f": "10²",
    "g": "102",
    "h": "<b>Tea</b>",
    "i": '<span class="x"',
}


@pytest.mark.parametrize("html", [None, True])
def test_items_that_a_repair_would_make_equal_stay_apart(shop: Shop, html: bool | None) -> None:
    domain = shop([("u", item, n) for n, item in enumerate(REPAIRED)], REPAIRED, html=html)
    entity = [] if html else ["Pens &lt;Red"]  # of HTML this is how `<Red` is written
    tea = ["Tea"] if html else ["<b>Tea</b>", '<span class="x"']
    expected = ["102", "10²", "Java List<Integer>", "Java List<String>", "Pens <Blue", "Pens <Red", *entity, *tea]
    assert sorted(domain.catalogue.titles) == sorted(expected)
    assert domain.info["merged_items"] == (1 if html else 0)
    text = describe(domain)
    if html:
        assert "  repaired                  7 values: HTML taken out\n" in text
        assert "`Java List<String>` -> `Java List`" in text
        assert "  kept apart                6 items that the repair would have made equal stay as written\n" in text
        assert "`Java List` -> `Java List<String>`" in text
        assert '`<span class="x"` -> ``' in text
    assert "  repaired                  1 values: characters replaced by plain ones, or invisible\n" in text
    assert "`10²` -> `102`" in text


@pytest.mark.parametrize(
    ("text", "titles", "alike"),
    [
        (Text(), ["Tea", "Tea"], 1),  # no brand, and the brand X
        (Text(missing="None"), ["Tea", "Tea", "Tea"], 0),
        (Text(missing=None, field="{value}"), ["Tea", "Tea", "Tea"], 1),  # of `Tea, Unknown` in one field and in two
        (None, ["Tea", "Tea", "Tea"], 0),
    ],
)
def test_items_that_the_recipe_words_alike_are_one(
    tmp_path: Path, text: Text | None, titles: list[str], alike: int
) -> None:
    rows = [("u", "a", "Tea", "Unknown"), ("u", "b", "Tea", ""), ("v", "c", "Tea", "X"), ("v", "d", "Tea, Unknown", "")]
    path = write_csv(tmp_path / "e.csv", ["user", "item", "title", "brand"], rows)
    spec = DomainSpec(interactions=str(path), min_user_events=1)
    domain = prepare("d", spec, 0, text)
    assert [title for title in domain.catalogue.titles if title == "Tea"] == titles
    assert len(domain.catalogue) == 4 - alike
    assert domain.info["worded_alike"]["values"] == alike
    assert domain.info["merged_items"] == alike
    words = [(text or Text()).item(fields, domain.catalogue.labels) for fields in domain.catalogue.fields]
    assert len(set(words)) == len(words) or text is None
    said = describe(domain)
    assert ("worded alike              1 of these texts" in said) == bool(alike)
    if text == Text():
        assert "`Tea, Unknown` -> `Title: Tea, Brand: Unknown`" in said
        assert domain.catalogue.aliases["a"] == domain.catalogue.aliases["b"]
    folder = tmp_path / "prepared"
    prepare_to("d", spec, 0, folder, text=text)
    assert prepare_to("d", spec, 0, folder, text=Text(separator="; ")).info["source_key"] != domain.info["source_key"]


def test_merging_comes_before_the_item_threshold(shop: Shop) -> None:
    titles = {"a1": "Apple", "a2": "Apple", "b": "Bread"}
    domain = shop([("u", "a1", 1), ("v", "a2", 1), ("v", "b", 2)], titles, min_item_events=2)
    assert domain.catalogue.titles == ["Apple"]


def test_the_threshold_is_applied_until_nothing_changes(shop: Shop) -> None:
    # w goes (1 event), then d falls to 1 and goes, then v falls to 1 and goes; u, x stay on a and b.
    events = [("u", "a", 1), ("u", "b", 2), ("x", "a", 1), ("x", "b", 2), ("v", "a", 1), ("v", "d", 2), ("w", "d", 1)]
    domain = shop(events, min_user_events=2, min_item_events=2)
    assert histories(domain) == {"u": ["Apple", "Bread"], "x": ["Apple", "Bread"]}
    assert domain.info["dropped"]["user with too few events"] == {"events": 2, "users": 2}
    assert domain.info["dropped"]["item with too few events"] == {"events": 1, "items": 1}


def test_repeats_are_dropped_where_an_item_left_made_two_neighbours(shop: Shop) -> None:
    events = [("u", "a", 1), ("u", "a", 2), ("u", "b", 3), ("u", "a", 4), ("u", "c", 5), ("v", "a", 1), ("v", "c", 2)]
    assert histories(shop(events, drop_repeats=True)) == {
        "u": ["Apple", "Bread", "Apple", "Cheese"],
        "v": ["Apple", "Cheese"],
    }
    domain = shop(events, drop_repeats=True, min_item_events=2)  # b goes, so u's apples meet
    assert histories(domain) == {"u": ["Apple", "Cheese"], "v": ["Apple", "Cheese"]}
    assert domain.info["dropped"]["repeat of the previous item"] == {"events": 2}
    assert histories(shop(events))["u"] == ["Apple", "Apple", "Bread", "Apple", "Cheese"]


def naive_core(events: list[tuple[str, str, int]], repeats: bool, users: int, items: int) -> dict[str, list[str]]:
    """The fixed point, in plain Python; events have distinct times."""
    rows = sorted(set(events), key=lambda row: row[2])
    while True:
        last: dict[str, str] = {}
        kept = []
        for row in rows:
            if not repeats or last.get(row[0]) != row[1]:
                kept.append(row)
            last[row[0]] = row[1]
        count = Counter(user for user, _, _ in kept)
        kept = [row for row in kept if count[row[0]] >= users]
        count = Counter(item for _, item, _ in kept)
        kept = [row for row in kept if count[row[1]] >= items]
        if kept == rows:
            break
        rows = kept
    out: dict[str, list[str]] = {}
    for user, item, _ in rows:
        out.setdefault(user, []).append(TITLES[item])
    return out


@given(
    pairs=st.lists(st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcde")), min_size=1, max_size=30),
    repeats=st.booleans(),
    users=st.integers(1, 4),
    items=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_core_and_repeats_match_a_plain_loop(
    shop: Shop, pairs: list[tuple[str, str]], repeats: bool, users: int, items: int
) -> None:
    events = [(user, item, time) for time, (user, item) in enumerate(pairs)]
    expected = naive_core(events, repeats, users, items)
    options: dict[str, Any] = {"drop_repeats": repeats, "min_user_events": users, "min_item_events": items}
    if not expected:
        with pytest.raises(InputError, match="no usable row is left"):
            shop(events, **options)
        return
    assert histories(shop(events, **options)) == expected


def test_ties_are_shuffled_by_the_seed_alone(shop: Shop) -> None:
    titles = {f"i{i:02}": f"Item {i:02}" for i in range(40)}
    events = [("u", item, 7) for item in titles]
    first = shop(events, titles)
    order = first.sequences.of(0).tolist()
    assert sorted(order) == list(range(40))
    assert order != list(range(40))
    assert abs(np.corrcoef(order, range(40))[0, 1]) < 0.5  # ids do not leak through
    random.Random(1).shuffle(events)
    again = shop(events, titles)
    assert again.fingerprint == first.fingerprint
    assert again.sequences.of(0).tolist() == order
    other = shop(events, titles, seed=1)
    assert other.sequences.of(0).tolist() != order
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize("unit", ["milliseconds", "seconds", "dates"])
def test_what_happened_within_a_second_keeps_its_order(shop: Shop, unit: str) -> None:
    items = [f"i{i:02}" for i in range(20)]
    at = {
        "milliseconds": lambda i: 1588687728000 + 45 * i,
        "seconds": lambda i: f"{1588687728 + 0.045 * i:.3f}",
        "dates": lambda i: f"2020-05-05T14:08:48.{45 * i:03}Z",
    }[unit]
    domain = shop([("u", item, at(i)) for i, item in enumerate(items)], {item: f"Item {item}" for item in items})
    assert domain.sequences.of(0).tolist() == list(range(20))
    again = [("u", "i00", at(0)), ("u", "i01", at(1)), ("u", "i00", at(2))]  # of one second: the first of equals counts
    titles = {"i00": "A", "i01": "B"}
    assert histories(shop(again, titles)) == histories(shop(again[::-1], titles)) == {"u": ["A", "B"]}
    assert set(domain.sequences.times.tolist()) == {1588687728}


def test_items_of_one_text_in_one_basket_are_one_where_repeats_are_dropped(shop: Shop) -> None:
    titles = {f"milk{n}": "Milk" for n in range(9)} | {f"b{n}": f"Bread {n}" for n in range(9)}
    domain = shop([("u", item, 7) for item in titles], titles, drop_repeats=True)
    assert sorted(histories(domain)["u"]) == sorted(["Milk", *(f"Bread {n}" for n in range(9))])


def test_a_cap_on_events_keeps_the_latest_and_the_whole_catalogue(shop: Shop) -> None:
    events = [("u", item, time) for time, item in enumerate("abcde")] + [("v", "a", 1)]
    domain = shop(events, max_user_events=2)
    assert histories(domain) == {"u": ["Dates", "Eggs"], "v": ["Apple"]}
    assert domain.catalogue.titles == ["Apple", "Bread", "Cheese", "Dates", "Eggs"]
    assert domain.info["dropped"]["older than the user's latest"] == {"events": 3}


def test_a_cap_on_users_draws_them_by_the_seed(shop: Shop) -> None:
    events = [(f"u{u:02}", item, time) for u in range(30) for time, item in enumerate("abc" if u else "dea")]
    drawn = shop(events, max_users=10)
    assert len(drawn.sequences) == 10
    assert len(drawn.catalogue) == 5
    assert drawn.info["dropped"]["user not drawn"] == {"events": 60, "users": 20}
    assert drawn.sequences.users != [f"u{u:02}" for u in range(10)]
    assert shop(events, max_users=10).fingerprint == drawn.fingerprint
    assert shop(events, seed=1, max_users=10).sequences.users != drawn.sequences.users
    assert set(shop(events, max_users=5).sequences.users) <= set(drawn.sequences.users)
    assert len(shop(events, max_users=99).sequences) == 30


def test_statistics_by_hand(shop: Shop) -> None:
    events = [("u", "a", 0), ("u", "b", 0), ("u", "a", 86400), ("u", "c", 86400), ("v", "a", 5), ("w", "a", 1)]
    events += [("w", "b", 2), ("w", "c", 3)]
    assert shop(events).info["statistics"] == {
        "users": 3,
        "items": 3,
        "events": 8,
        "users_with_a_test_case": 2,
        "users_with_a_validation_case": 2,
        "training_events": 4,  # two of u's four, one of w's three, all of the user with one
        "length": {"min": 1, "median": 3.0, "mean": 2.67, "max": 4},
        "repeats": 0.125,  # u's second a
        "tied_neighbours": 0.4,  # 2 of u's 3 pairs, none of w's 2
        "tied_test_targets": 0.5,  # u's, not w's
        "first": "1970-01-01",
        "last": "1970-01-02",
        "one_day": 0.5,  # w's, of u's and w's
    }


def test_the_report_says_what_was_dropped_and_why(shop: Shop) -> None:
    titles = TITLES | {"a2": "Apple", "mute": "<br>"}
    events = [
        ("u", "a", 1),
        ("u", "a2", 1),
        ("u", "b", 2),
        ("u", "b", 2),
        ("u", "mute", 3),
        ("", "b", 1),
        ("v", "b", 0),
    ]
    text = describe(shop(events, titles, min_user_events=2, html=True))
    assert text.splitlines()[0] == "shop: 1 users, 2 items, 3 events, 1970-01-01 to 1970-01-01"
    for line in (
        "read            7 rows, 4 item records (0 of them repeat an item)",
        "dropped                   1 events: no user or item",
        "dropped                   1 events: same user, item and time",
        "dropped                   1 events: item without text, 1 items",
        "dropped                   1 events: user with too few events, 1 users",
        "emptied                   1 values of Title that were no text but markup, scripts or fillers",
        "merged                    1 items into others with the same text",
        "held out        by leave-one-out; 1 events are for training",
        "cases           1 for validation, 1 for test",
        "equal times     50.0% of neighbouring events, 0.0% of test targets with another event",
        "item text       Title; such as: Title: Bread",
    ):
        assert f"  {line}\n" in text
    assert "item without record" not in text


def test_nothing_left_is_an_error_that_says_where_the_rows_went(shop: Shop) -> None:
    with pytest.raises(InputError) as error:
        shop([("u", "a", 1), ("v", "b", 1), ("v", "b", 1)], min_user_events=2)
    message = str(error.value)
    assert "events.csv: no usable row is left of 3: 1 same user, item and time; 2 user with too few events" in message
    assert "min_user_events" in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_result_does_not_depend_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    rows = 150_000
    users, items = np.arange(rows) % 997, (np.arange(rows) * 7919) % 1009
    table = pa.table({"user": users, "item": items, "title": [f"Item {i}" for i in items]})
    path = tmp_path / f"events.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=5000)
    elif kind == "csv":
        write_csv(path, table.column_names, zip(*table.to_pydict().values(), strict=True))
    else:
        write(path, json_lines(table.to_pylist()))
    connect = duckdb.connect
    prints = set()
    for threads in (1, 4):
        monkeypatch.setattr(duckdb, "connect", lambda name, n=threads: connect(name, config={"threads": n}))
        domain = prepare("big", DomainSpec(interactions=str(path)), 0)
        prints.add(domain.fingerprint)
    assert len(prints) == 1
    # Without times the input's order must be the sequences' order.
    u = domain.sequences.users.index("5")
    titles = domain.catalogue.titles
    assert [titles[i] for i in domain.sequences.of(u)] == [f"Item {i}" for i in items[users == 5]]


def test_the_same_rows_in_any_format_have_one_fingerprint(tmp_path: Path) -> None:
    events = [("1", "10", 1388534400), ("1", "11", 1388620800), ("1", "12", 1388707200), ("2", "10", 1388534400)]
    items = [{"item": "10", "title": "Größe, “A”"}, {"item": "11", "title": 'B "2"'}, {"item": "12", "title": "C|D"}]
    dates = ["2014-01-01", "2014-01-02T00:00:00Z", "2014-01-03 02:00:00+02:00", "2014-01-01 00:00"]
    records = [dict(zip(("user", "item", "time"), event, strict=True)) for event in events]
    tab = "user\titem\ttime\n" + "".join("\t".join(map(str, event)) + "\n" for event in events)
    listed = [
        {"user": 1, "item": [10, 11, 12], "time": [1388534400.0, 1388620800.9, 1388707200]},
        {"user": 2, "item": [10], "time": [1388534400]},
        {"user": 3, "item": [], "time": []},
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "e.parquet")
    pq.write_table(pa.Table.from_pylist(listed), tmp_path / "lists.parquet")
    pq.write_table(
        pa.table(
            {"user": ["1", "1", "1", "2"], "item": [10, 11, 12, 10], "time": np.array(dates_utc(), "datetime64[us]")}
        ),
        tmp_path / "stamps.parquet",
    )
    files = [
        write_csv(tmp_path / "e.csv", ["user", "item", "time"], events),
        write_csv(
            tmp_path / "dates.csv", ["user", "item", "time"], [(*e[:2], d) for e, d in zip(events, dates, strict=True)]
        ),
        write(tmp_path / "e.csv.gz", "\ufeffuser;time;item\r\n" + "".join(f"{u};{t};{i}\r\n" for u, i, t in events)),
        write(tmp_path / "e.tsv", tab),
        write(tmp_path / "e.tsv.gz", tab),
        write(tmp_path / "e.jsonl", json_lines(records)),
        write(tmp_path / "e.json.gz", json_lines(records).rstrip("\n")),
        write(tmp_path / "lists.jsonl.gz", json_lines(listed)),
        tmp_path / "e.parquet",
        tmp_path / "lists.parquet",
        tmp_path / "stamps.parquet",
    ]
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "i.parquet")
    records_of_items = [
        write(tmp_path / "i.jsonl", json_lines(items)),
        write_csv(tmp_path / "i.csv", ["item", "title"], [tuple(item.values()) for item in items]),
        tmp_path / "i.parquet",
    ]
    made = [
        prepare("d", DomainSpec(interactions=str(e), items=str(i), min_user_events=1), 0)
        for e, i in [(e, records_of_items[0]) for e in files] + [(files[0], i) for i in records_of_items]
    ]
    assert {domain.fingerprint for domain in made} == {made[0].fingerprint}
    assert histories(made[0]) == {"1": ["Größe, “A”", 'B "2"', "C|D"], "2": ["Größe, “A”"]}
    assert made[0].info["statistics"]["first"] == "2014-01-01"


def dates_utc() -> list[str]:
    return ["2014-01-01T00:00:00", "2014-01-02T00:00:00", "2014-01-03T00:00:00", "2014-01-01T00:00:00"]


def test_a_prepared_folder_is_used_again_until_something_changes(tmp_path: Path) -> None:
    interactions = write_csv(tmp_path / "e.csv", ["user", "item", "time", "title"], [("u", i, 1, i) for i in "abc"])
    folder = tmp_path / "prepared" / "shop"
    options: dict[str, Any] = {"interactions": str(interactions)}

    def stamp(seed: int = 0, name: str = "shop", **more: Any) -> int:
        domain = prepare_to(name, DomainSpec(**options, **more), seed, folder)
        assert Domain.open(folder).info == domain.info
        return (folder / "domain.json").stat().st_mtime_ns

    first = stamp()
    assert stamp() == first
    options["interactions"] = str(write(tmp_path / "moved.csv", interactions.read_bytes()))
    assert stamp() == first  # the same bytes elsewhere
    changed = [stamp(seed=1), stamp(seed=1, min_user_events=2), stamp(seed=1, name="other")]
    write(tmp_path / "moved.csv", interactions.read_text().replace(",1,", ",2,"))
    changed.append(stamp(seed=1, name="other"))
    (folder / "items.parquet").write_bytes(b"damaged")
    changed.append(stamp(seed=1, name="other"))
    assert all(a != b for a, b in zip([first, *changed], changed, strict=False))
    assert [path.name for path in folder.parent.iterdir()] == ["shop"]


def test_an_error_leaves_no_folder_and_never_replaces_a_foreign_one(tmp_path: Path) -> None:
    bad = DomainSpec(interactions=str(write(tmp_path / "e.csv", "user,item,title\nu,a\n")))
    with pytest.raises(InputError):
        prepare_to("shop", bad, 0, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["e.csv"]
    good = DomainSpec(interactions=str(write(tmp_path / "e.csv", "user,item,title\n" + "u,a,A\n" * 3)))
    prepare_to("shop", good, 0, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError):
        prepare_to("shop", DomainSpec(interactions=str(write(tmp_path / "f.csv", "user\nu\n"))), 0, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "photos").mkdir()
    write(tmp_path / "photos" / "cat.jpg", b"meow")
    with pytest.raises(InputError, match="photos: exists and is no prepared domain"):
        prepare_to("shop", good, 0, tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"meow"


TIMED = [(user, item, 86400 * day + n) for n, user in enumerate("uvw") for day, item in enumerate("abcdeabcde")]


def test_a_time_split_holds_out_by_share_or_by_date(shop: Shop, tmp_path: Path) -> None:
    by_share = shop(TIMED, holdout={"by": "time", "valid_from": 0.6, "test_from": 0.8})
    assert by_share.sequences.cuts == (6 * 86400, 8 * 86400)  # the first event beyond 60% and 80%
    assert by_share.holdout == "global time split (validation from 1970-01-07, test from 1970-01-09)"
    assert [len(by_share.train_items(u)) for u in range(3)] == [6, 6, 6]
    by_date = shop(TIMED, holdout={"by": "time", "valid_from": "1970-01-07", "test_from": "1970-01-09"})
    assert by_date.sequences.cuts == by_share.sequences.cuts
    plain = shop(TIMED)
    later = shop(TIMED, holdout={"by": "time", "valid_from": 0.6, "test_from": 0.9})
    assert len({domain.fingerprint for domain in (by_share, plain, later)}) == 3
    assert by_date.fingerprint == by_share.fingerprint  # the same events held out by another name
    by_share.save(tmp_path / "saved")
    opened = Domain.open(tmp_path / "saved")
    assert opened.sequences.cuts == by_share.sequences.cuts
    assert opened.case(0, "test") is not None
    assert "by global time split (validation from 1970-01-07, test from 1970-01-09); 18 events" in describe(opened)
    numbers = opened.info["statistics"]
    assert (numbers["users_with_a_validation_case"], numbers["users_with_a_test_case"]) == (3, 3)


def test_events_of_the_moment_of_a_share_are_held_out_together(shop: Shop) -> None:
    events = [("u", item, day) for day, items in ((0, "ab"), (1, "cde"), (2, "a")) for item in items]
    domain = shop(events, holdout={"by": "time", "valid_from": 0.5, "test_from": 0.9})
    assert domain.sequences.cuts == (1, 2)
    assert len(domain.train_items(0)) == 2  # a third of the events, not half: nothing of the cut's moment is trained on


def test_a_time_split_that_cannot_be_is_refused(shop: Shop) -> None:
    with pytest.raises(InputError, match="domain `shop`: holdout.by is `time`, but its events have no times"):
        shop([("u", "a"), ("u", "b"), ("u", "c")], holdout={"by": "time"})
    with pytest.raises(InputError, match="nothing is left for validation; move them apart"):
        shop([("u", item, 5) for item in "abc"], holdout={"by": "time"})
