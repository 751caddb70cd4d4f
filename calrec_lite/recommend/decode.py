"""Generation over a shared prompt cache: beam search that can only write catalogue items, and the paper's sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calrec_lite.model.losses import segment_logsumexp
from calrec_lite.recommend.tree import PromptTree
from calrec_lite.text.trie import Trie, gather_ranges


@dataclass(frozen=True)
class Ranked:
    """One user's items, best first, with the score each was ranked by and how it came about."""

    items: np.ndarray
    scores: np.ndarray
    why: list[str]


@dataclass
class _Beams:
    """Partial and finished items of all users, flat.

    `user`, `score` (n,); `fork` (n,) the fork a partial item waits at, or ~item where it is finished;
    `slot` (n,) its continuation in the tree.
    """

    user: np.ndarray
    score: np.ndarray
    fork: np.ndarray
    slot: np.ndarray


@torch.no_grad()
def beam_search(
    tree: PromptTree, trie: Trie, bias: np.ndarray, beams: int, excluded: Sequence[np.ndarray]
) -> list[Ranked]:
    """The most probable items of each user, at most `beams`, in order of their exact log-probability.

    Probabilities are over the children of each fork of the trie, so that they add up to one over the
    catalogue and forced tokens cost nothing (METHOD 6a). Chains without a fork are fed in one forward;
    an item that is certain needs none. No length penalty.

    Args:
        tree: the prompts, nothing below them yet.
        trie, bias: of the catalogue (`EncodedCatalogue`).
        beams: partial items kept a user.
        excluded: for each user, items that may not be recommended.
    """
    users = len(excluded)
    if len(trie.root):
        tree.extend(np.zeros((users, 1), np.int64), [[trie.root]] * users)
    everyone = np.arange(users)
    beam = _Beams(everyone, np.zeros(users), np.full(users, 0 if len(trie.depth) else ~0), np.zeros(users, np.int64))
    barred = np.unique(np.concatenate([u * trie.n_items + np.asarray(x, np.int64) for u, x in enumerate(excluded)]))
    while (beam.fork >= 0).any():
        beam, edges, parents = _step(tree, trie, bias, beam, beams, barred)
        _feed(tree, trie, beam, edges, parents, users)
    return [_ranked(beam, u) for u in range(users)]


def _step(
    tree: PromptTree, trie: Trie, bias: np.ndarray, beam: _Beams, beams: int, barred: np.ndarray
) -> tuple[_Beams, np.ndarray, np.ndarray]:
    """Expand every partial item by the children of its fork and keep each user's best `beams`.

    Returns the kept ones, the edge each took (-1: it was finished before) and the slot it came from.
    """
    open_ = np.flatnonzero(beam.fork >= 0)
    edges, parent = gather_ranges(trie.ptr[beam.fork[open_]], trie.ptr[beam.fork[open_] + 1])
    logp = _child_logprobs(tree, beam.user[open_], beam.slot[open_], trie.token[edges], bias[edges], parent)
    done = np.flatnonzero(beam.fork < 0)
    source = np.concatenate([open_[parent], done])
    score = np.concatenate([beam.score[open_][parent] + logp, beam.score[done]])
    fork = np.concatenate([trie.dest[edges], beam.fork[done]])
    edge = np.concatenate([edges, np.full(len(done), -1)])
    user = beam.user[source]
    allowed = (fork >= 0) | ~np.isin(user * trie.n_items + ~fork, barred)
    order = np.lexsort((edge, -score, user))
    order = order[allowed[order]]
    begin = np.searchsorted(user[order], user[order])  # where each user's run begins
    order = order[np.arange(len(order)) - begin < beams]
    return (
        _Beams(user[order], score[order], fork[order], np.zeros(len(order), np.int64)),
        edge[order],
        beam.slot[source[order]],
    )


def _child_logprobs(
    tree: PromptTree, user: np.ndarray, slot: np.ndarray, tokens: np.ndarray, bias: np.ndarray, parent: np.ndarray
) -> np.ndarray:
    """(E,) log P(child | children of its fork); `tokens`, `bias`, `parent` (E,) belong to each child."""
    distinct, column = np.unique(tokens, return_inverse=True)
    device = tree.device
    states = tree.states[torch.from_numpy(user).to(device), torch.from_numpy(slot).to(device)]  # (n, D)
    logits = (states @ tree.towers.head[torch.from_numpy(distinct).to(device)].T).float()  # (n, U)
    owner = torch.from_numpy(parent).to(device)
    entries = logits[owner, torch.from_numpy(column).to(device)] + torch.from_numpy(bias).to(device)
    return (entries - segment_logsumexp(entries, owner, len(states))[owner]).double().cpu().numpy()


