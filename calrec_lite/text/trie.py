"""A catalogue's token sequences as a radix tree in flat arrays (CSR): only forks are nodes (docs/method.md, 5b)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from calrec_lite.text.token_lists import TokenLists

LONGEST = np.iinfo(np.int64).max  # tokens: no item has so many


@dataclass(frozen=True)
class Trie:
    """Forks and the token chains between them.

    A fork f has the edges `ptr[f] : ptr[f + 1]`. Edge e begins with the token `token[e]` and is the
    chain `chain[chain_ptr[e] : chain_ptr[e + 1]]`; it leads to the fork `dest[e]` or, if that is
    negative, to the item `~dest[e]`. Item i passes the edges `path[path_ptr[i] : path_ptr[i + 1]]`.

    Attributes:
        root: tokens all items share before the first fork.
        ptr: (F + 1,) edges of each fork; fork 0 is the first.
        token: (E,) first token of each edge.
        chain_ptr, chain: (E + 1,), (C,) the tokens of each edge, the first included.
        dest: (E,) fork, or ~item.
        depth: (F,) position within the item's tokens that the fork decides.
        path_ptr, path: (N + 1,), (P,) the edges each item takes.
        order: (N,) the items by their tokens, so that those below an edge stand side by side.
        begin, end: (E,), (E,) where in `order` the items below each edge begin and end.
    """

    root: np.ndarray
    ptr: np.ndarray
    token: np.ndarray
    chain_ptr: np.ndarray
    chain: np.ndarray
    dest: np.ndarray
    depth: np.ndarray
    path_ptr: np.ndarray
    path: np.ndarray
    order: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    @property
    def n_items(self) -> int:
        return len(self.path_ptr) - 1

    @cached_property
    def owner(self) -> np.ndarray:
        """(E,) the fork each edge leaves from."""
        return np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr))

    @cached_property
    def above(self) -> np.ndarray:
        """(F,) the edge that leads to each fork; -1 for the first."""
        above = np.full(len(self.depth), -1)
        inner = np.flatnonzero(self.dest >= 0)
        above[self.dest[inner]] = inner
        return above

    @cached_property
    def place(self) -> np.ndarray:
        """(N,) where each item stands in `order`."""
        return np.argsort(self.order)

    def open_edges(self, allowed: np.ndarray) -> np.ndarray:
        """(U, E) whether any item below each edge is allowed; `allowed` (U, N)."""
        before = np.zeros(self.n_items + 1, np.int32)  # how many allowed items stand before each place in `order`
        is_open = np.zeros((len(allowed), len(self.token)), np.bool_)
        for row, items in zip(is_open, allowed):
            np.cumsum(items[self.order], out=before[1:])
            np.greater(before[self.end], before[self.begin], out=row)
        return is_open

    def below(self, weights: np.ndarray) -> np.ndarray:
        """(E,) the sum of the items' weights (N,) below each edge."""
        return self._reduced(np.add, weights)

    def most(self, weights: np.ndarray) -> np.ndarray:
        """(E,) the largest of the items' weights (N,) below each edge."""
        return self._reduced(np.maximum, weights)

    def _reduced(self, function: np.ufunc, weights: np.ndarray) -> np.ndarray:
        ends = np.stack([self.begin, self.end], 1).ravel()
        reduced: np.ndarray = function.reduceat(np.append(weights[self.order], 0), ends)[::2]
        return reduced

    @classmethod
    def build(cls, sequences: Sequence[np.ndarray]) -> "Trie":
        """Build from distinct token sequences, none of which is a prefix of another.

        All forks of a level at once, so that nothing is an object of Python's for each item.

        Raises:
            ValueError: if one is (an item would end inside another).
        """
        if not len(sequences):
            raise ValueError("a trie needs at least one sequence")
        items = TokenLists.of(sequences)
        keys = list(items.keys())
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
        shared = _shared(items, order)
        root = shared[1:].min(initial=len(items[int(order[0])]))
        levels = _levels(items.lengths, order, shared)
        begin, end, start, stop, dest = (_joined([getattr(level, name) for level in levels]) for name in _EDGES)
        first = items.ptr[order[begin]]
        chain, _ = gather_ranges(first + start, first + stop)
        forks = _joined([np.bincount(level.fork, minlength=len(level.depth)) for level in levels])
        path_ptr, path = _paths(levels, len(order))
        return cls(
            root=items[int(order[0])][:root],
            ptr=_pointers(forks),
            token=items.flat[first + start].astype(np.int64),
            chain_ptr=_pointers(stop - start),
            chain=items.flat[chain].astype(np.int64),
            dest=dest,
            depth=_joined([level.depth for level in levels]),
            path_ptr=path_ptr,
            path=path,
            order=order,
            begin=begin,
            end=end,
        )


