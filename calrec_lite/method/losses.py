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

    The caller divides by the positions of the whole optimiser step. With `softmax: catalogue` the
    probability is over the children of the trie's fork and positions without a fork cost nothing;
    the chunk's `vocabulary_weight` adds so much of the loss over the vocabulary.
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


class _Known(torch.autograd.Function):
    """A loss whose gradient at its states is known in the forward pass, and saved there."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (pull,) = ctx.saved_tensors
        return (gradient.unsqueeze(1) * pull).to(pull.dtype), None, None  # a weight in bf16 would be off by up to .4%


class _HeadLoss(_Known):
    """The gradient at the states is (softmax - one-hot) @ head, known as soon as the loss is: two products, not three.

    Keeping logits for the backward pass would cost P * V, computing them again a third product.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        nll = states.new_empty(len(states), dtype=torch.float32)
        pull = torch.empty_like(states) if ctx.needs_input_grad[0] else None  # (P, D)
        size = max(1, HEAD_ENTRIES // head.shape[0])
        for at in range(0, len(states), size):
            here = slice(at, at + size)
            own = labels[here].unsqueeze(1)
            scores = (states[here] @ head.T).float().log_softmax(-1)  # (S, V)
            nll[here] = -scores.gather(1, own).squeeze(1)
            if pull is not None:
                share = scores.exp_().scatter_add_(1, own, scores.new_full(own.shape, -1.0))
                torch.mm(share.to(head.dtype), head, out=pull[here])
        if pull is not None:
            ctx.save_for_backward(pull)
        return nll


def catalogue_nll(states: Tensor, head: Tensor, forks: Forks) -> Tensor:
    """(F,) -log P(child taken | children of the fork).

    Only the columns of tokens that are children somewhere in the chunk are computed; each fork then
    gathers its own, so no mask over the vocabulary exists. The logits start from the items' popularity
    (`loss.prior`; logit adjustment, Menon et al. 2021), so that what is learnt is what sets a user apart.
    They are scaled down (`loss.logit_scale`): a language model is far surer of words than it can be of purchases.

    Args:
        states: (F, D) the state that decides each fork. head: (V, D), frozen: it gets no gradient.
    """
    return _ForkLoss.apply(states, head[forks.tokens], forks)


class _ForkLoss(_Known):
    """As `_HeadLoss`: a slice of forks at a time, its gradient taken there and then, for a large catalogue's forks have
    children all over the vocabulary."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, children: Tensor, forks: Forks) -> Tensor:
        nll = states.new_empty(len(states), dtype=torch.float32)
        pull = torch.empty_like(states) if ctx.needs_input_grad[0] else None  # (F, D)
        size = max(1, HEAD_ENTRIES // max(1, len(children)))
        for at in range(0, len(states), size):
            end = min(len(states), at + size)
            fork, entry, chosen = forks.slice(at, end)  # (E,), (E,), (S,)
            token = forks.entry_token[entry]
            logits = (states[at:end] @ children.T).float()  # (S, U)
            entries = forks.logit_scale * logits[fork, token] + forks.entry_bias[entry]  # (E,)
            total = segment_logsumexp(entries, fork, end - at)
            nll[at:end] = total - entries[chosen]
            if pull is not None:
                share = (entries - total[fork]).exp_()
                share[chosen] -= 1
                of_logits = logits.zero_().index_put_((fork, token), forks.logit_scale * share)
                torch.mm(of_logits.to(children.dtype), children, out=pull[at:end])
        if pull is not None:
            ctx.save_for_backward(pull)
        return nll


def segment_logsumexp(values: Tensor, segment: Tensor, n: int) -> Tensor:
    """(n,) log of the sum of exp(values) within each segment; `values`, `segment` (E,)."""
    top = values.detach().new_full((n,), -torch.inf).scatter_reduce(0, segment, values.detach(), "amax")
    return values.new_zeros(n).index_add(0, segment, (values - top[segment]).exp()).log() + top


def contrastive_loss(anchors: Tensor, texts: Tensor, negatives: Tensor, tau: float, direction: str) -> Tensor:
    """Mean InfoNCE over the step's targets, in nats.

    Args:
        anchors: (A, D) unit vectors v_U or v_T|U.
        texts: (A, D) unit vectors v_T of the same targets.
        negatives: (A, A) whether text j is a negative of anchor i; the diagonal is always the positive.
        direction: softmax over texts (`user_to_item`), over anchors (`item_to_user`), or the mean of both.
    """
    keep = negatives | torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    logits = (anchors @ texts.T / tau).masked_fill(~keep, -torch.inf)  # (A, A)
    labels = torch.arange(len(anchors), device=anchors.device)
    if direction == "user_to_item":
        return F.cross_entropy(logits, labels)
    if direction == "item_to_user":
        return F.cross_entropy(logits.T, labels)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
