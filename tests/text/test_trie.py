"""The radix tree: every item is a path, every fork really forks."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calrec_lite.text.token_lists import TokenLists
from calrec_lite.text.trie import Trie, gather_ranges

# a last token (0) that occurs nowhere else makes any set of distinct sequences free of prefixes
sequences = st.sets(st.lists(st.integers(1, 4), max_size=7).map(tuple), min_size=1, max_size=40).map(
    lambda found: [np.array([*s, 0]) for s in sorted(found)]
)


def spelled(trie: Trie, item: int) -> list[int]:
    edges = trie.path[trie.path_ptr[item] : trie.path_ptr[item + 1]]
    return [
        *trie.root.tolist(),
        *(t for e in edges for t in trie.chain[trie.chain_ptr[e] : trie.chain_ptr[e + 1]].tolist()),
    ]


@settings(max_examples=200, deadline=None)
@given(sequences)
def test_paths_spell_the_items(items: list[np.ndarray]) -> None:
    trie = Trie.build(items)
    assert trie.n_items == len(items)
    for i, tokens in enumerate(items):
        assert spelled(trie, i) == tokens.tolist()
        edges = trie.path[trie.path_ptr[i] : trie.path_ptr[i + 1]]
        if len(edges):
            assert trie.dest[edges[-1]] == ~i
        forks = trie.owner[edges]
        assert trie.depth[forks].tolist() == sorted(trie.depth[forks].tolist())
        assert [tokens[d] for d in trie.depth[forks]] == trie.token[edges].tolist()


@settings(max_examples=200, deadline=None)
@given(sequences)
def test_every_fork_has_distinct_children_and_every_item_one_leaf(items: list[np.ndarray]) -> None:
    trie = Trie.build(items)
    for low, high in zip(trie.ptr[:-1], trie.ptr[1:]):
        assert high - low >= 2
        assert len(set(trie.token[low:high].tolist())) == high - low
    leaves = sorted((~trie.dest[trie.dest < 0]).tolist())
    assert leaves == (list(range(len(items))) if len(items) > 1 else [])


def test_a_prefix_of_another_item_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix"):
        Trie.build([np.array([1, 2]), np.array([1, 2, 3])])


def test_gather_ranges() -> None:
    members, owner = gather_ranges(np.array([5, 0, 7]), np.array([7, 0, 10]))
    assert members.tolist() == [5, 6, 7, 8, 9]
    assert owner.tolist() == [0, 0, 2, 2, 2]


@settings(max_examples=100, deadline=None)
@given(sequences)
def test_items_below_an_edge_stand_side_by_side(items: list[np.ndarray]) -> None:
    trie = Trie.build(items)
    assert [items[i].tolist() for i in trie.order] == sorted(t.tolist() for t in items)
    below: list[set[int]] = [set() for _ in trie.token]
    for i in range(len(items)):
        for e in trie.path[trie.path_ptr[i] : trie.path_ptr[i + 1]]:
            below[e].add(i)
    assert [set(trie.order[a:b].tolist()) for a, b in zip(trie.begin, trie.end)] == below
    weights = np.arange(1.0, len(items) + 1)
    assert trie.below(weights).tolist() == [sum(weights[i] for i in some) for some in below]
    assert trie.most(weights).tolist() == [max(weights[i] for i in some) for some in below]
    allowed = np.stack([np.arange(len(items)) % n == 0 for n in (1, 2, 3)])
    assert trie.open_edges(allowed).tolist() == [[bool(row[list(some)].any()) for some in below] for row in allowed]


def test_a_token_of_a_large_catalogue_takes_few_bytes() -> None:
    rng = np.random.default_rng(0)
    items = TokenLists.of([np.append(rng.integers(300, 50_000, 20), n) for n in range(4000)])
    tracemalloc.start()
    try:
        Trie.build(items)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * len(items.flat)  # a list of ints takes 40 alone, and three of them stood beside each other
