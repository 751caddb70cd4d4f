"""The exact log-probability of chosen items, all of a user's in one forward below one prompt (docs/method.md, 6c)."""

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
class _Part:
    """One user's part of the trie: the `edges` its items pass (ascending), and those of them that are `fed`."""

    edges: np.ndarray
    fed: np.ndarray


@torch.no_grad()
def item_logprobs(tree: PromptTree, trie: Trie, paths: TrieTensors, items: Sequence[np.ndarray]) -> list[np.ndarray]:
    """log P of each user's items after the prompt, as `beam_search` scores them: (U,) arrays like `items`.

    The items' paths are laid out as a tree under one attention mask, so that prefixes they share are computed once.

    Args:
        tree: the prompts, nothing below them yet.
        trie, paths: of the catalogue, `paths` on the tree's device.
        items: for each user some catalogue indices.
    """
    root = paths.feed_root(tree)
    most = max(map(len, items), default=0)
    blocks = [
        _below_root(tree, trie, paths, [own[at : at + BLOCK] for own in items], root)
        for at in range(0, max(1, most), BLOCK)
    ]
    return [np.concatenate(own) for own in zip(*blocks, strict=True)]


@torch.no_grad()
def catalogue_logprobs(tree: PromptTree, trie: Trie, paths: TrieTensors) -> np.ndarray:
    """(U, N) log P of every item of a (small) catalogue: what a search is checked against."""
    root = paths.feed_root(tree)
    order = np.argsort(_branch(trie), kind="stable")
    found = np.zeros((len(tree), trie.n_items))
    for at in range(0, trie.n_items, BLOCK):
        block = order[at : at + BLOCK]
        found[:, block] = np.stack(_below_root(tree, trie, paths, [block] * len(tree), root))
    return found


def _branch(trie: Trie) -> np.ndarray:
    """(N,) the first edge of each item's path: items of one branch share the most tokens."""
    return trie.path[trie.path_ptr[:-1]] if len(trie.path) else np.zeros(trie.n_items, np.int64)


def _below_root(
    tree: PromptTree, trie: Trie, paths: TrieTensors, items: Sequence[np.ndarray], root: Tensor
) -> list[np.ndarray]:
    parts = [_part(trie, own, paths.score == "vocabulary") for own in items]
    logp = _edge_logprobs(tree, trie, paths, parts)
    scores = []
    for own, part, of, start in zip(items, parts, logp, root.double().cpu().numpy()):
        passed, item = gather_ranges(trie.path_ptr[own], trie.path_ptr[own + 1])
        at = np.searchsorted(part.edges, trie.path[passed])
        scores.append(start + np.bincount(item, of[at], len(own)))
    return scores


def _part(trie: Trie, items: np.ndarray, spelled: bool) -> _Part:
    passed, _ = gather_ranges(trie.path_ptr[items], trie.path_ptr[items + 1])
    edges = np.unique(trie.path[passed])
    return _Part(edges, edges if spelled else edges[trie.dest[edges] >= 0])


def _edge_logprobs(tree: PromptTree, trie: Trie, paths: TrieTensors, parts: Sequence[_Part]) -> list[np.ndarray]:
    """For each user log P of its edges, like `part.edges`."""
    device, head = tree.device, tree.towers.head
    users, edges = _flat(parts, "edges", device)
    fed_user, fed = _flat(parts, "fed", device)
    logp = torch.zeros(len(edges), dtype=torch.double, device=device)
    width = max((len(p.fed) for p in parts), default=0)
    lengths = torch.zeros(len(parts), max(width, 1), dtype=torch.long, device=device)
    ends = tree.states[:, :1].expand(-1, 1, -1)  # (U, 1 + M, D): the root's state, then that after each chain
    if width:
        own, tokens = paths.chains(fed)
        slot = _slots(parts, device)
        above = torch.full_like(lengths, -1)
        lengths[fed_user, slot] = own
        above[fed_user, slot] = _above(trie, parts, device)
        states = tree.forest(above, lengths, tokens)  # (C, D)
        last = states.new_zeros(len(parts), width, states.shape[-1])
        last[fed_user, slot] = states[own.cumsum(0) - 1]
        ends = torch.cat([ends, last], 1)
        rest = paths.rest_logprobs(states, head, own, tokens).double()
        logp[_position(parts, device)] += rest
    logp += _first_tokens(trie, paths, parts, ends, head, users, edges)
    return list(np.split(logp.cpu().numpy(), np.cumsum([len(p.edges) for p in parts])[:-1]))


def _first_tokens(
    trie: Trie, paths: TrieTensors, parts: Sequence[_Part], ends: Tensor, head: Tensor, users: Tensor, edges: Tensor
) -> Tensor:
    """(P,) log P of the first token of each user's edges among those of its fork."""
    device = ends.device
    forks = [np.unique(trie.owner[p.edges]) for p in parts]  # of each user, the forks its edges leave from
    holder = [np.searchsorted(p.fed, trie.above[f]) + 1 if len(f) else f for p, f in zip(parts, forks)]
    holder = [np.where(trie.above[f] < 0, 0, h) for f, h in zip(forks, holder)]
    user = np.repeat(np.arange(len(parts)), [len(f) for f in forks])
    flat = torch.from_numpy(np.concatenate(forks).astype(np.int64)).to(device)
    place = torch.from_numpy(np.concatenate(holder).astype(np.int64)).to(device)
    states = ends[torch.from_numpy(user).to(device), place]  # (forks of all users, D)
    children, parent = paths.children(flat)
    logp = paths.child_logprobs(states, head, children, parent)
    key = torch.from_numpy(user).to(device)[parent] * (len(paths.token) + 1) + children  # ascending
    return logp[torch.searchsorted(key, users * (len(paths.token) + 1) + edges)].double()


def _flat(parts: Sequence[_Part], name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    values = [getattr(p, name) for p in parts]
    user = np.repeat(np.arange(len(parts)), [len(v) for v in values])
    return torch.from_numpy(user).to(device), torch.from_numpy(np.concatenate(values).astype(np.int64)).to(device)


def _slots(parts: Sequence[_Part], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate([np.arange(len(p.fed)) for p in parts])).to(device)


def _above(trie: Trie, parts: Sequence[_Part], device: torch.device) -> Tensor:
    """For each fed edge the place, among its user's, of the edge it hangs below; -1 for those at the root."""
    found = []
    for part in parts:
        above = trie.above[trie.owner[part.fed]]
        found.append(np.where(above < 0, -1, np.searchsorted(part.fed, above)))
    return torch.from_numpy(np.concatenate(found).astype(np.int64)).to(device)


def _position(parts: Sequence[_Part], device: torch.device) -> Tensor:
    """For each fed edge its place among all users' edges."""
    offset = np.cumsum([0, *(len(p.edges) for p in parts)])
    found = [o + np.searchsorted(p.edges, p.fed) for o, p in zip(offset, parts)]
    return torch.from_numpy(np.concatenate(found)).to(device)
