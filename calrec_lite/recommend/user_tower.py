"""A light user tower over the items' text vectors: what comes next, without the LLM in the loop (docs/method.md, 8)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

History = np.ndarray  # of catalogue indices, oldest first
USERS = 512  # encoded at once


class UserTower(nn.Module):
    """Causal transformer over item vectors; `log P(next item)` is a softmax over cosines with all of them.

    An item's vector is its whitened text vector, projected, plus a vector of its own (`memory`, zero at the start); a
    user's is the recency-weighted sum of the history's item vectors plus what the transformer adds. So an untrained
    tower already ranks by text and recency, and training adds what purchases know. An item that was never trained on
    has its text alone.

    Args:
        items: (N, D) whitened text vectors, of unit length, the most important coordinates first.
        dim: coordinates of text that are used, and the width of everything.
        layers, heads: of the transformer. length: latest items of a history that are read.
        dropout: in the transformer and on its input.
        memory: whether items have vectors of their own.
        decay: by which an item of the history counts less with each later one, at the start.
    """

    def __init__(
        self,
        items: Tensor,
        dim: int = 128,
        layers: int = 1,
        heads: int = 2,
        length: int = 20,
        dropout: float = 0.5,
        memory: bool = True,
        decay: float = 0.6,
    ) -> None:
        super().__init__()
        dim = min(dim, items.shape[1])
        heads = min(heads, dim)  # of very few items
        dim -= dim % heads
        self.length = length
        self.settings: dict[str, int] = {"dim": dim, "layers": layers, "heads": heads, "length": length}
        self.register_buffer("text", F.normalize(items[:, :dim], dim=-1), persistent=False)
        self.project = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.project.weight)
        self.memory = nn.Parameter(torch.zeros(len(items), dim), requires_grad=memory)
        self.position = nn.Parameter(0.02 * torch.randn(length, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.decay_logit = nn.Parameter(torch.tensor(decay).logit())
        self.gate = nn.Parameter(torch.full((dim,), 0.1))
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    @property
    def padding(self) -> int:
        """The index that stands for no item."""
        return len(self.memory)

    def items(self) -> Tensor:
        """(N, D) unit vectors of all items."""
        return F.normalize(self.project(self.text) + self.memory, dim=-1)

    def users(self, rows: Tensor, items: Tensor) -> Tensor:
        """(B, T, D) the user's unit vector after each place of `rows` (B, T), padded on the left.

        Args:
            items: (N, D) from `items`.
        """
        vectors = torch.cat([items, items.new_zeros(1, items.shape[1])])[rows]  # (B, T, D)
        length = rows.shape[1]
        age = torch.arange(length, device=rows.device)
        age = age.unsqueeze(1) - age  # (T, T)
        weights = torch.where(age >= 0, self.decay_logit.sigmoid() ** age.clamp(min=0), 0)
        recent = F.normalize(weights @ vectors, dim=-1)
        scale = items.shape[1] ** 0.5  # unit vectors to the size that a transformer expects
        hidden = self.dropout(vectors * scale + self.position[-length:])
        blocked = (age < 0) | (rows == self.padding).unsqueeze(1)  # (B, T, T)
        blocked &= ~torch.eye(length, dtype=torch.bool, device=rows.device)  # a softmax over nothing is no number
        heads = self.encoder.layers[0].self_attn.num_heads
        added = self.norm(self.encoder(hidden, mask=blocked.repeat_interleave(heads, 0)))
        return F.normalize(recent + self.gate * added / scale, dim=-1)

    def logits(self, users: Tensor, items: Tensor) -> Tensor:
        """(..., N) scaled cosines of users (..., D) and items (N, D)."""
        return (self.log_scale.exp() * users) @ items.T  # users scaled: there are fewer of them than of logits

    def rows(self, histories: Sequence[History]) -> Tensor:
        """(B, length) the latest items of histories, padded on the left."""
        rows = np.full((len(histories), self.length), self.padding)
        for row, history in zip(rows, histories, strict=True):
            row[max(0, self.length - len(history)) :] = history[-self.length :]
        return torch.from_numpy(rows).to(self.memory.device)

    @torch.no_grad()
    def scores(self, histories: Sequence[History], items: Tensor | None = None) -> Tensor:
        """(U, N) log-probability of every item after each history, none of them empty.

        Args:
            items: from `items`, where they are at hand.
        """
        items = self.items() if items is None else items
        users = [self.users(part, items)[:, -1] for part in self.rows(histories).split(USERS)]
        return self.logits(torch.cat(users), items).log_softmax(-1)
