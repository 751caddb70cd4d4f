"""Prompts encoded once each, with any number of continuations hanging below them as a tree.

Continuations are extra query positions of their user's row, told apart by the attention mask alone: no
cache is copied, repeated or reordered, and a chain of forced tokens is one forward.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from calrec_lite.model.towers import Towers


class PromptTree:
    """A batch of U prompts and the growing front of Q continuations below each.

    Args:
        towers: the model.
        prompts: U prompts as ids.
        pad: any id, for filling up.

    Attributes:
        states: (U, Q, D) the state of each continuation's last token, which decides its next one.
    """

    def __init__(self, towers: Towers, prompts: Sequence[np.ndarray], pad: int) -> None:
        self.towers, self.pad = towers, pad
        self.device = towers.head.device
        lengths = torch.tensor([len(p) for p in prompts])
        width = -(-int(lengths.max()) // 32) * 32
        ids = np.full((len(prompts), width), pad, np.int64)
        for u, prompt in enumerate(prompts):
            ids[u, : len(prompt)] = prompt
        self.cache = DynamicCache()
        lengths = lengths.to(self.device)
        hidden = towers.continued(torch.from_numpy(ids).to(self.device), self.cache)  # (U, T, D)
        self.states = hidden[torch.arange(len(prompts), device=self.device), lengths - 1].unsqueeze(1)
        keys = torch.arange(width, device=self.device)
        self.visible = (keys < lengths.unsqueeze(1)).unsqueeze(1)  # (U, Q, keys): what each continuation may see
        self.positions = keys.expand(len(prompts), -1)  # (U, keys)
        self.next = lengths.unsqueeze(1)  # (U, Q) position of each continuation's next token

    def extend(self, parents: np.ndarray, chains: Sequence[Sequence[np.ndarray]]) -> None:
        """Replace the front: continuation q of user u is continuation `parents[u, q]` followed by `chains[u][q]`.

        Args:
            parents: (U, Q) indices into the old front.
            chains: for each user at most Q token chains, none empty; users with fewer get idle continuations.
        """
        tokens, owner, order, last = _pack(chains, parents.shape[1], self.pad)
        ids, own, rank, end = (torch.from_numpy(a).to(self.device) for a in (tokens, owner, order, last))
        rows = torch.arange(len(ids), device=self.device).unsqueeze(1)  # (U, 1)
        front = torch.from_numpy(parents).to(self.device)
        seen, begin = self.visible[rows, front], self.next[rows, front]  # (U, Q, keys), (U, Q)
        holder = own.clamp(min=0)
        positions = begin[rows, holder] + rank  # (U, N)
        # a new token sees what its continuation saw, and the earlier tokens of its own chain
        same = (own.unsqueeze(2) == own.unsqueeze(1)) & (rank.unsqueeze(2) >= rank.unsqueeze(1))  # (U, N, N)
        mask = torch.cat([seen[rows, holder], same], 2)
        self.positions = torch.cat([self.positions, positions], 1)
        hidden = self.towers.continued(ids, self.cache, mask, positions, self.positions)
        self.states = hidden[rows, end]
        members = own.unsqueeze(1) == torch.arange(parents.shape[1], device=self.device).view(1, -1, 1)  # (U, Q, N)
        self.visible = torch.cat([seen, members], 2)
        self.next = begin + members.sum(2)


def _pack(
    chains: Sequence[Sequence[np.ndarray]], width: int, pad: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lay each user's chains end to end: ids, owning continuation (-1: none), rank in its chain, all (U, N);
    and (U, Q) where each chain ends."""
    most = max(1, max(sum(map(len, own)) for own in chains))
    most = -(-most // 8) * 8  # few distinct shapes
    ids = np.full((len(chains), most), pad, np.int64)
    owner, rank = np.full_like(ids, -1), np.zeros_like(ids)
    last = np.zeros((len(chains), width), np.int64)
    for u, own in enumerate(chains):
        lengths = np.array([len(c) for c in own], np.int64)
        total = int(lengths.sum())
        if not total:
            continue
        ids[u, :total] = np.concatenate(own)
        owner[u, :total] = np.repeat(np.arange(len(own)), lengths)
        last[u, : len(own)] = np.cumsum(lengths) - 1
        rank[u, :total] = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return ids, owner, rank, last
