"""Search for the most probable items of a catalogue's trie, over one shared prompt cache (docs/method.md, 6a)."""

import numpy as np
import torch
from torch import Tensor

from calrec_lite.decode.prompt_tree import PromptTree
from calrec_lite.decode.ranked import Ranked
from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.text.trie import Trie

ROUND_TOKENS = 32  # a user may feed at once: enough to fill a forward, few enough that the bound rises in between
STEPS = 2  # times `beams`: partial items of a user that are continued


@torch.no_grad()
def beam_search(
    tree: PromptTree, trie: Trie, paths: TrieTensors, beams: int, k: int, allowed: np.ndarray, strict: bool = False
) -> list[Ranked]:
    """The `k` most probable allowed items of each user, best first, with their exact log-probability.

    Best first: of each user's partial items those go first that promise the most probable item, which is guessed
    from their probability and from the largest share that an item below them has of the prior. A partial item is at
    least as probable as any item it can become, so once k items are certain, what is less probable than the k-th of
    them is dropped. A user's search ends after 2 x `beams` continued partial items, and never more are stored than may
    still be continued: the list is exact where none of the dropped ones would have become one of the k.
    All users take a step together, chains of tokens without a fork are one forward, and an item that is certain
    costs nothing more. Each user gets k items wherever so many are allowed.

    Args:
        tree: the prompts, without continuations; the search changes it, so that it cannot be used again.
        trie, paths: of the catalogue, `paths` on the tree's device and for the tree's users.
        beams: at least `k`; more find the true list more often, and take longer.
        allowed: (U, N) which items may be recommended. The probabilities stay those over all items.
        strict: prune as transformers' beam search does, token by token, with certain items in the beam until their
            last token, what is not allowed too: the first k allowed ones of `generate(num_beams=...)`, at the price
            of more steps and a worse search. For comparisons; `score: catalogue` only.
    """
    return _Search(tree, trie, paths, beams, k, allowed, strict).run()


