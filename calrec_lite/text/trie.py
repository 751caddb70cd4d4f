"""A catalogue's token sequences as a radix tree in flat arrays (CSR): only forks are nodes (docs/method.md, 5b)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


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
    def passer(self) -> np.ndarray:
        """(P,) the item whose path each entry of `path` belongs to."""
        return np.repeat(np.arange(self.n_items), np.diff(self.path_ptr))

    @cached_property
    def place(self) -> np.ndarray:
        """(N,) where each item stands in `order`."""
        return np.argsort(self.order)

    @cached_property
    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """(E,), (E,) where in `order` the items below each edge begin and end."""
        begin = np.full(len(self.token), self.n_items)
        np.minimum.at(begin, self.path, self.place[self.passer])
        return begin, begin + np.bincount(self.path, minlength=len(self.token))

    def open_edges(self, allowed: np.ndarray) -> np.ndarray:
        """(U, E) whether any item below each edge is allowed; `allowed` (U, N)."""
        is_open = np.zeros((len(allowed), len(self.token)), np.bool_)
        for row, items in zip(is_open, allowed):
            row[self.path[items[self.passer]]] = True
        return is_open

    def below(self, weights: np.ndarray) -> np.ndarray:
        """(E,) the sum of the items' weights (N,) below each edge."""
        return np.bincount(self.path, np.repeat(weights, np.diff(self.path_ptr)), len(self.token))

    def most(self, weights: np.ndarray) -> np.ndarray:
        """(E,) the largest of the items' weights (N,) below each edge."""
        largest = np.zeros(len(self.token))
        np.maximum.at(largest, self.path, weights[self.passer])
        return largest

    @classmethod
    def build(cls, sequences: Sequence[np.ndarray]) -> "Trie":
        """Build from distinct token sequences, none of which is a prefix of another.

        Raises:
            ValueError: if one is (an item would end inside another).
        """
        if not sequences:
            raise ValueError("a trie needs at least one sequence")
        plain = [s.tolist() for s in sequences]
        order = sorted(range(len(plain)), key=plain.__getitem__)
        root_length = _shared(plain[order[0]], plain[order[-1]], 0)
        edges: list[list[tuple[int, int, int, int]]] = []  # fork -> (representative item, begin, end, dest)
        depth: list[int] = []
        paths: list[list[tuple[int, int]]] = [[] for _ in plain]  # item -> (fork, edge within the fork)
        todo = [(0, len(order), root_length)] if len(order) > 1 else []  # (low, high, depth of the fork)
        while todo:
            # forks are numbered as they are taken from the list: a child's number is known when it is put there
            nexts: list[tuple[int, int, int]] = []
            for low, high, at in todo:
                fork = len(edges)
                edges.append([])
                depth.append(at)
                for a, b in _runs(plain, order, low, high, at):
                    for i in order[a:b]:
                        paths[i].append((fork, len(edges[fork])))
                    item = order[a]
                    if b - a == 1:
                        edges[fork].append((item, at, len(plain[item]), ~item))
                        continue
                    end = _shared(plain[item], plain[order[b - 1]], at)
                    edges[fork].append((item, at, end, len(nexts)))  # numbered below
                    nexts.append((a, b, end))
            base = len(edges)
            for fork in range(base - len(todo), base):
                edges[fork] = [(i, a, b, d + base if d >= 0 else d) for i, a, b, d in edges[fork]]
            todo = nexts
        return _flatten(plain, root_length, edges, depth, paths, order)


def _shared(a: list[int], b: list[int], start: int) -> int:
    """Length of the common prefix of two sequences known to agree before `start`."""
    n = start
    while n < len(a) and n < len(b) and a[n] == b[n]:
        n += 1
    return n


def _runs(plain: list[list[int]], order: list[int], low: int, high: int, at: int) -> list[tuple[int, int]]:
    """Runs of sorted sequences `low : high` that share the token at position `at`."""
    if len(plain[order[low]]) <= at:
        raise ValueError(f"sequence {order[low]} is a prefix of sequence {order[min(low + 1, high - 1)]}")
    cuts = [low]
    for i in range(low + 1, high):
        if plain[order[i]][at] != plain[order[i - 1]][at]:
            cuts.append(i)
    return list(zip(cuts, [*cuts[1:], high]))


def _flatten(
    plain: list[list[int]],
    root_length: int,
    edges: list[list[tuple[int, int, int, int]]],
    depth: list[int],
    paths: list[list[tuple[int, int]]],
    order: list[int],
) -> Trie:
    ptr = np.cumsum([0, *map(len, edges)])
    flat = [edge for fork in edges for edge in fork]
    chains = [plain[i][a:b] for i, a, b, _ in flat]
    return Trie(
        root=np.array(plain[0][:root_length] if edges else plain[0], np.int64),
        ptr=ptr,
        token=np.array([c[0] for c in chains], np.int64),
        chain_ptr=np.cumsum([0, *map(len, chains)]),
        chain=np.array([t for c in chains for t in c], np.int64),
        dest=np.array([d for *_, d in flat], np.int64),
        depth=np.array(depth, np.int64),
        path_ptr=np.cumsum([0, *map(len, paths)]),
        path=np.array([ptr[f] + e for path in paths for f, e in path], np.int64),
        order=np.array(order, np.int64),
    )


def gather_ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flatten half-open ranges: (all their members, in order; the range each member belongs to)."""
    lengths = ends - starts
    owner = np.repeat(np.arange(len(starts)), lengths)
    offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return starts[owner] + offset, owner
