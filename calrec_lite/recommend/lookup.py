"""Names that users write -> items of a catalogue; what no item is called is said, with the nearest titles."""

import difflib
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from calrec_lite.data.clean import plain, unmarked
from calrec_lite.recommend.ground import normalised, one_line

NEAREST = 3  # titles that are shown for a name that is not found
KEPT = 1 << 16  # names whose item is remembered: a file of users names the same ones again and again
KEPT_LENGTH = 256  # characters of such a name
UNKNOWN = -1
COMPARED = 500  # titles that share most with it: letter by letter, a million would take a minute


class Lookup:
    """Finds items by their whole text, their title or an id.

    A name is taken as it is written, then as `prepare` would have cleaned it, and then without regard to case, where
    that leaves no doubt which item is meant.

    Args:
        texts, titles, ids: of each item.
        aliases: further ids -> item.
        html: whether `prepare` took the texts for HTML: `Tom &amp; Jerry` is `Tom & Jerry` then, and a text else.
    """

    def __init__(
        self,
        texts: Sequence[str],
        titles: Sequence[str],
        ids: Sequence[str],
        aliases: Mapping[str, int],
        html: bool = False,
    ) -> None:
        self.texts, self.titles, self.ids, self.aliases = texts, titles, ids, aliases
        self._cleaned = unmarked if html else plain
        self._found: dict[str, int | None] = {}

    def find(self, name: str) -> int | None:
        """The item of this name, the first of those whose text or title it is; None if none is, or case must decide."""
        item = self._found.get(name, UNKNOWN)
        if item == UNKNOWN:
            item = self._looked_for(name)
            if len(self._found) >= KEPT:
                self._found.clear()
            if len(name) <= KEPT_LENGTH:
                self._found[name] = item
        return item

    def _looked_for(self, name: str) -> int | None:
        for spelling in self._spellings(name):
            if items := self._spelled(spelling):
                return items[0]
        if (item := self.find_id(name)) is not None:
            return item
        for spelling in self._spellings(name):
            if len(written := self._written(spelling)) == 1:
                return self._spelled(written.pop())[0]
        for spelling in self._spellings(name):
            if len(ids := {self._id_names[i] for i in self._folded_ids.find(normalised(spelling))}) == 1:
                return self.find_id(ids.pop())
        return None

    def find_id(self, name: str) -> int | None:
        """The item of this id; None if none has it."""
        return next(iter(self._ids.find(name)), self.aliases.get(name))

    def all_named(self, name: str) -> list[int]:
        """All items of this text or title, however it is written, or the item of this id."""
        spellings = self._spellings(name)
        if self.find_id(name) is None or self._spelled(spellings[0]):
            for spelling in spellings:
                if written := self._written(spelling):
                    return sorted(item for w in written for item in self._spelled(w))
        item = self.find(name)
        return [] if item is None else [item]

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those names that `find` does not find, each once."""
        return [name for name in dict.fromkeys(names) if self.find(name) is None]

    def nearest(self, name: str) -> list[str]:
        """Up to three titles that hold all words of `name`, the shortest first, or are written much like it."""
        key = normalised(self._cleaned(name))
        grams = {key[i : i + 3] for i in range(max(1, len(key) - 2))}
        by_key = {normalised(title): title for title in reversed(self.titles)}
        close = heapq.nlargest(COMPARED, by_key, lambda k: sum(g in k for g in grams) / (len(grams) + len(k)))
        words = key.split()
        holding = heapq.nsmallest(NEAREST, (k for k in by_key if words and all(word in k for word in words)), len)
        near = dict.fromkeys([*holding, *difflib.get_close_matches(key, close, NEAREST)])
        return [by_key[k] for k in list(near)[:NEAREST]]

    def described(self, name: str) -> str:
        """A name that is not found, and what may have been meant."""
        near = ", ".join(map(repr, self.nearest(name)))
        return f"{name!r}{f' (near it: {near})' if near else ''}"

    def _spellings(self, name: str) -> tuple[str, str]:
        """As it is written, and as `prepare` cleans texts: a catalogue holds what was left after that."""
        return one_line(name), self._cleaned(name)

    def _spelled(self, name: str) -> list[int]:
        """Items by their text or by their title, on one line; where a text equals a title, the text counts."""
        return self._texts.find(name) or self._titles.find(name)

    def _written(self, name: str) -> set[str]:
        """The texts and titles, on one line, that are `name` without regard to case."""
        folded = normalised(name)
        names = {one_line(self.texts[i]) for i in self._folded_texts.find(folded)}
        return names | {one_line(self.titles[i]) for i in self._folded_titles.find(folded)}

    @cached_property
    def _texts(self) -> "_Index":
        return _Index(self.texts, one_line)

    @cached_property
    def _titles(self) -> "_Index":
        return _Index(self.titles, one_line)

    @cached_property
    def _ids(self) -> "_Index":
        return _Index(self.ids, str)

    @cached_property
    def _folded_texts(self) -> "_Index":
        return _Index(self.texts, normalised)

    @cached_property
    def _folded_titles(self) -> "_Index":
        return _Index(self.titles, normalised)

    @cached_property
    def _id_names(self) -> Sequence[str]:
        return [*self.ids, *self.aliases]

    @cached_property
    def _folded_ids(self) -> "_Index":
        return _Index(self._id_names, normalised)


class _Index:
    """Where in `names` a spelling stands. Hashes in order: a dict of a million names takes ten times the memory.

    Args:
        key: the spelling of a name by which it is found.
    """

    def __init__(self, names: Sequence[str], key: Callable[[str], str]) -> None:
        self._names, self._key = names, key
        hashes = np.fromiter((hash(key(name)) for name in names), np.int64, len(names))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def find(self, spelling: str) -> list[int]:
        """The places of the names of this spelling, ascending."""
        first, last = (np.searchsorted(self._hashes, hash(spelling), side) for side in ("left", "right"))
        return [i for i in self._order[first:last].tolist() if self._key(self._names[i]) == spelling]
