"""The exact log-probability of chosen items: one prompt and one forward for all of a user (docs/method.md, 6c)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calrec_lite.decode.prompt_tree import PromptTree
from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.text.trie import Trie, gather_ranges

BLOCK = 256  # items of a user scored in one forward: its mask grows with the square of their tokens


@dataclass(frozen=True)
class _Subtrie:
    """One user's part of the trie: the `edges` on its items' paths (ascending), and which of them are `fed`."""

    edges: np.ndarray
    fed: np.ndarray


@torch.no_grad()
def item_logprobs(tree: PromptTree, trie: Trie, paths: TrieTensors, items: Sequence[np.ndarray]) -> list[np.ndarray]:
    """log P of each user's items after the prompt, as `beam_search` scores them: an array a user, like `items`.

    The items' paths form a tree under one attention mask, so that prefixes they share are computed once.

    Args:
        tree: the prompts, without continuations.
        trie, paths: of the catalogue, `paths` on the tree's device and for the tree's users.
        items: for each user some catalogue indices.
    """
    root = paths.feed_root(tree)
    longest = max(map(len, items), default=0)
    blocks = [
        _block_logprobs(tree, trie, paths, [user_items[start : start + BLOCK] for user_items in items], root)
        for start in range(0, max(1, longest), BLOCK)
    ]
    return [np.concatenate(user_blocks) for user_blocks in zip(*blocks, strict=True)]


@torch.no_grad()
def catalogue_logprobs(tree: PromptTree, trie: Trie, paths: TrieTensors) -> np.ndarray:
    """(U, N) log P of every item of a (small) catalogue: what a search is checked against."""
    root = paths.feed_root(tree)
    order = np.argsort(_first_edges(trie), kind="stable")
    logp = np.zeros((len(tree), trie.n_items))
    for start in range(0, trie.n_items, BLOCK):
        block = order[start : start + BLOCK]
        logp[:, block] = np.stack(_block_logprobs(tree, trie, paths, [block] * len(tree), root))
    return logp


def _first_edges(trie: Trie) -> np.ndarray:
    """(N,) the first edge of each item's path: items of one branch share the most tokens."""
    return trie.path[trie.path_ptr[:-1]] if len(trie.path) else np.zeros(trie.n_items, np.int64)


def _block_logprobs(
    tree: PromptTree, trie: Trie, paths: TrieTensors, items: Sequence[np.ndarray], root: Tensor
) -> list[np.ndarray]:
    subtries = [_subtrie(trie, user_items, paths.score == "vocabulary") for user_items in items]
    logprobs = _edge_logprobs(tree, trie, paths, subtries)
    scores = []
    for user_items, subtrie, edge_logp, root_logp in zip(items, subtries, logprobs, root.double().cpu().numpy()):
        steps, item = gather_ranges(trie.path_ptr[user_items], trie.path_ptr[user_items + 1])
        places = np.searchsorted(subtrie.edges, trie.path[steps])
        scores.append(root_logp + np.bincount(item, edge_logp[places], len(user_items)))
    return scores


def _subtrie(trie: Trie, items: np.ndarray, scores_forced: bool) -> _Subtrie:
    steps, _ = gather_ranges(trie.path_ptr[items], trie.path_ptr[items + 1])
    edges = np.unique(trie.path[steps])
    return _Subtrie(edges, edges if scores_forced else edges[trie.dest[edges] >= 0])


def _edge_logprobs(tree: PromptTree, trie: Trie, paths: TrieTensors, subtries: list[_Subtrie]) -> list[np.ndarray]:
    """For each user log P of its edges, like `subtrie.edges`."""
    device, head = tree.device, tree.towers.head
    users, edges = _flatten(subtries, "edges", device)
    fed_user, fed = _flatten(subtries, "fed", device)
    logp = torch.zeros(len(edges), dtype=torch.double, device=device)
    width = max((len(s.fed) for s in subtries), default=0)
    lengths = torch.zeros(len(subtries), max(width, 1), dtype=torch.long, device=device)
    ends = tree.states[:, :1].expand(-1, 1, -1)  # (U, 1 + M, D): the root's state, then the state after each chain
    if width:
        chain_lengths, tokens = paths.chains(fed)
        slot = _fed_slots(subtries, device)
        above = torch.full_like(lengths, -1)
        lengths[fed_user, slot] = chain_lengths
        above[fed_user, slot] = _edges_above(trie, subtries, device)
        states = tree.forest(above, lengths, tokens)  # (C, D)
        last = states.new_zeros(len(subtries), width, states.shape[-1])
        last[fed_user, slot] = states[chain_lengths.cumsum(0) - 1]
        ends = torch.cat([ends, last], 1)
        rest = paths.rest_logprobs(states, head, chain_lengths, tokens).double()
        logp[_fed_positions(subtries, device)] += rest
    logp += _first_tokens(trie, paths, subtries, ends, head, users, edges)
    return list(np.split(logp.cpu().numpy(), np.cumsum([len(s.edges) for s in subtries])[:-1]))


def _first_tokens(
    trie: Trie, paths: TrieTensors, subtries: list[_Subtrie], ends: Tensor, head: Tensor, users: Tensor, edges: Tensor
) -> Tensor:
    """(P,) log P of the first token of each user's edges among those of its fork."""
    device = ends.device
    forks = [np.unique(trie.owner[s.edges]) for s in subtries]  # of each user, the forks its edges leave from
    columns = [np.searchsorted(s.fed, trie.above[f]) + 1 if len(f) else f for s, f in zip(subtries, forks)]
    columns = [np.where(trie.above[f] < 0, 0, c) for f, c in zip(forks, columns)]
    user = torch.from_numpy(np.repeat(np.arange(len(subtries)), [len(f) for f in forks])).to(device)
    all_forks = torch.from_numpy(np.concatenate(forks).astype(np.int64)).to(device)
    column = torch.from_numpy(np.concatenate(columns).astype(np.int64)).to(device)
    states = ends[user, column]  # (forks of all users, D)
    children, parent = paths.children(all_forks)
    logp = paths.child_logprobs(states, head, children, parent, user)
    key = user[parent] * (len(paths.token) + 1) + children  # ascending
    return logp[torch.searchsorted(key, users * (len(paths.token) + 1) + edges)].double()


def _flatten(subtries: Sequence[_Subtrie], field: str, device: torch.device) -> tuple[Tensor, Tensor]:
    values = [getattr(s, field) for s in subtries]
    user = np.repeat(np.arange(len(subtries)), [len(v) for v in values])
    return torch.from_numpy(user).to(device), torch.from_numpy(np.concatenate(values).astype(np.int64)).to(device)


def _fed_slots(subtries: Sequence[_Subtrie], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate([np.arange(len(s.fed)) for s in subtries])).to(device)


def _edges_above(trie: Trie, subtries: Sequence[_Subtrie], device: torch.device) -> Tensor:
    """For each fed edge the place, among its user's fed edges, of the edge before it; -1 for those at the root."""
    places = []
    for subtrie in subtries:
        above = trie.above[trie.owner[subtrie.fed]]
        places.append(np.where(above < 0, -1, np.searchsorted(subtrie.fed, above)))
    return torch.from_numpy(np.concatenate(places).astype(np.int64)).to(device)


def _fed_positions(subtries: Sequence[_Subtrie], device: torch.device) -> Tensor:
    """For each fed edge its place among all users' edges."""
    offset = np.cumsum([0, *(len(s.edges) for s in subtries)])
    positions = [o + np.searchsorted(s.edges, s.fed) for o, s in zip(offset, subtries)]
    return torch.from_numpy(np.concatenate(positions)).to(device)
