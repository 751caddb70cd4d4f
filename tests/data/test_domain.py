"""The prepared domain: splits, and files that are whole, belong together, or are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calrec_lite.data.domain import Catalogue, Domain, Sequences
from calrec_lite.errors import InputError

INFO = {"fingerprint": "f" * 64, "source_key": "s"}
FIELDS = [{"Title": "A", "Price": "$1"}, {"Title": "B, the “second”"}, {"Brand": "only"}]


def domain(lengths: list[int], timed: bool = True, fields: list[dict[str, str]] = FIELDS) -> Domain:
    events = sum(lengths)
    ids = [f"id{i}" for i in range(len(fields))]
    return Domain(
        "shop",
        Catalogue(ids, fields, {"alias of 0": 0} | {id_: i for i, id_ in enumerate(ids)}),
        Sequences(
            [f"u{u}" for u in range(len(lengths))],
            np.arange(events, dtype=np.int32) % len(fields),
            np.cumsum([0, *lengths], dtype=np.int64),
            np.arange(events, dtype=np.int64) * 86400 if timed else None,
        ),
        INFO,
    )


def test_titles_are_the_first_value_of_each_item() -> None:
    assert domain([3]).catalogue.titles == ["A", "B, the “second”", "only"]


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ([{"A": "1", "C": "1"}, {"A": "1", "B": "1"}, {"B": "1", "C": "1"}], ("A", "B", "C")),
        ([{"Z": "1"}, {"Z": "1", "A": "1"}], ("Z", "A")),
        ([], ()),
    ],
)
def test_labels_keep_the_order_of_the_text(fields: list[dict[str, str]], labels: tuple[str, ...]) -> None:
    assert Catalogue([""] * len(fields), fields, {}).labels == labels


def test_leave_one_out_at_every_length() -> None:
    made = domain([0, 1, 2, 3, 4], fields=[{"Title": str(i)} for i in range(10)])
    # The events are numbered through: 0 | 1 2 | 3 4 5 | 6 7 8 9
    assert [made.train_items(u).tolist() for u in range(5)] == [[], [0], [1, 2], [3], [6, 7]]
    assert [made.case(u, "test") for u in range(3)] == [None, None, None]
    assert [made.case(u, "validation") for u in range(3)] == [None, None, None]
    cases = [(made.case(u, "validation"), made.case(u, "test")) for u in (3, 4)]
    plain = [[(case[0].tolist(), case[1]) for case in pair if case] for pair in cases]
    assert plain == [[([3], 4), ([3, 4], 5)], [([6, 7], 8), ([6, 7, 8], 9)]]


@given(
    lengths=st.lists(st.integers(0, 6), max_size=8),
    timed=st.booleans(),
    fields=st.lists(st.dictionaries(st.text(max_size=5), st.text(min_size=1, max_size=9), min_size=1), min_size=1),
)
@settings(max_examples=30, deadline=None)
def test_what_is_saved_is_opened_again(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], timed: bool, fields: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("domain") / "shop"
    made = domain(lengths, timed or not lengths, fields)
    made.save(folder)
    opened = Domain.open(folder)
    assert opened.catalogue == made.catalogue
    assert [list(item) for item in opened.catalogue.fields] == [list(item) for item in fields]
    assert (opened.name, opened.fingerprint, opened.sequences.users) == ("shop", "f" * 64, made.sequences.users)
    for name in ("items", "offsets", "times"):
        got, expected = getattr(opened.sequences, name), getattr(made.sequences, name)
        assert (got is None) == (expected is None)
        if expected is not None:
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)


def test_saving_the_same_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        domain([3, 2]).save(tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_failing_save_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    domain([3]).save(tmp_path / "shop")
    before = {path.name: path.read_bytes() for path in (tmp_path / "shop").iterdir()}
    good = domain([4])
    with pytest.raises(TypeError):
        Domain("shop", good.catalogue, good.sequences, {**INFO, "not JSON": {1, 2}}).save(tmp_path / "shop")
    assert {path.name: path.read_bytes() for path in (tmp_path / "shop").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def _remove_items(folder: Path) -> None:
    (folder / "items.parquet").unlink()


def _swap_sequences(folder: Path) -> None:
    domain([4, 4]).save(folder.with_name("other"))
    shutil.copy(folder.with_name("other") / "sequences.parquet", folder)


def _cut_json(folder: Path) -> None:
    path = folder / "domain.json"
    path.write_text(path.read_text()[:-20])


def _another_number(folder: Path) -> None:
    info = json.loads((folder / "domain.json").read_text())
    (folder / "domain.json").write_text(json.dumps({**info, "statistics": 5}))


def _other_json(folder: Path) -> None:
    (folder / "domain.json").write_text(json.dumps({"name": "a package"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "not a prepared domain"),
        (_remove_items, "items.parquet is missing"),
        (_swap_sequences, "sequences.parquet: does not belong to the domain.json beside it"),
        (_cut_json, "domain.json: not valid JSON"),
        (_another_number, "domain.json: its content is not what was written"),
        (_other_json, "domain.json: not the description of a prepared domain"),
    ],
)
def test_a_folder_that_is_no_whole_domain_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = tmp_path / "shop"
    domain([3]).save(folder)
    spoil(folder)
    with pytest.raises(InputError, match=message) as error:
        Domain.open(folder)
    assert "\n" not in str(error.value)