@dataclass(frozen=True)
class _Level:
    """Forks with as many forks above them, and the edges that leave them.

    Attributes:
        depth: of the forks, as in `Trie`. fork: of each edge, among these.
        begin, end, dest: of each edge, as in `Trie`. start, stop: between which positions of an item its chain lies.
        items, edges: who passes which edge, edges counted from the first of all.
    """

    depth: np.ndarray
    fork: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    dest: np.ndarray
    items: np.ndarray
    edges: np.ndarray


_EDGES = ("begin", "end", "start", "stop", "dest")


def _levels(lengths: np.ndarray, order: np.ndarray, shared: np.ndarray) -> list[_Level]:
    """From the first fork down; none where there is one item. `shared` as `_shared` gives it."""
    found: list[_Level] = []
    one = int(len(order) > 1)
    low, high = np.zeros(one, np.int64), np.full(one, len(order))  # of each fork, its part of `order`
    depth = np.full(one, shared[1:].min(initial=LONGEST))
    forks = edges = 0
    while len(low):
        places, owner = gather_ranges(low, high)
        agreed = shared[places]
        begins = (places == low[owner]) | (agreed == depth[owner])  # another token than the item before it
        first = np.flatnonzero(begins)
        begin, fork = places[first], owner[first]
        end = begin + np.diff(np.append(first, len(places)))
        agreed[first] = LONGEST
        inner = end - begin > 1
        stop = np.where(inner, np.minimum.reduceat(agreed, first), lengths[order[begin]])
        forks += len(low)
        dest = np.where(inner, forks - 1 + np.cumsum(inner), ~order[begin])
        passed = edges + np.cumsum(begins) - 1
        found.append(_Level(depth, fork, begin, end, depth[fork], stop, dest, order[places], passed))
        edges += len(first)
        low, high, depth = begin[inner], end[inner], stop[inner]
    return found


def _shared(items: TokenLists, order: np.ndarray) -> np.ndarray:
    """(N,) how many first tokens each place of `order` shares with the one before it; 0 for the first.

    Raises ValueError where those are all that the one before it has.
    """
    start, length = items.ptr[order], items.lengths[order]
    shared = np.zeros(len(order), np.int64)
    places, at = np.arange(1, len(order)), 0
    while len(places):
        if len(ended := places[length[places - 1] == at]):
            place = int(ended[0])
            raise ValueError(f"sequence {order[place - 1]} is a prefix of sequence {order[place]}")
        places = places[length[places] > at]
        places = places[items.flat[start[places] + at] == items.flat[start[places - 1] + at]]
        at += 1
        shared[places] = at
    return shared


def _paths(levels: Sequence[_Level], n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """`Trie.path_ptr` and `path`: an item passes an edge on each level until its leaf."""
    passed = np.zeros(n_items, np.int64)
    for level in levels:
        passed[level.items] += 1
    pointers = _pointers(passed)
    path = np.zeros(pointers[-1], np.int64)
    for depth, level in enumerate(levels):
        path[pointers[level.items] + depth] = level.edges
    return pointers, path


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _pointers(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def gather_ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flatten half-open ranges: (all their members, in order; the range each member belongs to)."""
    lengths = ends - starts
    owner = np.repeat(np.arange(len(starts)), lengths)
    offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return starts[owner] + offset, owner
