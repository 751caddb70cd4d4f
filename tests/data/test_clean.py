"""Item values as one line of plain text."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_lite.data.clean import Tally, as_written, is_given, plain, repaired, tidy_amazon, tidy_movielens, unmarked


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("  two\n\twords\u00a0here ", "two words here"),
        ("Java List<String>", "Java List<String>"),
        ("Pens <Blue", "Pens <Blue"),
        ("Tom &amp; Jerry, R&notes", "Tom &amp; Jerry, R&notes"),
        ("I <3 you, 2 < 3", "I <3 you, 2 < 3"),
        ("ﬁne ＡＢＣ １２", "fine ABC 12"),
        ("soft\u00adhyphen\u200b\ufeff", "softhyphen"),
        ("bell\x07", "bell"),
        (["Gift Cards", "", None, "Pens & Ink"], "Gift Cards > Pens & Ink"),
        ([["Toys", "Games"], ["Chess"]], "Toys > Games > Chess"),
        ({"a": "x", "b": ["y"]}, "x > y"),
        (1995.0, "1995"),
        (19.5, "19.5"),
        (None, ""),
        (float("nan"), ""),
        ([], ""),
        ("<br>", "<br>"),
    ],
)
def test_plain(value: Any, text: str) -> None:
    assert plain(value) == text
    assert repaired(value, False, Tally(), Tally())[0] == text


@pytest.mark.parametrize(
    ("value", "text", "written"),
    [
        (["Arts &amp; Crafts", "Pens"], "Arts & Crafts > Pens", "Arts & Crafts > Pens"),
        ("<i>Maximum</i> <b>PC</b><br />magazine", "Maximum PC magazine", "<i>Maximum</i> <b>PC</b><br />magazine"),
        ("cut <span class='x", "cut", "cut <span class='x"),
        ("I <3 you, 2 < 3", "I <3 you, 2 < 3", "I <3 you, 2 < 3"),
        ("<br>", "", "<br>"),
        ("10\u00b2 cafe\u0301\u200b", "102 café", "10² café"),
    ],
)
def test_of_html_entities_are_decoded_and_tags_taken_out(value: Any, text: str, written: str) -> None:
    assert unmarked(value) == text
    assert as_written(value, is_html=True) == written
    assert repaired(value, True, Tally(), Tally()) == (text, written)


def test_repairs_are_counted_with_three_examples() -> None:
    tags, characters = Tally(), Tally()
    for value in ("<b>a</b>", "<b>a</b>", "b &amp; c", "d²", "<i>", "<p>e™", "plain"):
        repaired(value, True, tags, characters)
    assert tags == Tally(5, [("<b>a</b>", "a"), ("b &amp; c", "b & c"), ("<i>", "")])
    assert characters == Tally(2, [("d²", "d2"), ("e™", "eTM")])


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
    assert tidy_amazon(column, unmarked(value)) == text


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
