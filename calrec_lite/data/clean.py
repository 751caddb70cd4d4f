"""Item values as they stand in raw files -> one line of plain text each."""

import html
import math
import re
import unicodedata
from typing import Any

import numpy as np

# A tag begins with a letter (so that "I <3 you" is none); the scraped files also hold tags that never close.
TAG = re.compile(r"</?[A-Za-z!][^<>]*(?:>|$)")
# Control characters that are no white space, zero-width and direction marks, soft hyphens.
INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
TAG_REST = re.compile(r'"\s*/?>$')
SCRIPT = re.compile(r"\{[^}]*:|getTime\(\)|function\s*\(")
PRICE = re.compile(r"\$?\d[\d,]*(\.\d+)?(\s*-\s*\$?\d[\d,]*(\.\d+)?)?")


def plain(value: Any) -> str:
    """Any raw value as one line: lists joined with ` > ` (nested ones are flattened), markup removed, NFKC, trimmed."""
    return " > ".join(part for part in map(_plain_text, _flat(value)) if part)


def is_given(value: Any) -> bool:
    """Whether a raw value is more than white space."""
    return any(text.strip() for text in _flat(value))


def tidy_amazon(column: str, value: Any) -> str:
    """`plain`, but "" for the junk of the 2018 crawl: halves of tags and scripts as text, styles as prices."""
    text = plain(value)
    if TAG_REST.search(text) or SCRIPT.search(text):
        return ""
    return text if column != "price" or PRICE.fullmatch(text) else ""


def tidy_movielens(column: str, value: Any) -> str:
    """`plain`, with the genres `Action|Drama` (CSV) and `Action Drama` (RecBole) as `Action, Drama`."""
    text = plain(value)
    if column == "genres":
        return "" if text == "(no genres listed)" else text.replace("|", ", ")
    return text.replace(" ", ", ") if column == "class" else text


def _plain_text(text: str) -> str:
    text = unicodedata.normalize("NFKC", INVISIBLE.sub("", html.unescape(text)))
    return " ".join(TAG.sub(" ", text).split())


def _flat(value: Any) -> list[str]:
    if value is None:
        return []
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
    return [str(value)]
