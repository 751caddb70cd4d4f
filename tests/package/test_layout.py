"""An export's catalogue.jsonl as a user may edit it: new items are recommended, what is wrong is named by its line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from calrec_lite.errors import InputError, RunError
from calrec_lite.package.layout import CATALOGUE, NAME, open_package
from calrec_lite.recommend import Recommender
from tests.decode.conftest import Exact, cosines

HISTORY = ["id3", "id4"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))


def append(package: Path, *lines: str) -> None:
    with (package / CATALOGUE).open("a", encoding="utf-8") as file:
        file.write("\n".join(["", *lines, "", ""]))  # blank lines do not matter


@pytest.mark.parametrize("strategy", ["beam", "dense"])
def test_an_appended_item_is_recommended_where_its_score_puts_it(package: Path, strategy: str) -> None:
    before = Recommender.from_pretrained(package)
    append(
        package,
        '{"id": "new", "fields": {"Title": "red paper rug"}}',
        '{"id": "n2", "fields": {"Title": "\u2028 pot"}}',
    )
    made = Recommender.from_pretrained(package, strategy=strategy, dtype="float32")
    assert len(made.catalogue) == 32
    assert made.catalogue.texts[:30] == before.catalogue.texts
    prompt = made.encoder.prompt([made.catalogue.tokens[i] for i in (3, 4)])
    exact = Exact(made.strategies.towers, made.catalogue)
    scores = exact(prompt, "catalogue") if strategy == "beam" else cosines(made, prompt)
    below = [made.ids[i] for i in np.flatnonzero(scores < scores[30]) if made.ids[i] not in HISTORY]
    assert len(below) > 3
    (own,) = made.recommend([HISTORY], 1, candidates=[["Red paper rug", *below]])
    assert [r.item for r in own] == ["new"]
    assert own[0].score == pytest.approx(scores[30], abs=1e-4)
    place = sum(scores > scores[30]) - sum(scores[[3, 4]] > scores[30])
    assert made.recommend([HISTORY], int(place) + 1)[0][-1].item == "new"


def test_texts_are_written_with_the_labels_the_model_was_trained_on(package: Path) -> None:
    info = json.loads((package / NAME).read_text())
    info["labels"] = ["Title", "Brand"]
    (package / NAME).write_text(json.dumps(info))
    append(package, '{"fields": {"Brand": "Bic", "Title": "pen"}, "id": "new", "count": 2}')
    made = Recommender.from_pretrained(package)
    missing = made.encoder.text.missing
    assert made.catalogue.texts[0] == f"Title: {made.catalogue.titles[0]}, Brand: {missing}"
    assert (made.catalogue.texts[30], made.catalogue.titles[30]) == ("Title: pen, Brand: Bic", "pen")
    assert made.catalogue.counts[30] == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "new", "fields": {"Title": "pen", "Colour": "red"}}', "no label `Colour`; use Title, or leave it out"),
        ('{"id": "new", "fields": {"Title": "pen"}', "Invalid JSON.*; write "),
        ('{"fields": {"Title": "pen"}}', "`id`: Field required; write "),
        ('{"id": 7, "fields": {"Title": "pen"}}', "`id`: Input should be a valid string; write "),
        ('{"id": "new"}', "`fields`: Field required; write .* labels of: Title"),
        ('{"id": "new", "fields": {}}', "says nothing of item `new`; write one of: Title"),
        ('{"id": "new", "fields": {"Title": "  "}}', "says nothing of item `new`"),
        ('{"id": "new", "fields": {"Title": 3}}', "`fields.Title`: Input should be a valid string"),
        ('{"id": "new", "fields": {"Title": "a\\nb"}}', "`Title` holds a line break"),
        ('{"id": "new", "fields": {"Title": "pen"}, "count": -1}', "`count`: "),
        ('{"id": "id3", "fields": {"Title": "another"}}', "a second item of id `id3`"),
    ],
)
def test_a_line_that_is_no_item_is_named(package: Path, line: str, said: str) -> None:
    append(package, line)
    with pytest.raises(InputError, match=rf"catalogue\.jsonl:32: .*{said}"):
        open_package(package)


def test_a_catalogue_without_items_or_in_another_encoding_is_named(package: Path) -> None:
    (package / CATALOGUE).write_text("\n\n")
    with pytest.raises(InputError, match="names no item"):
        open_package(package)
    (package / CATALOGUE).write_text('{"id": "é", "fields": {"Title": "thé"}}\n', encoding="latin-1")
    with pytest.raises(InputError, match="not UTF-8"):
        open_package(package)


@pytest.mark.parametrize("damage", ["missing", "a pointer of git LFS"])
def test_an_export_without_whole_weights_is_one_line(package: Path, damage: str) -> None:
    weights = package / "model.safetensors"
    weights.unlink()
    if damage != "missing":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        Recommender.from_pretrained(package)
    assert "\n" not in str(caught.value)


def test_memory_that_lacks_says_what_to_lower(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Recommender.from_pretrained(package)

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(made.strategies, "rank", full)
    with pytest.raises(RunError, match="out of memory with 1 users at once: set recommend.batch_tokens lower than"):
        made.recommend([HISTORY])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logit_scale", "NaN"),
        ("logit_scale", "1e300"),
        ("prior", "1e308"),
        ("prior", "-Infinity"),
        ("collaborative", "NaN"),
        ("seed", "-1"),
        ("samples", "1e9"),
        ("beams", "1e12"),
        ("rerank", "1e10"),
        ("k", "1e7"),
        ("temperature", "1e-300"),
        ("fusion", "Infinity"),
        ("batch_tokens", "1e15"),
    ],
)
def test_numbers_that_are_none_or_beyond_all_use_are_named(package: Path, key: str, value: str) -> None:
    info = json.loads((package / "calrec.json").read_text())
    (info["recommend"] if key in info["recommend"] else info)[key] = "here"
    (package / "calrec.json").write_text(json.dumps(info).replace('"here"', value))
    with pytest.raises(InputError, match=rf"calrec\.json: `(recommend\.)?{key}`: Input should be "):
        open_package(package)


@pytest.mark.parametrize("content", ["5", "", "[" * 100_000, "\xff"])
def test_a_calrec_json_that_is_none_is_one_line(package: Path, content: str) -> None:
    (package / "calrec.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"calrec\.json: ") as caught:
        open_package(package)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("strategy", ["sample", "beam"])
def test_room_is_asked_for_before_it_is_taken(package: Path, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without room kills the process: torch has no error for it on a CPU."""
    made = Recommender.from_pretrained(package, strategy=strategy, device="cpu")
    monkeypatch.setattr("calrec_lite.recommend.strategies.free_bytes", lambda device: 1000)
    with pytest.raises(RunError, match=r"1 users at once with recommend\.(samples|beams): \d+ may take .* GB"):
        made.recommend([HISTORY])


def test_a_list_longer_than_the_catalogue_is_as_long_as_that(package: Path) -> None:
    made = Recommender.from_pretrained(package, strategy="dense")
    assert len(made.recommend([[]], 10**15)[0]) == len(made.catalogue)