def _feed(tree: PromptTree, trie: Trie, beam: _Beams, edges: np.ndarray, parents: np.ndarray, users: int) -> None:
    """Run the tokens of the edges that lead to another fork; give each its slot in the new front."""
    going = np.flatnonzero(beam.fork >= 0)
    if not len(going):
        return
    counts = np.bincount(beam.user[going], minlength=users)
    beam.slot[going] = np.arange(len(going)) - np.repeat(np.cumsum(counts) - counts, counts)
    front = np.zeros((users, counts.max()), np.int64)
    front[beam.user[going], beam.slot[going]] = parents[going]
    chains: list[list[np.ndarray]] = [[] for _ in range(users)]
    for i in going:  # users are sorted, slots ascend within a user
        chains[beam.user[i]].append(trie.chain[trie.chain_ptr[edges[i]] : trie.chain_ptr[edges[i] + 1]])
    tree.extend(front, chains)


def _ranked(beam: _Beams, user: int) -> Ranked:
    own = beam.user == user
    scores = beam.score[own]
    return Ranked(~beam.fork[own], scores, [f"log-probability {s:.2f}" for s in scores])


@dataclass(frozen=True)
class Sample:
    """A generated text: its tokens without the end, and their summed log-probability (at temperature 1)."""

    tokens: list[int]
    logprob: float


@torch.no_grad()
def sample(
    tree: PromptTree,
    n: int,
    temperature: float,
    stops: np.ndarray,
    max_tokens: int,
    draws: Sequence[np.random.Generator],
) -> list[list[Sample]]:
    """Draw `n` texts a user at `temperature`, each until a token of `stops` or `max_tokens` (METHOD 6).

    Args:
        draws: one random generator a user, so that a user's texts do not depend on who shares the batch.
    """
    users = len(draws)
    texts: list[list[list[int]]] = [[[] for _ in range(n)] for _ in range(users)]
    logprob = np.zeros((users, n))
    alive = [np.arange(n) for _ in range(users)]  # for each user, the sample in each slot of the front
    slots = [np.zeros(n, np.int64) for _ in range(users)]
    for step in range(max_tokens):
        picked = _draw(tree, slots, temperature, draws)
        front = np.zeros((users, n), np.int64)
        chains: list[list[np.ndarray]] = [[] for _ in range(users)]
        for u, (tokens, logps) in enumerate(picked):
            logprob[u, alive[u]] += logps
            on = ~np.isin(tokens, stops)
            for s, token in zip(alive[u][on], tokens[on]):
                texts[u][s].append(int(token))
                chains[u].append(np.array([token]))
            front[u, : on.sum()] = slots[u][on]
            alive[u], slots[u] = alive[u][on], np.arange(on.sum())
        width = max(map(len, alive))
        if not width or step == max_tokens - 1:
            break
        tree.extend(front[:, :width], chains)
    return [[Sample(t, float(p)) for t, p in zip(texts[u], logprob[u])] for u in range(users)]


def _draw(
    tree: PromptTree, slots: Sequence[np.ndarray], temperature: float, draws: Sequence[np.random.Generator]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each user the next token of each continuation and its log-probability, by inverting the distribution."""
    counts = [len(s) for s in slots]
    user = torch.from_numpy(np.repeat(np.arange(len(slots)), counts)).to(tree.device)
    states = tree.states[user, torch.from_numpy(np.concatenate(slots)).to(tree.device)]  # (n, D)
    logits = (states @ tree.towers.head.T).float()  # (n, V)
    level: Tensor = (logits / temperature).softmax(-1).cumsum(-1)
    uniform = np.concatenate([draw.random(c) for draw, c in zip(draws, counts)])
    goal = torch.from_numpy(uniform).to(level) * level[:, -1]
    tokens = torch.searchsorted(level, goal.unsqueeze(1), right=True).clamp(max=logits.shape[-1] - 1)
    logp = logits.gather(1, tokens).squeeze(1) - logits.logsumexp(-1)
    cuts = np.cumsum(counts)[:-1]
    flat = tokens.squeeze(1).cpu().numpy(), logp.double().cpu().numpy()
    return list(zip(np.split(flat[0], cuts), np.split(flat[1], cuts)))
