"""A domain's items as the loss sees them: ids, trie, and the bias and scale of logits in the catalogue softmax."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from calrec_lite.data.domain import Catalogue
from calrec_lite.data.transitions import Transitions
from calrec_lite.prior.collaborative import CollaborativePrior
from calrec_lite.text.encoding import Encoder
from calrec_lite.text.template import Template
from calrec_lite.text.token_lists import TokenLists
from calrec_lite.text.tokenised import Tokenised
from calrec_lite.text.trie import Trie


@dataclass(frozen=True)
class EncodedCatalogue:
    """A domain's items ready for the model: texts, ids, and the trie over them.

    Attributes:
        name: the domain.
        titles: what a person calls each item (its first attribute).
        texts: each item as the template writes it.
        tokens: ids of each text, distinct, none a prefix of another.
        trie: the radix tree over `tokens`.
        bias: (E,) what is added to the logit of each edge of the trie: `loss.prior` times the log of how often the
            items below it were trained on.
        counts: (N,) how often each item was trained on.
        logit_scale: what the LM head's logits are multiplied by before `bias` is added (`loss.logit_scale`).
        collaborative: what a user's own transitions add to `bias`; None: nothing.
    """

    name: str
    titles: list[str]
    texts: list[str]
    tokens: TokenLists
    trie: Trie = field(repr=False)
    bias: np.ndarray
    counts: np.ndarray
    logit_scale: float
    collaborative: CollaborativePrior | None = None

    def __len__(self) -> int:
        return len(self.texts)


def encode_catalogue(
    name: str,
    catalogue: Catalogue,
    encoder: Encoder,
    counts: np.ndarray | None = None,
    prior: float = 0.0,
    logit_scale: float = 1.0,
    progress: bool = False,
    labels: Sequence[str] | None = None,
    collaborative: float = 0.0,
    transitions: Transitions | None = None,
    beside: Path | None = None,
) -> EncodedCatalogue:
    """Tokenise a catalogue.

    Args:
        counts: (N,) events of each item in the training part; None: all alike.
        prior, logit_scale: of their logarithm, and of the model's logits, in the catalogue softmax (`loss.prior`,
            `loss.logit_scale`).
        labels: of the items' texts, in order; None: all that any item has.
        collaborative, transitions: weight in a user's prior (`loss.collaborative`), and of what; None: of nothing.
        beside: folder of the catalogue, which keeps the tokens of a large one.

    Raises:
        InputError: where two items cannot be told apart by their ids.
    """
    template = Template(encoder.text, catalogue.labels if labels is None else tuple(labels))
    texts = [template.item(f) for f in catalogue.fields]
    tokenised = Tokenised.of(name, texts, encoder, progress, beside)
    tokens, trie = tokenised.tokens, tokenised.trie
    counts = np.zeros(len(tokens), np.int64) if counts is None else counts
    bias = (prior * np.log(trie.below(counts + 1.0))).astype(np.float32)
    mixed = None if transitions is None else CollaborativePrior(trie, counts, transitions, collaborative, prior)
    return EncodedCatalogue(name, catalogue.titles, texts, tokens, trie, bias, counts, logit_scale, mixed)
