"""Tables: all of their text within the width of a terminal, or a row a line; foreign text escaped."""

import io
import sys

import pytest
from rich.cells import cell_len

from calrec_lite.table import fitted, shown, tabbed

EVIL = "\x1b]0;mine\x07 [red]b"
ROWS = [
    ["1", "A title of many words that goes on and on, longer than the terminal is wide", "B0012", "-1.23"],
    ["2", EVIL, "x" * 50, "10.00"],
    ["3", "日本語の長い題名" * 5, "b", ""],
]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_character_is_lost_and_no_line_is_too_wide(width: int) -> None:
    text = fitted(["#", "title", "id", "score"], ROWS, width, (1, 2))
    assert all(cell_len(line) <= width for line in text.splitlines())
    letters = "".join(text.split())
    for kept in ("\\x1b", "[red]", "10.00", "-1.23", "B0012"):
        assert kept in letters or width == 40
    assert sum(letters.count(letter) for letter in "日本語の長い題名") == 40
    assert letters.count("x") == 50 + EVIL.count("x") + 2  # those of the escapes
    assert "\x1b" not in text
    assert "…" not in text


def test_elsewhere_a_row_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tabbed([["1", "a\tb\nc", EVIL]]) == "1\ta b c\t\\x1b]0;mine\\x07 [red]b"
    head, rows = ["name", "value"], [["a " * 30, "1"], ["b", "22"]]
    plain = shown(head, rows)
    assert len(plain.splitlines()) == 4
    assert plain.startswith("| name ")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    assert "|" not in shown(head, rows)
    assert max(map(len, shown(head, rows).splitlines())) <= 40
