"""Item values as they stand in raw files -> one line of plain text each."""

import html
import math
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

# A tag begins with a letter (so that "I <3 you" is none); the scraped files also hold tags that never close.
TAG = re.compile(r"</?[A-Za-z!][^<>]*(?:>|$)")
# Control characters that are no white space, zero-width and direction marks, soft hyphens.
INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
TAG_REST = re.compile(r'"\s*/?>$')
SCRIPT = re.compile(r"\{[^}]*:|getTime\(\)|function\s*\(")
PRICE = re.compile(r"\$?\d[\d,]*(\.\d+)?(\s*-\s*\$?\d[\d,]*(\.\d+)?)?")
EXAMPLES = 3


def plain(value: Any) -> str:
    """Any raw value as one line: lists joined with ` > ` (nested ones are flattened), NFKC, trimmed.

    Raises:
        ValueError: it holds what is no text: a truth value, bytes that are not UTF-8, an object of Python's.
    """
    return _joined(_spaced(_compatible(text)) for text in _flat(value))


def unmarked(value: Any) -> str:
    """`plain`, of HTML: entities are decoded, tags taken out, those that never close to the end of the value."""
    return _joined(_spaced(TAG.sub(" ", _compatible(html.unescape(text)))) for text in _flat(value))


def as_written(value: Any, is_html: bool = False) -> str:
    """One line that tells apart what a reader would: of HTML the entities are decoded, but no tag is taken out and no
    character replaced by a similar one."""
    texts = _flat(value)
    decoded = (INVISIBLE.sub("", html.unescape(text) if is_html else text) for text in texts)
    return _joined(_spaced(unicodedata.normalize("NFC", text)) for text in decoded)


def is_given(value: Any) -> bool:
    """Whether a raw value is more than white space."""
    return any(text.strip() for text in _flat(value))


@dataclass
class Tally:
    """How many values a repair changed, and the first three of them, before and after."""

    values: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, before: str, after: str) -> None:
        """One value that was changed."""
        self.values += 1
        if len(self.examples) < EXAMPLES and (before, after) not in self.examples:
            self.examples.append((before, after))


def repaired(value: Any, is_html: bool, html_tally: Tally, character_tally: Tally) -> tuple[str, str]:
    """(text, `as_written`) of a value; what was changed is added to the tallies."""
    texts = _flat(value)
    if all(text.isascii() and text.isprintable() and not (is_html and ("&" in text or "<" in text)) for text in texts):
        text = _joined(map(_spaced, texts))  # most values, at a fifth of the time
        return text, text
    stood = _joined(map(_spaced, texts))
    stripped = _joined(_spaced(TAG.sub(" ", html.unescape(text))) for text in texts) if is_html else stood
    text = unmarked(value) if is_html else plain(value)
    if stripped != stood:
        html_tally.add(stood, stripped)
    if text != stripped:
        character_tally.add(stripped, text)
    return text, as_written(value, is_html)


def tidy_amazon(column: str, text: str) -> str:
    """ "" for the junk of the 2018 crawl: halves of tags and scripts as text, styles as prices."""
    if TAG_REST.search(text) or SCRIPT.search(text):
        return ""
    return text if column != "price" or PRICE.fullmatch(text) else ""


def tidy_movielens(column: str, text: str) -> str:
    """The genres `Action|Drama` (CSV) and `Action Drama` (RecBole) as `Action, Drama`."""
    if column == "genres":
        return "" if text == "(no genres listed)" else text.replace("|", ", ")
    return text.replace(" ", ", ") if column == "class" else text


def tidy_recbole(column: str, text: str) -> str:
    """As `tidy_movielens`; the column `genre` is a list of words like `class`."""
    return tidy_movielens("class" if column == "genre" else column, text)


def _joined(texts: Any) -> str:
    return " > ".join(filter(None, texts))


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", INVISIBLE.sub("", text))


def _flat(value: Any) -> list[str]:
    """The texts in a value. Raises ValueError where Python's spelling is all there is of it as text."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes | bytearray):
        return [value.decode()]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, np.ndarray | np.generic):  # of Parquet read by pandas
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in _flat(part)]
    if isinstance(value, float) and not math.isfinite(value):
        return []
    if isinstance(value, float) and value.is_integer():  # a column of years with gaps reads as 1995.0
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | date | time | UUID):
        raise ValueError(f"`{value}` ({type(value).__name__}) is no text")
    return [str(value)]
