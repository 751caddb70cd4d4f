"""Prompts encoded once each, with any number of continuations hanging below them as a tree.

Continuations are extra query positions of their user's row, told apart by the attention mask alone: no
cache is repeated for each of them or reordered, and a chain of forced tokens is one forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from calrec_lite.method.towers import Towers


class PromptTree:
    """A batch of U prompts and the growing front of Q continuations below each.

    Args:
        towers: the model.
        prompts: U prompts as ids.
        pad: any id, for filling up.

    Attributes:
        users: (U, D) unit vectors v_U of the prompts.
        states: (U, Q, D) the state of each continuation's last token, which decides its next one.
    """

    def __init__(self, towers: Towers, prompts: Sequence[np.ndarray], pad: int) -> None:
        self.towers, self.pad = towers, pad
        self.device = towers.head.device
        ids, lengths = (t.to(self.device) for t in padded(prompts, pad))
        self.cache = DynamicCache()
        hidden = towers.continued(ids, self.cache)  # (U, T, D)
        self.users = towers.pooled(hidden, lengths)
        rows = torch.arange(len(prompts), device=self.device)
        self.states = hidden[rows, lengths - 1].unsqueeze(1)
        keys = torch.arange(ids.shape[1], device=self.device)
        self.visible = (keys < lengths.unsqueeze(1)).unsqueeze(1)  # (U, Q, keys): what each continuation may see
        self.positions = keys.expand(len(prompts), -1)  # (U, keys)
        self.next = lengths.unsqueeze(1)  # (U, Q) position of each continuation's next token
        self._rows = rows.unsqueeze(1)  # (U, 1)

    def __len__(self) -> int:
        return len(self._rows)

    def extend(self, parents: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """Replace the front: continuation q of user u is continuation `parents[u, q]` followed by a chain of tokens.

        Args:
            parents: (U, Q) indices into the old front.
            lengths: (U, Q) of the chains; 0 leaves a continuation as it was.
            tokens: (C,) the chains one after the other, user by user.

        Returns:
            (C, D) the state of each token.
        """
        laid = _lay(lengths, tokens, self.pad)
        seen, begin = self.visible[self._rows, parents], self.next[self._rows, parents]  # (U, Q, keys), (U, Q)
        holder = laid.owner.clamp(min=0)
        # a new token sees what its continuation saw, and the earlier tokens of its own chain
        own = (laid.owner.unsqueeze(2) == laid.owner.unsqueeze(1)) & laid.earlier  # (U, N, N)
        positions = begin[self._rows, holder] + laid.rank  # (U, N)
        mask = torch.cat([seen[self._rows, holder], own], 2)
        self.positions = torch.cat([self.positions, positions], 1)
        hidden = self.towers.continued(laid.ids, self.cache, mask, positions, self.positions)
        ends = (lengths.cumsum(1) - 1).clamp(min=0)
        kept = (lengths == 0).unsqueeze(2)
        self.states = torch.where(kept, self.states[self._rows, parents], hidden[self._rows, ends])
        columns = torch.arange(lengths.shape[1], device=self.device).view(1, -1, 1)
        self.visible = torch.cat([seen, laid.owner.unsqueeze(1) == columns], 2)
        self.next = begin + lengths
        return hidden[laid.row, laid.column]

    def select(self, rows: Tensor) -> None:
        """Keep these users only, in this order: (n,) rows."""
        self.cache.batch_select_indices(rows)
        self.users, self.states = self.users[rows], self.states[rows]
        self.visible, self.positions, self.next = self.visible[rows], self.positions[rows], self.next[rows]
        self._rows = torch.arange(len(rows), device=self.device).unsqueeze(1)

    def forest(self, above: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """Look below the first continuation of each user at M chains that hang below each other, in one forward.

        The tree stays as it was. Shared prefixes are computed once: a chain sees the chains above it.

        Args:
            above: (U, M) the chain each one hangs below, which stands before it; -1 for the continuation itself.
            lengths: (U, M) tokens of the chains; 0 where a user has fewer.
            tokens: (C,) the chains one after the other, user by user.

        Returns:
            (C, D) the state of each token.
        """
        laid = _lay(lengths, tokens, self.pad)
        line = _ancestors(above)  # (U, M, M) whether chain j is chain i or above it
        # In doubles, which are exact here: CUDA multiplies no matrices of integers.
        through = (line.double() @ lengths.double().unsqueeze(2)).squeeze(2).long()  # (U, M) tokens down to its end
        begin = self.next[:, :1] + through - lengths  # (U, M)
        holder = laid.owner.clamp(min=0)
        related = line[self._rows.unsqueeze(2), holder.unsqueeze(2), holder.unsqueeze(1)]  # (U, N, N)
        real = (laid.owner >= 0).unsqueeze(1)
        same = laid.owner.unsqueeze(2) == laid.owner.unsqueeze(1)
        seen = self.visible[:, :1].expand(-1, laid.ids.shape[1], -1)
        mask = torch.cat([seen, related & real & (~same | laid.earlier)], 2)
        positions = begin[self._rows, holder] + laid.rank
        hidden = self.towers.continued(laid.ids, self.cache, mask, positions, torch.cat([self.positions, positions], 1))
        self.cache.crop(-laid.ids.shape[1])
        return hidden[laid.row, laid.column]


@dataclass(frozen=True)
class _Laid:
    """Each user's chains end to end: (U, N) `ids`, `owner` the chain (-1: none), `rank` within it; (U, N, N)
    `earlier` whether j's rank is not above i's; (C,) `row`, `column` where each token went."""

    ids: Tensor
    owner: Tensor
    rank: Tensor
    earlier: Tensor
    row: Tensor
    column: Tensor


def _lay(lengths: Tensor, tokens: Tensor, pad: int) -> _Laid:
    users, width = lengths.shape
    most = max(1, int(lengths.sum(1).max()))
    most = -(-most // 8) * 8  # few distinct shapes
    flat = lengths.flatten()
    chain = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), flat, output_size=len(tokens))  # (C,)
    rank = torch.arange(len(tokens), device=flat.device) - (flat.cumsum(0) - flat)[chain]
    row, column = chain // width, (lengths.cumsum(1) - lengths).flatten()[chain] + rank
    ids = torch.full((users, most), pad, device=flat.device)
    owner, place = torch.full_like(ids, -1), torch.zeros_like(ids)
    ids[row, column], owner[row, column], place[row, column] = tokens, chain % width, rank
    return _Laid(ids, owner, place, place.unsqueeze(2) >= place.unsqueeze(1), row, column)


def _ancestors(above: Tensor) -> Tensor:
    """(U, M, M) whether chain j is chain i itself or above it, from each chain's parent (U, M), -1 for none."""
    line = torch.eye(above.shape[1], dtype=torch.bool, device=above.device).repeat(len(above), 1, 1)
    rows = torch.arange(len(above), device=above.device).unsqueeze(1)
    at = above
    while bool((at >= 0).any()):
        users, chains = (at >= 0).nonzero(as_tuple=True)
        line[users, chains, at[users, chains]] = True
        at = torch.where(at >= 0, above[rows, at.clamp(min=0)], at)
    return line


def padded(sequences: Sequence[np.ndarray], pad: int, multiple: int = 32) -> tuple[Tensor, Tensor]:
    """Right-padded ids (B, T), T a multiple, so that few shapes occur, and their lengths (B,)."""
    lengths = torch.tensor([len(s) for s in sequences])
    ids = np.full((len(sequences), -(-int(lengths.max()) // multiple) * multiple), pad, np.int64)
    for row, sequence in zip(ids, sequences):
        row[: len(sequence)] = sequence
    return torch.from_numpy(ids), lengths
