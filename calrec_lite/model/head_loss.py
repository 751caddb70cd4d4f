"""The loss of an LM head over its whole vocabulary, with its gradient taken there and then, a slice at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HEAD_ENTRIES = 1 << 24  # logits held at once: 64 MB in fp32, whatever the vocabulary


def vocabulary_nll(states: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """(P,) -log softmax(states @ head.T)[labels]; logits exist for a slice of positions at a time.

    Args:
        states: (P, D). head: (V, D), frozen: it gets no gradient. labels: (P,).
    """
    return _HeadLoss.apply(states, head, labels)


class GradientInForward(torch.autograd.Function):
    """A loss whose gradient with respect to its states is computed, and saved, in the forward pass.

    A slice of states at a time, by a function of its own: nothing of a slice is alive at the next one.
    """

    @staticmethod
    def sliced(ctx: Any, states: Tensor, width: int, one: Callable[[int, int, Tensor | None], Tensor]) -> Tensor:
        """(P,) of `one(start, end, where the gradient goes)`, where a slice has logits of `width` tokens."""
        nll = states.new_empty(len(states), dtype=torch.float32)
        grad = torch.empty_like(states) if ctx.needs_input_grad[0] else None  # (P, D)
        size = max(1, HEAD_ENTRIES // max(1, width))
        for start in range(0, len(states), size):
            end = min(len(states), start + size)
            nll[start:end] = one(start, end, None if grad is None else grad[start:end])
        if grad is not None:
            ctx.save_for_backward(grad)
        return nll

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (grad,) = ctx.saved_tensors
        return (gradient.unsqueeze(1) * grad).to(grad.dtype), None, None  # a weight in bf16 would be off by up to .4%


class _HeadLoss(GradientInForward):
    """The gradient at the states is (softmax - one-hot) @ head, known as soon as the loss is: two products, not three.

    Keeping logits for the backward pass would cost P * V, computing them again a third product.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        def one(start: int, end: int, grad: Tensor | None) -> Tensor:
            label = labels[start:end].unsqueeze(1)
            scores = (states[start:end] @ head.T).float()  # (S, V)
            torch.log_softmax(scores, -1, out=scores)  # in place: a value is read for the last time where it is written
            nll = -scores.gather(1, label).squeeze(1)
            if grad is not None:
                scores.exp_().scatter_add_(1, label, scores.new_full(label.shape, -1.0))
                torch.mm(scores.to(head.dtype), head, out=grad)
            return nll

        return _HeadLoss.sliced(ctx, states, len(head), one)
