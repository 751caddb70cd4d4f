"""The catalogue's trie as tensors, and the probability of its edges given the states that decide them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from calrec_lite.decode.own_bias import OwnBias
from calrec_lite.decode.prompt_tree import PromptTree
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.losses import segment_logsumexp
from calrec_lite.model.head_loss import HEAD_ENTRIES, vocabulary_nll
from calrec_lite.model.on_device import OnDevice
from calrec_lite.prior.collaborative import CollaborativePrior


@dataclass
class TrieTensors(OnDevice):
    """`text.trie.Trie` on a device, with each edge's bias, the scale of the logits it is
    added to (both `EncodedCatalogue`'s), and each item's length in tokens.

    `share` (E,) is the log of the most popular item's share of the training counts below an edge. `own` is what each
    user's transitions add to `bias`, once `for_users` has said who they are.

    Args:
        score: `catalogue` takes each edge's probability among its fork's children, so that all items together have
            probability one; `vocabulary` takes that of its tokens among all tokens, forced ones included.
    """

    score: str
    logit_scale: float
    prior: CollaborativePrior | None
    own: OwnBias | None
    root: Tensor
    ptr: Tensor
    token: Tensor
    chain_ptr: Tensor
    chain: Tensor
    dest: Tensor
    depth: Tensor
    bias: Tensor
    share: Tensor
    length: Tensor

    @classmethod
    def of(cls, catalogue: EncodedCatalogue, score: str) -> "TrieTensors":
        """The tensors of a catalogue, on the CPU."""
        trie = catalogue.trie
        flat = (trie.root, trie.ptr, trie.token, trie.chain_ptr, trie.chain, trie.dest, trie.depth, catalogue.bias)
        popularity = catalogue.counts + 1.0
        share = np.log(trie.most(popularity) / trie.below(popularity))
        length = catalogue.tokens.lengths
        prior = catalogue.collaborative if score == "catalogue" else None
        return cls(score, catalogue.logit_scale, prior, None, *(torch.from_numpy(a) for a in (*flat, share, length)))

    def for_users(self, histories: Sequence[np.ndarray]) -> "TrieTensors":
        """The same for users with these histories (catalogue indices, oldest first), a prompt each, in this order."""
        if self.prior is None:
            return self
        return replace(self, own=OwnBias.after(self.prior, histories).to(self.bias.device))

    def children(self, forks: Tensor) -> tuple[Tensor, Tensor]:
        """All edges that leave from `forks` (n,), and for each the fork (0..n-1) it leaves from: (C,), (C,)."""
        return ranges(self.ptr[forks], self.ptr[forks + 1])

    def chains(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Lengths of the edges' chains (n,), and their tokens one after the other (C,)."""
        begin, end = self.chain_ptr[edges], self.chain_ptr[edges + 1]
        return end - begin, self.chain[ranges(begin, end)[0]]

    def child_logprobs(self, states: Tensor, head: Tensor, edges: Tensor, parent: Tensor, users: Tensor) -> Tensor:
        """(C,) log P of the first token of each child, where state `parent[c]` of `states` (n, D), of `users` (n,),
        decides it.

        In fp32: logits in bf16 are multiples of 1/16, so that items with different logits would become equal.
        """
        distinct, column = torch.unique(self.token[edges], return_inverse=True)
        logits = _chosen_logits(states, head[distinct], column, parent)
        if self.score == "vocabulary":
            return logits - _vocabulary_logsumexp(states, head)[parent]
        entries = self.logit_scale * logits + self.bias[edges]
        if self.own is not None:
            entries += self.own(users[parent], edges)
        return entries - segment_logsumexp(entries, parent, len(states))[parent]

    def promise(self, users: Tensor, edges: Tensor) -> Tensor:
        """(n,) log of the largest share that an item has of its user's prior below each edge; `users`, `edges` (n,)."""
        return self.share[edges] if self.own is None else self.own.promise(users, edges, self.share[edges])

    def rest_logprobs(self, states: Tensor, head: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """(n,) log P of what follows each chain's first token; 0 with `score: catalogue`, where it is certain.

        Args:
            states: (C, D) of the chains' tokens. lengths: (n,). tokens: (C,).
        """
        total = torch.zeros(len(lengths), device=states.device)
        if self.score == "vocabulary" and len(tokens):
            chain = torch.repeat_interleave(torch.arange(len(lengths), device=states.device), lengths)
            inside = (chain[1:] == chain[:-1]).nonzero().squeeze(1)
            total.index_add_(0, chain[inside], -vocabulary_nll(states[inside], head, tokens[inside + 1]))
        return total

    def feed_root(self, tree: PromptTree) -> Tensor:
        """Feed after each prompt the tokens that all items begin with; (U,) their log P."""
        users, device = len(tree), tree.device
        total = torch.zeros(users, device=device)
        if not len(self.root):
            return total
        head = tree.towers.head
        if self.score == "vocabulary":
            total = -vocabulary_nll(tree.states[:, 0], head, self.root[:1].expand(users))
        lengths, tokens = torch.full((users, 1), len(self.root), device=device), self.root.repeat(users)
        states = tree.extend(torch.zeros_like(lengths), lengths, tokens)
        return total + self.rest_logprobs(states, head, lengths.squeeze(1), tokens)


def _chosen_logits(states: Tensor, children: Tensor, column: Tensor, parent: Tensor) -> Tensor:
    """(C,) in fp32: logits (n, distinct) at (`parent`, `column`), `parent` ascending; few rows at a time."""
    size = max(1, HEAD_ENTRIES // max(1, len(children)))
    weights = children.float().T
    cuts = torch.arange(0, len(states) + size, size, device=parent.device)
    ends = torch.searchsorted(parent, cuts).tolist()
    parts = [
        (states[start : start + size].float() @ weights)[parent[first:last] - start, column[first:last]]
        for start, first, last in zip(range(0, len(states), size), ends, ends[1:])
    ]
    return torch.cat(parts) if parts else weights.new_zeros(0)


def _vocabulary_logsumexp(states: Tensor, head: Tensor) -> Tensor:
    """(n,) in fp32, over all tokens; the logits of only some tokens are in memory at a time."""
    states32 = states.float()  # (n, D)
    total = states32.new_full((len(states32),), -torch.inf)
    for part in head.split(max(1, HEAD_ENTRIES // max(1, *states32.shape))):
        total = torch.logaddexp(total, (states32 @ part.float().T).logsumexp(-1))
    return total


def ranges(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten half-open ranges (n,): (all their members, in order; the range each member belongs to)."""
    lengths = end - begin
    owner = torch.repeat_interleave(torch.arange(len(begin), device=begin.device), lengths)
    offset = torch.arange(len(owner), device=begin.device) - (lengths.cumsum(0) - lengths)[owner]
    return begin[owner] + offset, owner
