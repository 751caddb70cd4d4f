"""Search for the most probable items of a catalogue's trie, over one shared prompt cache (docs/method.md, 6a)."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from calrec_lite.decode.prompt_tree import PromptTree
from calrec_lite.decode.ranked import Ranked
from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.text.trie import Trie

ROUND = 32  # tokens a user may feed at once: enough to fill a forward, few enough that the bound rises in between
STEPS = 2  # times `beams`: partial items of a user that are continued


@torch.no_grad()
def beam_search(
    tree: PromptTree, trie: Trie, paths: TrieTensors, beams: int, k: int, allowed: np.ndarray, strict: bool = False
) -> list[Ranked]:
    """The `k` most probable allowed items of each user, best first, with their exact log-probability.

    Best first: of each user's partial items those go first that promise the most probable item, which is guessed
    from their probability and from how popular the most popular item below them is. A partial item is at least as
    probable as any item it can become, so once k items are certain, what is less probable than the k-th of them is
    dropped. After 2 x `beams` continued ones a user's search ends where it is, and no more are kept than may still be
    continued: the list is exact where none of those that were left out would have become one of the k.
    All users take a step together, chains of tokens without a fork are one forward, and an item that is certain
    costs nothing more. Each user gets k items wherever so many are allowed.

    Args:
        tree: the prompts, nothing below them yet; used up by the search.
        trie, paths: of the catalogue, `paths` on the tree's device.
        beams: at least `k`; more find the true list more often, and take longer.
        allowed: (U, N) which items may be recommended. The probabilities stay those over all items.
        strict: prune as transformers' beam search does, token by token, with certain items in the beam until their
            last token, what is not allowed too: the first k allowed ones of `generate(num_beams=...)`, at the price
            of more steps and a worse search. For comparisons; `score: catalogue` only.
    """
    return _Search(tree, trie, paths, beams, k, allowed, strict).run()


@dataclass
class _Beams:
    """Partial items of all users, flat, users in order; all (n,).

    `node` is the fork it waits at, or ~item where the item is certain; `edge` led there. `slot` is its continuation in
    the tree, -1 where its last edge is not fed yet; `parent` is then the continuation that edge hangs below.
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
    def __init__(
        self, tree: PromptTree, trie: Trie, paths: TrieTensors, beams: int, k: int, allowed: np.ndarray, strict: bool
    ) -> None:
        self.tree, self.paths, self.beams, self.k, self.strict = tree, paths, beams, k, strict
        edges = trie.open_edges(np.ones_like(allowed) if strict else allowed)
        self.edges, self.allowed = (torch.from_numpy(a).to(tree.device) for a in (edges, allowed))
        self.spelled = paths.score == "vocabulary"  # a certain item's tokens count too
        self.round = ROUND * (4 if self.spelled else 1)
        self.users = len(tree)
        users = torch.arange(self.users, device=tree.device)
        self.row = users.clone()  # where each user stands in the tree, once others have left it
        self.fed = torch.zeros_like(users)
        none = torch.zeros_like(users)
        first = none if len(paths.depth) else ~none
        score = paths.feed_root(tree).double()
        self.running = _Beams(users, score, first, none - 1, none, none)
        if not len(paths.depth):  # one item, no decision
            self.running = self.running.pick(self._listed(self.running))
        self.finished = self.running.pick(users[:0])

    def run(self) -> list[Ranked]:
        while len(self.running):
            beam = self.running
            leaf = beam.node < 0
            unfed = (beam.slot < 0) & (~leaf | self.spelled)
            turn = self._shortest(leaf) if self.strict else ~unfed
            ready = turn & ~self._waiting(turn & unfed)
            if not bool(ready.any()):
                self._feed(self._chosen(unfed, turn))
                continue
            children = self._expand(beam.pick(ready & ~leaf))
            certain = (children.node < 0) & (not self.spelled and not self.strict)
            done = torch.cat([(ready & leaf)[~ready | leaf], certain])
            self._prune(beam.pick(~ready | leaf).joined(children), done)
        return [self._ranked(u) for u in range(self.users)]

    def _shortest(self, leaf: Tensor) -> Tensor:
        """(n,) in strict order each user's shortest take the next step."""
        beam = self.running
        fork, item = beam.node.clamp(min=0), (~beam.node).clamp(min=0)
        depth = self.paths.depth[fork] if len(self.paths.depth) else fork
        at = torch.where(leaf, self.paths.length[item], depth)  # where the end-of-text token would stand
        least = at.new_full((self.users,), torch.iinfo(at.dtype).max).scatter_reduce(0, beam.user, at, "amin")
        return at == least[beam.user]

    def _waiting(self, unfed: Tensor) -> Tensor:
        """(n,) whether any of the same user's is not fed yet."""
        return (torch.bincount(self.running.user[unfed], minlength=self.users) > 0)[self.running.user]

    def _chosen(self, unfed: Tensor, turn: Tensor) -> Tensor:
        """(n,) who is fed next: of each user those whose turn it is, then the best, as many as fill a round."""
        beam = self.running  # users in order, best first
        order, _ = self._sorted(beam, turn.int())
        user, asked = beam.user[order], unfed[order]
        own = torch.where(unfed, self.paths.chain_ptr[beam.edge + 1] - self.paths.chain_ptr[beam.edge], 0)[order]
        before = own.cumsum(0) - own
        used = before - before[torch.searchsorted(user, user)]  # since the user's first
        chosen = torch.empty_like(unfed)
        chosen[order] = asked & ((used + own <= self.round) | (used == 0))
        return chosen

    def _feed(self, new: Tensor) -> None:
        """Run the chains of `new` edges; what others hang below, or have fed already, keeps its place in the front."""
        self._leave()
        beam, tree = self.running, self.tree
        row, old = self.row[beam.user], torch.where(beam.slot >= 0, beam.slot, beam.parent)
        width = tree.next.shape[1]
        kept, place = torch.unique((row * width + old)[~new], return_inverse=True)
        rows = torch.cat([kept // width, row[new]])
        order = torch.argsort(rows, stable=True)
        slot = torch.empty_like(order)
        slot[order] = places(rows[order])
        own, tokens = self.paths.chains(beam.edge[new])
        parents = torch.zeros(len(tree), int(slot.max()) + 1, dtype=torch.long, device=order.device)
        lengths = torch.zeros_like(parents)
        parents[rows, slot] = torch.cat([kept % width, old[new]])
        lengths[row[new], slot[len(kept) :]] = own
        states = tree.extend(parents, lengths, tokens)
        moved = torch.empty_like(old)
        moved[~new], moved[new] = slot[: len(kept)][place], slot[len(kept) :]
        beam.parent, beam.slot = moved, torch.where((beam.slot >= 0) | new, moved, beam.slot)
        beam.score[new] += self.paths.rest_logprobs(states, tree.towers.head, own, tokens).double()
        self.fed += torch.bincount(beam.user[new], minlength=self.users)

    def _leave(self) -> None:
        """Take the users who are done out of the tree, once they are half of those in it."""
        there = torch.unique(self.running.user)
        if 2 * len(there) > len(self.tree):
            return
        self.tree.select(self.row[there])
        self.row[there] = torch.arange(len(there), device=there.device)

    def _expand(self, beam: _Beams) -> _Beams:
        """The allowed children of partial items whose forks' states are there."""
        edges, parent = self.paths.children(beam.node)
        states = self.tree.states[self.row[beam.user], beam.slot]  # (n, D)
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
            order, place = self._sorted(beam, beam.score)
            ended = done.clone()
            ended[order] &= place < self.beams
            ended &= self._listed(beam)
        found = self.finished.joined(beam.pick(ended))
        self.finished = self._best(found, found.score, torch.full_like(self.fed, self.k))
        beam = beam.pick(~done)
        if self.strict:
            beam = self._best(beam, beam.score, torch.full_like(self.fed, self.beams))
        else:
            counts = torch.bincount(self.finished.user, minlength=self.users)
            left = STEPS * self.beams - self.fed  # what cannot be continued any more need not be kept
            most = torch.where(counts < self.k, left.clamp(min=self.beams), left)
            beam = self._best(beam, beam.score + self._promise(beam), most)
        self.running = beam.pick(beam.score >= self._bound(beam)[beam.user])

    def _bound(self, beam: _Beams) -> Tensor:
        """(U,) the score of each user's k-th best certain item, -inf where there are fewer."""
        sure = self.finished
        if self.strict:  # certain items of the beam end as they are
            sure = sure.joined(beam.pick(self._listed(beam)))
            sure = self._best(sure, sure.score, torch.full_like(self.fed, self.k))
        counts = torch.bincount(sure.user, minlength=self.users)
        bound = torch.full((self.users,), -torch.inf, dtype=torch.double, device=self.fed.device)
        full = counts >= self.k
        bound[full] = sure.score[(counts.cumsum(0) - 1)[full]]
        return bound

    def _listed(self, beam: _Beams) -> Tensor:
        """(n,) which are items that may be recommended."""
        return (beam.node < 0) & self.allowed[beam.user, (~beam.node).clamp(min=0)]

    def _promise(self, beam: _Beams) -> Tensor:
        """(n,) what the best item below may lose against the partial item itself: a guess, nothing for an item."""
        if not len(self.paths.share):
            return torch.zeros_like(beam.score)
        return torch.where(beam.edge >= 0, self.paths.share[beam.edge.clamp(min=0)], 0.0)

    def _best(self, beam: _Beams, key: Tensor, most: Tensor) -> _Beams:
        """Each user's best by `key` (n,), `most` (U,) of them, users in order, best first."""
        order, place = self._sorted(beam, key)
        return beam.pick(order[place < most[beam.user[order]]])

    def _sorted(self, beam: _Beams, key: Tensor) -> tuple[Tensor, Tensor]:
        """Users in order, of each the highest `key` (n,) first, ties by position; and each one's place there: (n,)."""
        order = torch.argsort(key, descending=True, stable=True)
        order = order[torch.argsort(beam.user[order], stable=True)]
        return order, places(beam.user[order])

    def _ranked(self, user: int) -> Ranked:
        own = self.finished.pick(self.finished.user == user)
        scores = own.score.cpu().numpy()
        return Ranked((~own.node).cpu().numpy(), scores, [f"log-probability {s:.2f}" for s in scores])


def places(groups: Tensor) -> Tensor:
    """(n,) how many of the same group stand before each; equal groups (n,) stand together, ascending."""
    return torch.arange(len(groups), device=groups.device) - torch.searchsorted(groups, groups)
