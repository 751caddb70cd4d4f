"""An item drawn token by token in an engine of its own: which tokens may come next, and how probable each is.

For engines that show the logits of many texts at each step and draw by themselves, as vLLM does. The trie's arrays lie
where the logits are, what a text has reached in them is two numbers, and no step waits for the device.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.losses import segment_logsumexp
from calrec_lite.prior.bias import UserBias
from calrec_lite.prior.collaborative import CollaborativePrior
from calrec_lite.text.trie import Trie


class Steering:
    """Keeps texts on the paths of a catalogue's trie: in each slot one, which begins after `trie.root`.

    A text is on an edge of the trie, at its first fork on an edge beyond the last one. As soon as it can only be one
    item, the end token is all that may follow: what else the item has is certain, and needs no forward.

    Args:
        catalogue: the items, two at least.
        end: the token that ends a text.
        slots: texts that are drawn side by side, at most.
        device: of the logits.
    """

    def __init__(self, catalogue: EncodedCatalogue, end: int, slots: int, device: torch.device | str) -> None:
        if not len(catalogue.trie.depth):
            raise ValueError("a catalogue of one item leaves nothing to draw")
        paths: TrieTensors = TrieTensors.of(catalogue, "catalogue").to(device)
        self.items = len(catalogue)
        self.prior: CollaborativePrior | None = catalogue.collaborative
        self.own: UserBias | None = None
        self.scale, self.ptr, self.token, self.bias = paths.logit_scale, paths.ptr, paths.token, paths.bias
        self.chain, self.chain_begin = paths.chain, paths.chain_ptr[:-1]
        self.chain_end = torch.cat([paths.chain_ptr[1:], paths.chain_ptr[-1:]])  # (E + 1,)
        self.dest = torch.cat([paths.dest, paths.dest.new_zeros(1)])  # (E + 1,): the last leads to the first fork
        self.end, self.tokens = end, int(self.token.max()) + 1
        self.key = torch.from_numpy(catalogue.trie.owner).to(device) * self.tokens + self.token  # (E,) ascending
        self.widest = _widest(catalogue.trie)
        self.histories: list[np.ndarray] = [np.empty(0, np.int64)] * slots
        self.edge = torch.full((slots,), len(self.token), device=device)  # (slots,)
        self.at = torch.zeros(slots, dtype=torch.long, device=device)  # (slots,) in `chain`: the next forced token

    def begin(self, slot: int, history: np.ndarray) -> None:
        """A new text in a slot; `history`: the user's items as indices, oldest first, those of no item do not count."""
        self.edge[slot] = len(self.token)
        self.histories[slot] = history[history < self.items]
        self.own = None

    def read(self, slots: Tensor, tokens: Tensor) -> None:
        """Take the next token of some texts: `slots`, `tokens` (n,). One that was not allowed leads anywhere."""
        edge, at = self.edge[slots], self.at[slots]
        dest, ends = self.dest[edge], self.chain_end[edge]
        forced = (dest < 0) | ((edge < len(self.token)) & (at < ends))
        found = torch.searchsorted(self.key, dest.clamp(min=0) * self.tokens + tokens)
        child = found.clamp(max=len(self.key) - 1)
        self.edge[slots] = torch.where(forced, edge, child)
        self.at[slots] = torch.where(forced, at, self.chain_begin[child]) + 1

    def apply(self, logits: Tensor, rows: Tensor, slots: Tensor, lengths: np.ndarray) -> None:
        """Put in the place of some rows of `logits` (R, V) in fp32 log P of their texts' next tokens, -inf elsewhere.

        Args:
            rows, slots: (n,) of the texts. lengths: (n,) how many of their tokens were read, on the host.
        """
        edge, at = self.edge[slots], self.at[slots]
        dest, ends = self.dest[edge], self.chain_end[edge]
        certain = dest < 0
        alone = certain | ((edge < len(self.token)) & (at < ends))
        only = torch.where(certain, self.end, self.chain[at.clamp(max=len(self.chain) - 1)])
        first = self.ptr[dest.clamp(min=0)]
        count = torch.where(alone, 1, self.ptr[dest.clamp(min=0) + 1] - first)
        owner, place = self._places(lengths)
        real = place < count[owner]  # beyond these stands the first one again
        child = first[owner] + torch.where(real, place, 0)
        tokens = torch.where(alone[owner], only[owner], self.token[child])
        entries = self.scale * logits[rows[owner], tokens] + self.bias[child]
        if self.prior is not None:
            entries = entries + self._own_bias()(slots[owner], child)
        entries = torch.where(alone[owner], 0.0, entries)
        total = segment_logsumexp(entries.masked_fill(~real, -torch.inf), owner, len(rows))
        logits.index_fill_(0, rows, -torch.inf)
        logits[rows[owner], tokens] = entries - total[owner]

    def _places(self, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
        """Of each text so many places as a fork at its depth can have children, one after the other: whose, which."""
        widths = self.widest[np.minimum(lengths, len(self.widest) - 1)]
        total = int(widths.sum())
        device = self.edge.device
        starts, per_row = (
            torch.from_numpy(a).to(device, non_blocking=True) for a in (widths.cumsum() - widths, widths)
        )
        rows = torch.arange(len(widths), device=device)
        owner = torch.repeat_interleave(rows, per_row, output_size=total)
        return owner, torch.arange(total, device=device) - starts[owner]

    def _own_bias(self) -> UserBias:
        """What each slot's user's own transitions add; made anew when another text has begun."""
        assert self.prior is not None
        if self.own is None:
            self.own = UserBias.of(self.prior, self.histories).to(self.edge.device)
        return self.own


def item_of(trie: Trie, tokens: Sequence[int]) -> int:
    """The item that the tokens of a drawn text, those after `trie.root`, lead to; the end token may follow them.

    Raises:
        ValueError: they lead to none.
    """
    fork, at = 0, 0
    while at < len(tokens):
        begin, end = trie.ptr[fork], trie.ptr[fork + 1]
        edge = begin + int(np.searchsorted(trie.token[begin:end], tokens[at]))
        if edge == end or trie.token[edge] != tokens[at]:
            break
        if trie.dest[edge] < 0:
            return int(~trie.dest[edge])
        chain = trie.chain[trie.chain_ptr[edge] : trie.chain_ptr[edge + 1]]
        if not np.array_equal(chain, tokens[at : at + len(chain)]):
            break
        fork, at = int(trie.dest[edge]), at + len(chain)
    raise ValueError(f"no item of the catalogue begins with tokens {list(tokens)}")


def _widest(trie: Trie) -> np.ndarray:
    """The most children of a fork that stands so many tokens after `trie.root`, 1 where none does."""
    depth = trie.depth - len(trie.root)
    widest = np.ones(int(depth.max()) + 2, np.int64)  # the last one is for all that is deeper
    np.maximum.at(widest, depth, np.diff(trie.ptr))
    return widest
