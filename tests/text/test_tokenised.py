"""A large catalogue is tokenised once; what is kept of it is used only where it is whole and of the same texts."""

import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from calrec_lite.files import cache_folder
from calrec_lite.recipe import Text
from calrec_lite.stored import MANIFEST
from calrec_lite.text import tokenised as module
from calrec_lite.text.encoding import Encoder
from calrec_lite.text.tokenised import NAME, Tokenised
from calrec_lite.text.trie import Trie
from tests.conftest import item_names

TEXTS = [f"Title: {name}" for name in item_names(50)]


@pytest.fixture(autouse=True)
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW", 10)
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))


class Counting(Encoder):
    """Counts the texts that it tokenises."""

    count = 0

    def items(self, texts, progress=False):
        self.count += len(texts)
        return super().items(texts, progress)


@pytest.fixture
def counting(encoder: Encoder) -> Counting:
    return Counting(encoder.tokenizer, encoder.text)


def assert_right(found: Tokenised, texts: list[str], encoder: Encoder) -> None:
    tokens = encoder.limit(Encoder(encoder.tokenizer, encoder.text).items(texts))
    assert [t.tolist() for t in found.tokens] == [t.tolist() for t in tokens]
    trie = Trie.build(tokens)
    for field in fields(Trie):
        assert np.array_equal(getattr(found.trie, field.name), getattr(trie, field.name))


def test_a_large_catalogue_is_tokenised_once(tmp_path: Path, counting: Counting) -> None:
    for _ in range(2):
        assert_right(Tokenised.of("shop", TEXTS, counting, beside=tmp_path), TEXTS, counting)
    assert counting.count == 50
    copy = shutil.copytree(tmp_path / NAME, tmp_path / "elsewhere" / NAME)  # without its times
    for file in copy.iterdir():
        os.utime(file)
    assert_right(Tokenised.of("shop", TEXTS, counting, beside=copy.parent), TEXTS, counting)
    assert counting.count == 50
    assert not cache_folder().exists()
    Tokenised.of("shop", TEXTS[:10], counting, beside=tmp_path / "few")
    assert not (tmp_path / "few").exists()


def cut(folder: Path) -> None:
    os.truncate(folder / "ids.npy", (folder / "ids.npy").stat().st_size - 8)


def one_byte(folder: Path) -> None:
    content = bytearray((folder / "dest.npy").read_bytes())
    content[-8] ^= 1
    (folder / "dest.npy").write_bytes(content)


def gone(folder: Path) -> None:
    (folder / MANIFEST).unlink()


@pytest.mark.parametrize("damage", [cut, one_byte, gone])
def test_what_is_damaged_is_made_anew(tmp_path: Path, counting: Counting, damage: Callable[[Path], None]) -> None:
    Tokenised.of("shop", TEXTS, counting, beside=tmp_path)
    damage(tmp_path / NAME)
    for _ in range(2):
        assert_right(Tokenised.of("shop", TEXTS, counting, beside=tmp_path), TEXTS, counting)
    assert counting.count == 100


def test_other_texts_and_other_settings_are_tokenised_anew(tmp_path: Path, counting: Counting) -> None:
    Tokenised.of("shop", TEXTS, counting, beside=tmp_path)
    other = [*TEXTS[:-1], "Title: new"]
    assert_right(Tokenised.of("shop", other, counting, beside=tmp_path), other, counting)
    short = Counting(counting.tokenizer, Text(max_item_tokens=8, next="Then:"))
    assert_right(Tokenised.of("shop", other, short, beside=tmp_path), other, short)
    assert short.count == 50


def test_where_nobody_writes_the_users_cache_keeps_it(
    tmp_path: Path, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        assert_right(Tokenised.of("shop", TEXTS, counting, beside=tmp_path / "file"), TEXTS, counting)
    assert counting.count == 50
    monkeypatch.setattr(module, "CATALOGUES", 1)
    Tokenised.of("shop", TEXTS[1:], counting)
    assert len(list((cache_folder() / "catalogues").glob("*/"))) == 1
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "file" / "cache"))
    assert_right(Tokenised.of("shop", TEXTS, counting, beside=tmp_path / "file"), TEXTS, counting)
