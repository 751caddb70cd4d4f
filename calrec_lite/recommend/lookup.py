"""Names that users write -> items of a catalogue; what no item is called is said, with the nearest titles."""

import difflib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from calrec_lite.data.clean import plain
from calrec_lite.recommend.ground import normalised, one_line

NEAREST = 3  # titles that are shown for a name that is not found
COMPARED = 500  # titles that share most with it: letter by letter, a million would take a minute


class Lookup:
    """Finds items by their whole text, their title or an id.

    A name is taken as it is written, then as `prepare` would have cleaned it, and then without regard to case, where
    that leaves no doubt which item is meant.

    Args:
        texts, titles, ids: of each item.
        aliases: further ids -> item.
    """

    def __init__(
        self, texts: Sequence[str], titles: Sequence[str], ids: Sequence[str], aliases: Mapping[str, int]
    ) -> None:
        self.texts, self.titles = texts, titles
        self.ids: dict[str, int] = {}  # as they are written
        for name, item in (*zip(ids, range(len(ids))), *aliases.items()):
            self.ids.setdefault(name, item)

    def find(self, name: str) -> int | None:
        """The item of this name, the first of those whose text or title it is; None if none is, or case must decide."""
        if items := self._spelled.get(one_line(name)):
            return items[0]
        spellings = _spellings(name)
        if items := self._spelled.get(spellings[1]):
            return items[0]
        if name in self.ids:
            return self.ids[name]
        for names, spelled in ((self._folded, self._spelled), (self._folded_ids, self.ids)):
            for spelling in spellings:
                written = names.get(normalised(spelling), ())
                if len(written) == 1:
                    found = spelled[written[0]]
                    return found if isinstance(found, int) else found[0]
        return None

    def all_named(self, name: str) -> list[int]:
        """All items of this text or title, however it is written, or the item of this id."""
        spellings = _spellings(name)
        if name not in self.ids or spellings[0] in self._spelled:
            for spelling in spellings:
                if written := self._folded.get(normalised(spelling)):
                    return sorted(item for w in written for item in self._spelled[w])
        item = self.find(name)
        return [] if item is None else [item]

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those names that `find` does not find, each once."""
        return [name for name in dict.fromkeys(names) if self.find(name) is None]

    def nearest(self, name: str) -> list[str]:
        """Up to three titles that are written much like `name`, the nearest first."""
        key = normalised(plain(name))
        grams = _trigrams(key)
        by_key = {normalised(title): title for title in reversed(self.titles)}
        close = heapq.nlargest(COMPARED, by_key, lambda k: len(grams & _trigrams(k)) / (len(grams) + len(k)))
        return [by_key[k] for k in difflib.get_close_matches(key, close, NEAREST)]

    def described(self, name: str) -> str:
        """A name that is not found, and what may have been meant."""
        near = ", ".join(map(repr, self.nearest(name)))
        return f"{name!r}{f' (near it: {near})' if near else ''}"

    @cached_property
    def _spelled(self) -> dict[str, list[int]]:
        """Items by their text and by their title; where a text equals a title, the text counts."""
        columns: list[dict[str, list[int]]] = [{}, {}]
        for column, names in zip(columns, (self.texts, self.titles)):
            for item, name in enumerate(names):
                column.setdefault(one_line(name), []).append(item)
        return columns[1] | columns[0]

    @cached_property
    def _folded(self) -> dict[str, list[str]]:
        """The keys of `_spelled` that are one without regard to case."""
        return _by_case(self._spelled)

    @cached_property
    def _folded_ids(self) -> dict[str, list[str]]:
        return _by_case(self.ids)


def _by_case(names: Iterable[str]) -> dict[str, list[str]]:
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(normalised(name), []).append(name)
    return folded


def _spellings(name: str) -> tuple[str, str]:
    """As it is written, and as `prepare` cleans texts: a catalogue holds what was left after that."""
    return one_line(name), plain(name)


def _trigrams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}
