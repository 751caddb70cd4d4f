"""The mixed objective: (1 - alpha - beta) L_NIG + alpha L_TT + beta L_UT (docs/method.md, 3 and 5b)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calrec_lite.method.batch import Chunk, Forks

HEAD_ENTRIES = 1 << 24  # logits held at once: 64 MB in fp32, whatever the vocabulary


def generation_loss(hidden: Tensor, head: Tensor, chunk: Chunk) -> Tensor:
    """Sum (not mean) over the chunk's supervised positions of -log P(token | everything before it), in nats.

    Args:
        hidden: (B, T, D) states after the final norm.
        head: (V, D) weights of the LM head.

    The caller divides by the positions of the whole optimiser step. With `softmax: catalogue` the probability is over
    the children of a fork of the trie; the chunk's `vocabulary_weight` adds so much of the loss over the vocabulary.
    """
    flat = hidden.flatten(0, 1)  # (B * T, D)
    if chunk.forks is None:
        return vocabulary_nll(flat[chunk.positions], head, chunk.labels).sum()
    total = catalogue_nll(flat[chunk.forks.positions], head, chunk.forks).sum()
    if chunk.vocabulary_weight:
        total = total + chunk.vocabulary_weight * vocabulary_nll(flat[chunk.positions], head, chunk.labels).sum()
    return total


def vocabulary_nll(states: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """(P,) -log softmax(states @ head.T)[labels]; logits exist for a slice of positions at a time.

    Args:
        states: (P, D). head: (V, D), frozen: it gets no gradient. labels: (P,).
    """
    return _HeadLoss.apply(states, head, labels)


class _GradientInForward(torch.autograd.Function):
    """A loss whose gradient with respect to its states is computed, and saved, in the forward pass."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (grad,) = ctx.saved_tensors
        return (gradient.unsqueeze(1) * grad).to(grad.dtype), None, None  # a weight in bf16 would be off by up to .4%


class _HeadLoss(_GradientInForward):
    """The gradient at the states is (softmax - one-hot) @ head, known as soon as the loss is: two products, not three.

    Keeping logits for the backward pass would cost P * V, computing them again a third product.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        nll = states.new_empty(len(states), dtype=torch.float32)
        grad = torch.empty_like(states) if ctx.needs_input_grad[0] else None  # (P, D)
        size = max(1, HEAD_ENTRIES // head.shape[0])
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            label = labels[part].unsqueeze(1)
            scores = (states[part] @ head.T).float().log_softmax(-1)  # (S, V)
            nll[part] = -scores.gather(1, label).squeeze(1)
            if grad is not None:
                logit_grad = scores.exp_().scatter_add_(1, label, scores.new_full(label.shape, -1.0))
                torch.mm(logit_grad.to(head.dtype), head, out=grad[part])
        if grad is not None:
            ctx.save_for_backward(grad)
        return nll


def catalogue_nll(states: Tensor, head: Tensor, forks: Forks) -> Tensor:
    """(F,) -log P(child taken | children of the fork).

    Only columns of tokens that are children somewhere in the chunk are computed; each fork gathers its own. The logits
    start from the items' popularity and the user's transitions (`prior`; logit adjustment, Menon et al. 2021). They are
    scaled down (`loss.logit_scale`): a language model predicts words far better than it can purchases.

    Args:
        states: (F, D) the state that decides each fork. head: (V, D), frozen: it gets no gradient.
    """
    return _ForkLoss.apply(states, head[forks.tokens], forks)


class _ForkLoss(_GradientInForward):
    """As `_HeadLoss`, a slice of forks at a time: those of a large catalogue have children all over the vocabulary."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, children: Tensor, forks: Forks) -> Tensor:
        nll = states.new_empty(len(states), dtype=torch.float32)
        grad = torch.empty_like(states) if ctx.needs_input_grad[0] else None  # (F, D)
        size = max(1, HEAD_ENTRIES // max(1, len(children)))
        for start in range(0, len(states), size):
            end = min(len(states), start + size)
            fork, entry, chosen = forks.slice(start, end)  # (E,), (E,), (S,)
            token = forks.entry_token[entry]
            logits = (states[start:end] @ children.T).float()  # (S, U)
            entries = forks.logit_scale * logits[fork, token] + forks.entry_bias[entry]  # (E,)
            if forks.own is not None:
                entries += forks.own(forks.target[start:end][fork], entry)
            total = segment_logsumexp(entries, fork, end - start)
            nll[start:end] = total - entries[chosen]
            if grad is not None:
                entry_grad = (entries - total[fork]).exp_()
                entry_grad[chosen] -= 1
                logit_grad = logits.zero_().index_put_((fork, token), forks.logit_scale * entry_grad)
                torch.mm(logit_grad.to(children.dtype), children, out=grad[start:end])
        if grad is not None:
            ctx.save_for_backward(grad)
        return nll


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
