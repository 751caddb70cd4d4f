"""Weights of readings by logistic regression: what makes the items that were taken likely among their candidates."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from calrec_lite.bars import wait_bar

PENALTY = 1e-3  # of squared weights, of parts scaled to a standard deviation of 1: only parts that are alike feel it
CONSTANT = 1e-4  # deviation of a part that says nothing of these candidates: its weight is 0
STEPS = 100


@dataclass(frozen=True)
class Fitted:
    """Part -> weight, and its 95% interval (of the likelihood's curvature at its maximum)."""

    weights: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    users: int


def fit_weights(parts: Mapping[str, Tensor], target: Tensor, open_: Tensor) -> Fitted:
    """Weights that maximise the mean log-probability of the targets under softmax(sum of weighted parts).

    McFadden's conditional logit, with as many parameters as parts.

    Args:
        parts: part -> (U, C) its score of each candidate.
        target: (U,) the place of what was taken, which is among the candidates.
        open_: (U, C) which candidates there are.
    """
    values = torch.stack(list(parts.values())).double()  # (P, U, C)
    mean = (values * open_).sum(2, keepdim=True) / open_.sum(1)[None, :, None]  # a user's: only differences count
    variance = ((values - mean) ** 2 * open_).sum((1, 2)) / open_.sum()
    varies = variance.sqrt() > CONSTANT
    deviation = torch.where(varies, variance.sqrt(), 1.0)
    scaled = (values - mean) / deviation[:, None, None] * varies[:, None, None]

    def loss(weights: Tensor) -> Tensor:
        scores = torch.einsum("p,puc->uc", weights, scaled).masked_fill(~open_, -torch.inf)
        taken = scores.gather(1, target[:, None])[:, 0]
        return (scores.logsumexp(1) - taken).mean() + PENALTY * (weights**2).sum()

    weights = torch.ones(len(values), dtype=torch.double).div_(len(values)).requires_grad_()
    optimiser = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(weights)
        value.backward()
        bar.update()
        return value

    with wait_bar("weights, at most", STEPS * 5 // 4, "step") as bar:  # of evaluations, by LBFGS's own limit
        optimiser.step(closure)  # type: ignore[arg-type]  # its own annotation says float
    curvature = torch.autograd.functional.hessian(loss, weights.detach()) * len(target)
    error = torch.linalg.inv(curvature).diagonal().clamp(min=0).sqrt()
    low, high = ((weights.detach() + sign * 1.96 * error) / deviation for sign in (-1, 1))
    found = torch.where(varies, weights.detach() / deviation, 0.0).tolist()
    return Fitted(
        dict(zip(parts, found)),
        {name: (float(a), float(b)) for name, a, b in zip(parts, low, high)},
        len(target),
    )
