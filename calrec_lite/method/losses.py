"""The mixed objective: (1 - alpha - beta) L_NIG + alpha L_TT + beta L_UT (docs/method.md, 3 and 5b)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calrec_lite.method.batch import Chunk, Forks
from calrec_lite.model.head_loss import GradientInForward, vocabulary_nll
from calrec_lite.model.trimming import all_rows, rows_of


def generation_loss(hidden: Tensor, head: nn.Module, chunk: Chunk) -> Tensor:
    """Sum (not mean) over the chunk's supervised positions of -log P(token | everything before it), in nats.

    Args:
        hidden: (B, T, D) states after the final norm.
        head: the LM head, trimmed or whole.

    The caller divides by the positions of the whole optimiser step. With `softmax: catalogue` the probability is over
    the children of a fork of the trie; the chunk's `vocabulary_weight` adds so much of the loss over the vocabulary.
    """
    flat = hidden.flatten(0, 1)  # (B * T, D)
    if not len(chunk.labels):  # a filler's: no loss, but a graph to go back through
        return flat[:0].float().sum()
    if chunk.forks is None:
        return vocabulary_nll(flat[chunk.positions], all_rows(head), chunk.labels).sum()
    total = catalogue_nll(flat[chunk.forks.positions], rows_of(head, chunk.forks.tokens), chunk.forks).sum()
    if chunk.vocabulary_weight:
        whole = all_rows(head)
        total = total + chunk.vocabulary_weight * vocabulary_nll(flat[chunk.positions], whole, chunk.labels).sum()
    return total


def catalogue_nll(states: Tensor, children: Tensor, forks: Forks) -> Tensor:
    """(F,) -log P(child taken | children of the fork).

    Only columns of tokens that are children somewhere in the chunk are computed; each fork gathers its own. The logits
    start from the items' popularity and the user's transitions (`prior`; logit adjustment, Menon et al. 2021). They are
    scaled down (`loss.logit_scale`): a language model predicts words far better than it can purchases.

    Args:
        states: (F, D) the state that decides each fork. children: (U, D) the LM head's rows of
            `forks.tokens`, frozen: they get no gradient.
    """
    return _ForkLoss.apply(states, children, forks)


class _ForkLoss(GradientInForward):
    """As `vocabulary_nll`: forks of a large catalogue have children all over the vocabulary."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, children: Tensor, forks: Forks) -> Tensor:
        def one(start: int, end: int, grad: Tensor | None) -> Tensor:
            fork, entry, chosen = forks.slice(start, end)  # (E,), (E,), (S,)
            token = forks.entry_token[entry]
            logits = (states[start:end] @ children.T).float()  # (S, U)
            entries = forks.logit_scale * logits[fork, token] + forks.entry_bias[entry]  # (E,)
            if forks.own is not None:
                entries += forks.own(forks.target[start:end][fork], entry)
            total = segment_logsumexp(entries, fork, end - start)
            nll = total - entries[chosen]
            if grad is not None:
                entries.sub_(total[fork]).exp_()[chosen] -= 1
                logits.zero_().index_put_((fork, token), entries.mul_(forks.logit_scale))
                torch.mm(logits.to(children.dtype), children, out=grad)
            return nll

        return _ForkLoss.sliced(ctx, states, len(children), one)


def segment_logsumexp(values: Tensor, segment: Tensor, n: int) -> Tensor:
    """(n,) log of the sum of exp(values) within each segment; `values`, `segment` (E,)."""
    maximum = values.detach().new_full((n,), -torch.inf).scatter_reduce(0, segment, values.detach(), "amax")
    return values.new_zeros(n).index_add(0, segment, (values - maximum[segment]).exp()).log() + maximum


def contrastive_loss(
    anchors: Tensor, texts: Tensor, negatives: Tensor, tau: float, direction: str, first: int = 0
) -> Tensor:
    """Mean InfoNCE over all of the step's targets, in nats; of `user_to_item` what some of them add to it.

    Args:
        anchors: (S, D) unit vectors v_U or v_T|U of the targets `first : first + S`; of all A but for `user_to_item`.
        texts: (A, D) unit vectors v_T of all targets.
        negatives: (S, A) whether text j is a negative of anchor i; an anchor's own is always the positive.
        direction: softmax over texts (`user_to_item`), over anchors (`item_to_user`), or the mean of both.
    """
    labels = torch.arange(first, first + len(anchors), device=anchors.device)
    candidates = negatives | (labels.unsqueeze(1) == torch.arange(len(texts), device=anchors.device))
    logits = (anchors @ texts.T / tau).masked_fill(~candidates, -torch.inf)  # (S, A)
    if direction == "user_to_item":
        return F.cross_entropy(logits, labels, reduction="sum") / len(texts)
    if direction == "item_to_user":
        return F.cross_entropy(logits.T, labels)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