class _Beams:
    """Partial items of all users, user after user, in one array: (6, n) int64, so that a choice is one index.

    All (n,): `node` is the fork it has reached, or ~item where the item is certain; `edge` led there. `slot` is its
    continuation in the tree, -1 where its last edge is not fed yet; `parent` is then the continuation that this edge
    extends. `score` lies there as the bits of its doubles.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.user, score, self.node, self.edge, self.parent, self.slot = rows
        self.score = score.view(torch.double)

    @classmethod
    def of(cls, user: Tensor, score: Tensor, *rest: Tensor) -> "_Beams":
        """Of user, score, node, edge, parent and slot."""
        return cls(torch.stack([user, score.view(torch.long), *rest]))

    def __len__(self) -> int:
        return self.rows.shape[1]

    def pick(self, which: Tensor) -> "_Beams":
        """Those at places `which`, in that order; or those where it is true, for which the host waits."""
        return _Beams(self.rows[:, where(which) if which.dtype is torch.bool else which])

    def joined(self, *more: "_Beams") -> "_Beams":
        return _Beams(torch.cat([self.rows, *(other.rows for other in more)], 1))


class _Search:
    def __init__(
        self, tree: PromptTree, trie: Trie, paths: TrieTensors, beams: int, k: int, allowed: np.ndarray, strict: bool
    ) -> None:
        self.tree, self.paths, self.beams, self.k, self.strict = tree, paths, beams, k, strict
        edges = trie.open_edges(np.ones_like(allowed) if strict else allowed)
        self.edges, self.allowed = (torch.from_numpy(a).to(tree.device) for a in (edges, allowed))
        self.scores_forced = paths.score == "vocabulary"  # the forced tokens of a certain item are scored too
        self.round_tokens = ROUND_TOKENS * (4 if self.scores_forced else 1)
        self.users = len(tree)
        users = torch.arange(self.users, device=tree.device)
        self.tree_row = users.clone()  # each user's row in the tree, which shrinks as users finish
        self.n_fed = torch.zeros_like(users)  # continued partial items of each user
        zeros = torch.zeros_like(users)
        first = zeros if len(paths.depth) else ~zeros
        score = paths.feed_root(tree).double()
        self.running = _Beams.of(users, score, first, zeros - 1, zeros, zeros)
        if not len(paths.depth):  # a single item: nothing to decide
            self.running = self.running.pick(self._recommendable(self.running))
        self.finished = self.running.pick(users[:0])

    def run(self) -> list[Ranked]:
        while len(self.running):
            beam = self.running
            leaf = beam.node < 0
            unfed = (beam.slot < 0) & (~leaf | self.scores_forced)
            turn = self._at_shortest(leaf) if self.strict else ~unfed
            ready = turn & ~self._user_has_unfed(turn & unfed)
            if not bool(ready.any()):
                self._feed(self._next_to_feed(unfed, turn))
                continue
            children = self._expand(beam.pick(ready & ~leaf))
            certain = (children.node < 0) & (not self.scores_forced and not self.strict)
            others = where(~ready | leaf)
            done = torch.cat([(ready & leaf)[others], certain])
            self._prune(beam.pick(others).joined(children), done)
        return self._ranked()

    def _at_shortest(self, leaf: Tensor) -> Tensor:
        """(n,) which are their user's shortest: in strict order these take the next step."""
        beam = self.running
        fork, item = beam.node.clamp(min=0), (~beam.node).clamp(min=0)
        depth = self.paths.depth[fork] if len(self.paths.depth) else fork
        end = torch.where(leaf, self.paths.length[item], depth)  # where the end-of-text token would stand
        shortest = end.new_full((self.users,), torch.iinfo(end.dtype).max).scatter_reduce(0, beam.user, end, "amin")
        return end == shortest[beam.user]

    def _user_has_unfed(self, unfed: Tensor) -> Tensor:
        """(n,) whether the user of each has any that is not fed yet."""
        user = self.running.user
        return (self._per_user(user, unfed) > 0)[user]

    def _per_user(self, user: Tensor, counted: Tensor | None = None) -> Tensor:
        """(U,) how many of (n,) are each user's, of those that are `counted`; unlike bincount, without a wait."""
        ones = torch.ones_like(user) if counted is None else counted.long()
        return torch.zeros_like(self.n_fed).index_add_(0, user, ones)

    def _next_to_feed(self, unfed: Tensor, turn: Tensor) -> Tensor:
        """(n,) which are fed next: of each user those whose turn it is, then the best, as many as fill a round."""
        beam = self.running  # users in order, best first
        order, _ = self._sorted(beam, turn.int())
        user, to_feed = beam.user[order], unfed[order]
        tokens = torch.where(unfed, self.paths.chain_ptr[beam.edge + 1] - self.paths.chain_ptr[beam.edge], 0)[order]
        before = tokens.cumsum(0) - tokens
        spent = before - before[torch.searchsorted(user, user)]  # tokens of the same user's partial items before it
        chosen = torch.empty_like(unfed)
        chosen[order] = to_feed & ((spent + tokens <= self.round_tokens) | (spent == 0))
        return chosen

    def _feed(self, new: Tensor) -> None:
        """Run the chains of `new` edges; the continuations of all other partial items stay in the tree's front."""
        self._drop_finished()
        beam, tree = self.running, self.tree
        row, old_slot = self.tree_row[beam.user], torch.where(beam.slot >= 0, beam.slot, beam.parent)
        width = tree.next.shape[1]
        fed, others = where(new), where(~new)
        unchanged, place = torch.unique((row * width + old_slot)[others], return_inverse=True)
        rows = torch.cat([unchanged // width, row[fed]])
        order = torch.argsort(rows, stable=True)
        slot = torch.empty_like(order)
        slot[order] = places(rows[order])
        chain_lengths, tokens = self.paths.chains(beam.edge[fed])
        parents = torch.zeros(len(tree), int(slot.max()) + 1, dtype=torch.long, device=order.device)
        lengths = torch.zeros_like(parents)
        parents[rows, slot] = torch.cat([unchanged % width, old_slot[fed]])
        lengths[row[fed], slot[len(unchanged) :]] = chain_lengths
        states = tree.extend(parents, lengths, tokens)
        new_slot = torch.empty_like(old_slot)
        new_slot[others], new_slot[fed] = slot[: len(unchanged)][place], slot[len(unchanged) :]
        beam.parent.copy_(new_slot)
        beam.slot.copy_(torch.where((beam.slot >= 0) | new, new_slot, beam.slot))
        beam.score[fed] += self.paths.rest_logprobs(states, tree.towers.head, chain_lengths, tokens).double()
        self.n_fed += self._per_user(beam.user, new)

    def _drop_finished(self) -> None:
        """Take the users who are done out of the tree, once they are half of the users in it."""
        active = where(self._per_user(self.running.user) > 0)
        if 2 * len(active) > len(self.tree):
            return
        self.tree.select(self.tree_row[active])
        self.tree_row[active] = torch.arange(len(active), device=active.device)

    def _expand(self, beam: _Beams) -> _Beams:
        """The allowed children of partial items whose forks have their states in the tree."""
        edges, parent = self.paths.children(beam.node)
        states = self.tree.states[self.tree_row[beam.user], beam.slot]  # (n, D)
        logp = self.paths.child_logprobs(states, self.tree.towers.head, edges, parent, beam.user).double()
        forks = beam.pick(parent)
        children = _Beams.of(
            forks.user, forks.score + logp, self.paths.dest[edges], edges, forks.slot, torch.full_like(forks.slot, -1)
        )
        return children.pick(self.edges[forks.user, edges])

    def _prune(self, beam: _Beams, done: Tensor) -> None:
        """Move what is `done` to the finished items; of these and of the running ones keep each user's best."""
        ended = done
        if self.strict:  # an item that ends counts only if it is among the best `beams` of its step
            order, place = self._sorted(beam, beam.score)
            ended = done.clone()
            ended[order] &= place < self.beams
            ended &= self._recommendable(beam)
        certain = self.finished.joined(beam.pick(ended))
        self.finished = self._top(certain, certain.score, torch.full_like(self.n_fed, self.k))
        beam = beam.pick(~done)
        if self.strict:
            beam = self._top(beam, beam.score, torch.full_like(self.n_fed, self.beams))
        else:
            counts = self._per_user(self.finished.user)
            budget = STEPS * self.beams - self.n_fed  # what cannot be continued any more need not stay
            limits = torch.where(counts < self.k, budget.clamp(min=self.beams), budget)
            beam = self._top(beam, beam.score + self._heuristic(beam), limits)
        self.running = beam.pick(beam.score >= self._bound(beam)[beam.user])

    def _bound(self, beam: _Beams) -> Tensor:
        """(U,) the score of each user's k-th best certain item, -inf where there are fewer."""
        certain = self.finished
        if self.strict:  # certain items of the beam end as they are
            certain = certain.joined(beam.pick(self._recommendable(beam)))
            certain = self._top(certain, certain.score, torch.full_like(self.n_fed, self.k))
        counts = self._per_user(certain.user)
        none = torch.full((self.users,), -torch.inf, dtype=torch.double, device=self.n_fed.device)
        if not len(certain):
            return none
        return torch.where(counts >= self.k, certain.score[(counts.cumsum(0) - 1).clamp(min=0)], none)

    def _recommendable(self, beam: _Beams) -> Tensor:
        """(n,) which are items that may be recommended."""
        return (beam.node < 0) & self.allowed[beam.user, (~beam.node).clamp(min=0)]

    def _heuristic(self, beam: _Beams) -> Tensor:
        """(n,) a guess of log P of the best item below, given the partial item; 0 where that is an item itself."""
        if not len(self.paths.share):
            return torch.zeros_like(beam.score)
        return torch.where(beam.edge >= 0, self.paths.promise(beam.user, beam.edge.clamp(min=0)), 0.0)

    def _top(self, beam: _Beams, key: Tensor, limits: Tensor) -> _Beams:
        """Each user's best by `key` (n,), `limits` (U,) of them, users in order, best first."""
        order, place = self._sorted(beam, key)
        return beam.pick(order[place < limits[beam.user[order]]])

    def _sorted(self, beam: _Beams, key: Tensor) -> tuple[Tensor, Tensor]:
        """Order by user, then highest `key` (n,) first, ties by position; and the ranks within users: (n,), (n,)."""
        order = torch.argsort(key, descending=True, stable=True)
        order = order[torch.argsort(beam.user[order], stable=True)]
        return order, places(beam.user[order])

    def _ranked(self) -> list[Ranked]:
        rows = self.finished.rows.cpu()  # users in order, best first
        ends = np.cumsum(np.bincount(rows[0].numpy(), minlength=self.users))
        certain = _Beams(rows)
        parts = zip(*(np.split(v.numpy(), ends[:-1]) for v in (~certain.node, certain.score)))
        return [Ranked(items, scores, [f"log-probability {s:.2f}" for s in scores]) for items, scores in parts]


def where(true: Tensor) -> Tensor:
    """(m,) places of (n,) that are true. The host waits for the device to know how many."""
    return true.nonzero().squeeze(1)


def places(groups: Tensor) -> Tensor:
    """(n,) how many of the same group come before each one; `groups` (n,) is ascending."""
    return torch.arange(len(groups), device=groups.device) - torch.searchsorted(groups, groups)
