"""Item values as one line of plain text."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_lite.data.clean import is_given, plain, tidy_amazon, tidy_movielens


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("  two\n\twords\u00a0here ", "two words here"),
        ("Arts &amp; Crafts", "Arts & Crafts"),
        ("<i>Maximum</i> <b>PC</b><br />magazine", "Maximum PC magazine"),
        ("cut <span class='x", "cut"),
        ("I <3 you, 2 < 3", "I <3 you, 2 < 3"),
        ("ﬁne ＡＢＣ １２", "fine ABC 12"),
        ("soft\u00adhyphen\u200b\ufeff", "softhyphen"),
        ("bell\x07", "bell"),
        (["Gift Cards", "", None, "Pens &amp; Ink"], "Gift Cards > Pens & Ink"),
        ([["Toys", "Games"], ["Chess"]], "Toys > Games > Chess"),
        ({"a": "x", "b": ["y"]}, "x > y"),
        (1995.0, "1995"),
        (19.5, "19.5"),
        (None, ""),
        (float("nan"), ""),
        ([], ""),
        ("<br>", ""),
    ],
)
def test_plain(value: Any, text: str) -> None:
    assert plain(value) == text


@given(st.recursive(st.none() | st.text() | st.floats() | st.integers(), st.lists))
def test_plain_is_one_trimmed_normalised_line(value: Any) -> None:
    text = plain(value)
    assert text == " ".join(text.split())
    assert text.isprintable() or not any(c in text for c in "\n\r\t\x00\x1f\u200b\ufeff")
    assert unicodedata.is_normalized("NFKC", text)
    assert is_given(value) or not text


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("title", '<span class="a-size-medium a-color-secondary"', ""),
        ("title", ' Magazines" />', ""),
        ("title", "var aPageStart = (new Date()).getTime();", ""),
        ("title", "Woman's Day", "Woman's Day"),
        ("price", ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selec", ""),
        ("price", "\n\n\n<script", ""),
        ("price", "$1,299.00", "$1,299.00"),
        ("price", "$5.00 - $12.50", "$5.00 - $12.50"),
        ("price", "from 5 dollars", ""),
        ("brand", "from 5 dollars", "from 5 dollars"),
    ],
)
def test_amazon_junk_is_no_text(column: str, value: str, text: str) -> None:
    assert tidy_amazon(column, value) == text


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("genres", "Action|Sci-Fi", "Action, Sci-Fi"),
        ("genres", "(no genres listed)", ""),
        ("class", "Children's Comedy", "Children's, Comedy"),
        ("title", "Love | Hate", "Love | Hate"),
    ],
)
def test_genres_read_as_a_list(column: str, value: str, text: str) -> None:
    assert tidy_movielens(column, value) == text
