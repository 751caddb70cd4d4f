"""Beam search that can only write catalogue items, over one shared prompt cache (METHOD 6a)."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from calrec_lite.recommend.paths import Paths
from calrec_lite.recommend.ranked import Ranked
from calrec_lite.recommend.tree import PromptTree
from calrec_lite.text.trie import Trie


@torch.no_grad()
def beam_search(
    tree: PromptTree, trie: Trie, paths: Paths, beams: int, k: int, allowed: np.ndarray, strict: bool = False
) -> list[Ranked]:
    """The `k` most probable allowed items of each user, best first, with their exact log-probability.

    Every step expands all partial items of all users at once and keeps each user's best `beams`. Chains without
    a fork are fed in one forward. An item that is certain leaves the beam and costs nothing more; what cannot
    come before the k-th of those is dropped. Each user gets k items wherever so many are allowed.

    Args:
        tree: the prompts, nothing below them yet.
        trie, paths: of the catalogue, `paths` on the tree's device.
        beams: partial items kept a user, at least `k`.
        allowed: (U, N) which items may be recommended. The probabilities stay those over all items.
        strict: prune as transformers' beam search does, token by token, with certain items in the beam until their
            last token: the same lists as `generate(num_beams=...)`, at the price of more steps and a worse search.
            For comparisons; `score: catalogue` only.
    """
    search = _Search(tree, paths, torch.from_numpy(trie.open_edges(allowed)).to(tree.device), beams, k, strict)
    if not len(trie.depth):  # one item, no decision
        search.running = search.running.pick(torch.from_numpy(allowed[:, 0]).to(tree.device))
    return search.run()


@dataclass
class _Beams:
    """Partial items of all users, flat, users in order; all (n,).

    `node` is the fork it waits at, or ~item where the item is certain; `edge` led there. `slot` is its continuation in
    the tree, -1 where its last edge is not fed yet; `parent` is the continuation that edge hangs below.
    """

    user: Tensor
    score: Tensor
    node: Tensor
    edge: Tensor
    parent: Tensor
    slot: Tensor

    def __len__(self) -> int:
        return len(self.user)

    def pick(self, which: Tensor) -> "_Beams":
        return _Beams(*(getattr(self, f.name)[which] for f in fields(self)))

    def joined(self, *others: "_Beams") -> "_Beams":
        return _Beams(*(torch.cat([getattr(b, f.name) for b in (self, *others)]) for f in fields(self)))


class _Search:
    def __init__(self, tree: PromptTree, paths: Paths, edges: Tensor, beams: int, k: int, strict: bool) -> None:
        self.tree, self.paths, self.edges, self.beams, self.k, self.strict = tree, paths, edges, beams, k, strict
        self.spelled = paths.score == "vocabulary"  # a certain item's tokens count too
        users = torch.arange(len(tree), device=tree.device)
        none = torch.zeros_like(users)
        first = none if len(paths.depth) else ~none
        score = paths.hang_root(tree).double()
        self.running = _Beams(users, score, first, none - 1, none, none)
        self.finished = self.running.pick(users[:0])

    def run(self) -> list[Ranked]:
        while len(self.running):
            beam = self.running
            leaf = beam.node < 0
            ready = self._ready(leaf)
            unfed = (beam.slot < 0) & (~leaf | self.spelled)
            if bool((unfed & ready).any()):
                self._feed(unfed)
                continue
            children = self._expand(beam.pick(ready & ~leaf))
            done = torch.cat([(ready & leaf)[~ready | leaf], self._certain(children)])
            self._prune(beam.pick(~ready | leaf).joined(children), done)
        return [self._ranked(u) for u in range(len(self.tree))]

    def _ready(self, leaf: Tensor) -> Tensor:
        """(n,) who takes the next step: everyone, or in strict order each user's shortest."""
        beam = self.running
        if not self.strict:
            return torch.ones_like(leaf)
        fork, item = beam.node.clamp(min=0), (~beam.node).clamp(min=0)
        depth = self.paths.depth[fork] if len(self.paths.depth) else fork
        at = torch.where(leaf, self.paths.length[item] + 1, depth)  # the end-of-text token is a step of `generate`
        least = at.new_full((len(self.tree),), torch.iinfo(at.dtype).max).scatter_reduce(0, beam.user, at, "amin")
        return at == least[beam.user]

    def _certain(self, children: _Beams) -> Tensor:
        return (children.node < 0) & (not self.spelled and not self.strict)

    def _feed(self, unfed: Tensor) -> None:
        """Run the chains of all edges not fed yet; every partial item gets its place in the new front."""
        beam, tree = self.running, self.tree
        front = unfed | (beam.slot >= 0)
        user, new = beam.user[front], unfed[front]
        counts = torch.bincount(user, minlength=len(tree))
        slot = torch.arange(len(user), device=tree.device) - (counts.cumsum(0) - counts)[user]
        shape = (len(tree), int(counts.max()))
        edges = beam.edge[unfed]
        own, tokens = self.paths.chains(edges)
        parents = torch.zeros(shape, dtype=torch.long, device=tree.device)
        lengths = torch.zeros_like(parents)
        parents[user, slot] = torch.where(new, beam.parent[front], beam.slot[front])
        lengths[user[new], slot[new]] = own
        states = tree.extend(parents, lengths, tokens)
        beam.slot[front] = slot
        beam.score[unfed] += self.paths.rest_logprobs(states, tree.towers.head, own, tokens).double()

    def _expand(self, beam: _Beams) -> _Beams:
        """The allowed children of partial items whose forks' states are there."""
        edges, parent = self.paths.children(beam.node)
        states = self.tree.states[beam.user, beam.slot]  # (n, D)
        logp = self.paths.child_logprobs(states, self.tree.towers.head, edges, parent).double()
        of = beam.pick(parent)
        children = _Beams(
            of.user, of.score + logp, self.paths.dest[edges], edges, of.slot, torch.full_like(of.slot, -1)
        )
        return children.pick(self.edges[of.user, edges])

    def _prune(self, beam: _Beams, done: Tensor) -> None:
        """Move what is done to the finished ones, and keep each user's best of both."""
        ended = done
        if self.strict:  # an item that ends counts only if it is among the best `beams` of its step
            ended = done & (self._place(beam.user, beam.score) < self.beams)
        self.finished = self._best(self.finished.joined(beam.pick(ended)), self.k)
        beam = self._best(beam.pick(~done), self.beams)
        counts = torch.bincount(self.finished.user, minlength=len(self.tree))
        last = (counts.cumsum(0) - 1).clamp(min=0)
        bound = torch.full((len(self.tree),), -torch.inf, dtype=torch.double, device=self.tree.device)
        if len(self.finished):
            bound = torch.where(counts >= self.k, self.finished.score[last], bound)
        self.running = beam.pick(beam.score >= bound[beam.user])

    def _best(self, beam: _Beams, n: int) -> _Beams:
        """Each user's n best, users in order, best first."""
        place = self._place(beam.user, beam.score)
        kept = (place < n).nonzero().squeeze(1)
        return beam.pick(kept[torch.argsort(beam.user[kept] * n + place[kept])])

    def _place(self, user: Tensor, score: Tensor) -> Tensor:
        """(n,) how many of the same user come before each, by score, ties by position."""
        order = torch.argsort(score, descending=True, stable=True)
        order = order[torch.argsort(user[order], stable=True)]
        counts = torch.bincount(user, minlength=len(self.tree))
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[user[order]]
        return place

    def _ranked(self, user: int) -> Ranked:
        own = self.finished.pick(self.finished.user == user)
        scores = own.score.cpu().numpy()
        return Ranked((~own.node).cpu().numpy(), scores, [f"log-probability {s:.2f}" for s in scores])
