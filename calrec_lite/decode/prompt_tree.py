"""Prompts encoded once each, with any number of continuations that branch from them as a tree.

Continuations are extra query positions of their user's row, and only the attention mask separates them: no
cache is repeated for each of them or reordered, and a chain of forced tokens is one forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

if TYPE_CHECKING:  # it loads PEFT, which takes seconds
    from calrec_lite.method.towers import Towers


class PromptTree:
    """A batch of U prompts and the growing front of Q continuations of each.

    Args:
        towers: the model.
        prompts: U prompts as ids.
        pad: any id, for filling up.

    Attributes:
        users: (U, D) unit vectors v_U of the prompts.
        states: (U, Q, D) the state of each continuation's last token, which decides its next one.
    """

    def __init__(self, towers: "Towers", prompts: Sequence[np.ndarray], pad: int) -> None:
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
        flat = _flatten_chains(lengths, tokens, self.pad)
        seen, begin = self.visible[self._rows, parents], self.next[self._rows, parents]  # (U, Q, keys), (U, Q)
        chain = flat.chain.clamp(min=0)
        # a new token sees what its continuation saw, and the tokens of its chain up to itself
        earlier = (flat.chain.unsqueeze(2) == flat.chain.unsqueeze(1)) & flat.causal  # (U, N, N)
        positions = begin[self._rows, chain] + flat.offset  # (U, N)
        mask = torch.cat([seen[self._rows, chain], earlier], 2)
        self.positions = torch.cat([self.positions, positions], 1)
        hidden = self.towers.continued(flat.ids, self.cache, mask, positions, self.positions)
        ends = (lengths.cumsum(1) - 1).clamp(min=0)
        unchanged = (lengths == 0).unsqueeze(2)
        self.states = torch.where(unchanged, self.states[self._rows, parents], hidden[self._rows, ends])
        columns = torch.arange(lengths.shape[1], device=self.device).view(1, -1, 1)
        self.visible = torch.cat([seen, flat.chain.unsqueeze(1) == columns], 2)
        self.next = begin + lengths
        return hidden[flat.row, flat.column]

    def select(self, rows: Tensor) -> None:
        """Keep these users only, in this order: (n,) rows."""
        self.cache.batch_select_indices(rows)
        self.users, self.states = self.users[rows], self.states[rows]
        self.visible, self.positions, self.next = self.visible[rows], self.positions[rows], self.next[rows]
        self._rows = torch.arange(len(rows), device=self.device).unsqueeze(1)

    def forest(self, above: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """Feed M chains that continue each other after the first continuation of each user, in one forward.

        The tree stays as it was. Shared prefixes are computed once: a chain sees its ancestors.

        Args:
            above: (U, M) index of the chain that each one continues, an earlier one; -1 for the continuation itself.
            lengths: (U, M) tokens of the chains; 0 where a user has fewer.
            tokens: (C,) the chains one after the other, user by user.

        Returns:
            (C, D) the state of each token.
        """
        flat = _flatten_chains(lengths, tokens, self.pad)
        ancestors = _ancestors(above)  # (U, M, M) whether chain j is chain i or an ancestor
        # Tokens down to each chain's end; in doubles, which are exact here: CUDA multiplies no matrices of integers.
        path_lengths = (ancestors.double() @ lengths.double().unsqueeze(2)).squeeze(2).long()  # (U, M)
        begin = self.next[:, :1] + path_lengths - lengths  # (U, M)
        chain = flat.chain.clamp(min=0)
        on_path = ancestors[self._rows.unsqueeze(2), chain.unsqueeze(2), chain.unsqueeze(1)]  # (U, N, N)
        is_token = (flat.chain >= 0).unsqueeze(1)
        same_chain = flat.chain.unsqueeze(2) == flat.chain.unsqueeze(1)
        seen = self.visible[:, :1].expand(-1, flat.ids.shape[1], -1)
        mask = torch.cat([seen, on_path & is_token & (~same_chain | flat.causal)], 2)
        positions = begin[self._rows, chain] + flat.offset
        hidden = self.towers.continued(flat.ids, self.cache, mask, positions, torch.cat([self.positions, positions], 1))
        self.cache.crop(-flat.ids.shape[1])
        return hidden[flat.row, flat.column]


@dataclass(frozen=True)
class _FlatChains:
    """Each user's chains one after the other in a row: (U, N) `ids`, `chain` of each token (-1: padding), `offset` in
    it; (U, N, N) `causal` whether j's offset is not above i's; (C,) `row`, `column` where each token is."""

    ids: Tensor
    chain: Tensor
    offset: Tensor
    causal: Tensor
    row: Tensor
    column: Tensor


def _flatten_chains(lengths: Tensor, tokens: Tensor, pad: int) -> _FlatChains:
    users, width = lengths.shape
    columns = max(1, int(lengths.sum(1).max()))
    columns = -(-columns // 8) * 8  # few distinct shapes
    flat = lengths.flatten()
    chain = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), flat, output_size=len(tokens))  # (C,)
    offset = torch.arange(len(tokens), device=flat.device) - (flat.cumsum(0) - flat)[chain]
    row, column = chain // width, (lengths.cumsum(1) - lengths).flatten()[chain] + offset
    ids = torch.full((users, columns), pad, device=flat.device)
    chains, offsets = torch.full_like(ids, -1), torch.zeros_like(ids)
    ids[row, column], chains[row, column], offsets[row, column] = tokens, chain % width, offset
    return _FlatChains(ids, chains, offsets, offsets.unsqueeze(2) >= offsets.unsqueeze(1), row, column)


def _ancestors(above: Tensor) -> Tensor:
    """(U, M, M) whether chain j is chain i itself or an ancestor of it; `above` (U, M): each one's parent, or -1."""
    ancestors = torch.eye(above.shape[1], dtype=torch.bool, device=above.device).repeat(len(above), 1, 1)
    rows = torch.arange(len(above), device=above.device).unsqueeze(1)
    current = above
    while bool((current >= 0).any()):
        users, chains = (current >= 0).nonzero(as_tuple=True)
        ancestors[users, chains, current[users, chains]] = True
        current = torch.where(current >= 0, above[rows, current.clamp(min=0)], current)
    return ancestors


def padded(sequences: Sequence[np.ndarray], pad: int, multiple: int = 32) -> tuple[Tensor, Tensor]:
    """Right-padded ids (B, T), T a multiple, so that few shapes occur, and their lengths (B,)."""
    lengths = torch.tensor([len(s) for s in sequences])
    ids = np.full((len(sequences), -(-int(lengths.max()) // multiple) * multiple), pad, np.int64)
    for row, sequence in zip(ids, sequences):
        row[: len(sequence)] = sequence
    return torch.from_numpy(ids), lengths
