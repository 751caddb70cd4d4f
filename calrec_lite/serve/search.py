"""Items by words of their text, as somebody types them."""

from collections.abc import Mapping, Sequence

import numpy as np

from calrec_lite.recommend.ground import normalised
from calrec_lite.recommend.lookup import Lookup


class Search:
    """Finds the items whose values hold every word of a query, or its id.

    Args:
        fields: label -> value of each item.
        counts: (N,) how often each was trained on.
        lookup: names to items, for ids and for titles that are written much like the query.
    """

    def __init__(self, fields: Sequence[Mapping[str, str]], counts: np.ndarray, lookup: Lookup) -> None:
        self._texts = [normalised(" ".join(values.values())) for values in fields]
        self._titles = [normalised(title) for title in lookup.titles]
        self._counts, self._lookup = counts, lookup
        self._popular = np.argsort(-counts, kind="stable")

    def __call__(self, query: str, limit: int) -> tuple[list[int], bool]:
        """At most `limit` items, the best first; and whether they are only near to the query.

        First the item of that id, then titles that are the query, that begin with it, and all others; of each kind the
        most bought first. An empty query gives the most bought items.
        """
        words = normalised(query).split()
        if not words:
            return self._popular[:limit].tolist(), False
        found = [i for i, text in enumerate(self._texts) if all(word in text for word in words)]
        phrase = " ".join(words)
        found.sort(key=lambda i: (self._rank(i, phrase, words), -self._counts[i], i))
        by_id = self._lookup.find_id(query.strip())
        if by_id is not None:
            found = [by_id, *(i for i in found if i != by_id)]
        if found:
            return found[:limit], False
        near = [self._lookup.find(title) for title in self._lookup.nearest(query)]
        return [i for i in near if i is not None][:limit], True

    def _rank(self, item: int, phrase: str, words: Sequence[str]) -> int:
        title = self._titles[item]
        if title == phrase:
            return 0
        if title.startswith(phrase):
            return 1
        text = f" {self._texts[item]}"
        return 2 if all(f" {word}" in text for word in words) else 3
