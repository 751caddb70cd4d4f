"""A user's prior over the items of a catalogue: popularity, mixed with what followed the user's latest items.

docs/method.md, 5b, has the formula. No torch: whoever encodes a catalogue makes one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from calrec_lite.data.transitions import Transitions
from calrec_lite.text.trie import Trie

ROUNDING = 1e-5  # of a score, once an event is taken out of it: less is no other event, whose scores are .0005 or more


@dataclass(frozen=True)
class Mixture:
    """p_u of some users. The items that have transitions are in flat arrays, user after user; all others have none.

    Attributes:
        popularity: (U,) the weight of popularity: 1 where nothing followed any of the user's items.
        key: (n,) ascending: u * N + the item's place in the trie's order.
        share: (n,) what is added to the item's probability for its transitions.
    """

    popularity: np.ndarray
    key: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class CollaborativePrior:
    """p_u(item) = (1 - weight) * its share of all counts + weight * its share of the user's transition scores.

    Attributes:
        trie: of the items.
        counts: (N,) how often each was trained on.
        transitions: counted on the same events.
        weight: of the transitions (`loss.collaborative`), below 1.
        strength: of the logarithm of what this adds up to (`loss.prior`).
    """

    trie: Trie
    counts: np.ndarray
    transitions: Transitions
    weight: float
    strength: float

    @cached_property
    def popularity(self) -> np.ndarray:
        """(N,) each item's share of all counts + 1, in the trie's order."""
        return (self.counts[self.trie.order] + 1) / (self.counts + 1).sum()

    @cached_property
    def _placed(self) -> Transitions:
        return self.transitions.in_order(self.trie.order)

    def mixture(self, histories: Sequence[np.ndarray], targets: np.ndarray | None = None) -> Mixture:
        """The prior after each history, as sparse as what ever followed its items.

        Args:
            histories: U of them, of catalogue indices, oldest first.
            targets: (U,) what came next, where that event was counted: it is left out, so that the prior does not know
                the answer. None: it was not.
        """
        scores = self._placed.sparse_scores(histories)
        scores.sort_indices()
        user = np.repeat(np.arange(len(histories)), np.diff(scores.indptr))
        key, score = user * self.trie.n_items + scores.indices, scores.data.astype(np.float64)
        if targets is not None:
            own = np.arange(len(targets)) * self.trie.n_items + self.trie.place[targets]
            at = np.searchsorted(key, own)
            known = np.append(key, -1)[at] == own
            score[at[known]] -= self.transitions.event_scores(histories, targets, self.counts)[known]
            kept = score > ROUNDING
            user, key, score = user[kept], key[kept], score[kept]
        total = np.bincount(user, score, len(histories))
        popularity = np.where(total > 0, 1 - self.weight, 1.0)
        return Mixture(popularity, key, self.weight * score / total[user])
