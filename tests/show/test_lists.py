"""A list as a person judges it: ids and fields beside titles, parts under their weights, within 80 columns."""

from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from calrec_lite.errors import InputError
from calrec_lite.recommend import Recommender
from calrec_lite.recommend.readings import PARTS
from calrec_lite.recommend.recommender import Recommendation
from calrec_lite.run import Run
from calrec_lite.show.lists import plain_list, shown_history, shown_list, weights_of
from calrec_lite.show.source import Engine, is_run, source_of_export, source_of_run

FIELDS = {
    "B001": {"Title": "Red tea", "Category": "Food > Tea", "Brand": "Lyons"},
    "B002": {"Title": "Blue cup"},
}
WEIGHTS = {**dict.fromkeys(PARTS, 0.123), "text": 0.0, "likelihood": 1.5}
ALL = {**WEIGHTS, "text": 0.0123}


def items(parts: dict[str, float]) -> list[Recommendation]:
    why = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    return [Recommendation("Red tea", "B001", -1.5, why, parts), Recommendation("Blue cup", "B002", np.inf, why, parts)]


def test_parts_stand_under_their_weights_within_80_columns() -> None:
    text = shown_list(items({**dict.fromkeys(PARTS, -12.34), "likelihood": -7.891}), FIELDS, WEIGHTS, 80)
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    every = shown_list(items({**dict.fromkeys(PARTS, -12.34), "likelihood": -7.891}), FIELDS, ALL, 80)
    nine = [*PARTS, "likelihood"]  # more than fit side by side
    assert [every.splitlines()[n].split() for n in (5, 10)] == [nine[::2], nine[1::2]]
    assert all(cell_len(line) <= 80 for line in every.splitlines())
    lines = text.splitlines()
    assert lines[0].split() == ["#", "title", "brand", "id", "score"]
    assert lines[1].split() == ["1", "Red", "tea", "Lyons", "B001", "-1.50"]
    assert lines[2].split() == ["2", "Blue", "cup", "B002"]  # what is no number has no score
    counted = [name for name in (*PARTS, "likelihood") if name != "text"]  # a weight of 0 adds nothing
    assert lines[5].split() == counted
    assert lines[6].split() == ["#", *" ".join(f"x {WEIGHTS[name]:.2g}" for name in counted).split()]
    assert lines[7].split() == ["1", *["-12.34"] * 7, "-7.89"]


def test_without_parts_the_reason_stands_beside() -> None:
    lines = shown_list(items({}), FIELDS, {}, 80).splitlines()
    assert len(lines) == 3
    plain = plain_list(items({"tower": 1.0}), FIELDS).splitlines()
    further = "Category: Food > Tea, Brand: Lyons"
    assert plain[0].split("\t") == ["1", "Red tea", "B001", further, "-1.5000", "tower 1.00"]
    assert plain[1].split("\t") == ["2", "Blue cup", "B002", "", "", "tower 1.00"]


def test_of_a_history_the_latest_are_shown() -> None:
    past = [(f"item {n}", f"id{n}") for n in range(1, 15)]
    lines = shown_history(past, {"id14": {"Title": "item 14", "Brand": "X"}}, 80).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [str(n) for n in range(5, 15)]
    assert lines[-1].split() == ["14", "item", "14", "Brand:", "X", "id14"]


def test_parts_add_up_to_the_score(fused_export: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    opened = Recommender.from_pretrained(fused_export, strategy="fast")
    title = opened.catalogue.titles[0]
    (found,) = opened.recommend([[title]], k=5)
    for item in found:
        assert sum(item.parts.values()) == pytest.approx(item.score, abs=1e-4)
        assert item.why == ", ".join(f"{name} {value:.2f}" for name, value in item.parts.items())
    assert weights_of(opened).keys() == found[0].parts.keys()
    assert len({*found, *found}) == 5  # they may be kept in a set


def test_a_user_of_the_data_by_run_and_by_export(
    fused_run: Run, fused_export: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    fast = Engine("fast", ())
    domain = fused_run.domain("shop")
    user = domain.sequences.users[3]
    past = [domain.catalogue.ids[i] for i in domain.sequences.of(3)]
    assert is_run(str(fused_run.folder))
    assert not is_run(str(fused_export))
    of_run = source_of_run(fused_run, user, fast)
    of_export = source_of_export(str(fused_export), user, fused_run.folder / "domains" / "shop", fast)
    for source in (of_run, of_export):
        assert source.history is not None
        assert [item for _, item in source.history] == past
    ids = set(past)
    assert of_run.fields_of(ids) == of_export.fields_of(ids)
    with pytest.raises(InputError, match=r"no user 'nobody' among its 70 \(they are called '0', "):
        source_of_run(fused_run, "nobody", fast)
    with pytest.raises(InputError, match="no user 'nobody' among its 70"):
        source_of_export(str(fused_export), "nobody", fused_run.folder / "domains" / "shop", fast)
    with pytest.raises(InputError, match="an export holds no histories; name its run instead, or a prepared domain"):
        source_of_export(str(fused_export), user, None, fast)
    with pytest.raises(InputError, match="is a run; --engine and --4bit are for its export"):
        source_of_run(fused_run, user, Engine(None, (), "vllm"))
