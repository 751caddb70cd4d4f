"""The two-tower step: one gradient of the objective, however it is cut into micro-batches (docs/method.md, 3).

Where a whole step fits in memory it is plain autograd. Otherwise item vectors are computed first, without a graph. With
`direction: user_to_item` an anchor's terms need these and no other anchor: each chunk of rows runs once, item texts
once more, by the gradient that chunks gathered at their vectors. In the other directions rows, too, run without a graph
first (GradCache, Gao et al. 2021), unless `offload` keeps all graphs. Dropout is the same in both passes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from calrec_lite.method.batch import Chunk, ItemChunk, StepBatch
from calrec_lite.method.losses import contrastive_loss
from calrec_lite.method.towers import RowStates, Towers
from calrec_lite.model.memory import trim_heap
from calrec_lite.model.random_states import RngState, rng_state, set_rng_state
from calrec_lite.recipe import Loss

Backward = Callable[[Tensor], None]
Part = TypeVar("Part", Chunk, ItemChunk)


@dataclass
class StepLoss:
    """Detached scalars of one step: the objective and its components, `nats_per_item` = summed loss / targets."""

    loss: Tensor
    nig: Tensor
    tt: Tensor
    ut: Tensor
    nats_per_item: Tensor


def two_tower_step(towers: Towers, batch: StepBatch, loss: Loss, backward: Backward | None) -> StepLoss:
    """Compute the objective of a step and, if `backward` is given, its gradient.

    Args:
        backward: called with scalars whose gradients add up to the objective's; None to evaluate only.
    """
    contrast = bool(len(batch.anchor_item))
    weight = (1 - loss.alpha - loss.beta if contrast else 1.0) / batch.supervised
    if contrast and (batch.at_once or loss.direction != "user_to_item"):
        run = _whole if batch.at_once or (towers.offload and backward) else _cached
    else:
        run = _rows_once
    return run(towers, batch, loss, weight, backward)


def _whole(towers: Towers, batch: StepBatch, loss: Loss, weight: float, backward: Backward | None) -> StepLoss:
    """One graph of all chunks."""
    texts = torch.cat([towers.items(part) for part in batch.items])
    rows = [towers.rows(chunk) for chunk in batch.chunks]
    tt, ut = _contrastive(torch.cat([r.user for r in rows]), torch.cat([r.target for r in rows]), texts, batch, loss)
    nll = torch.stack([r.nll for r in rows]).sum()
    if backward:
        backward(weight * nll + loss.alpha * tt + loss.beta * ut)
    return _report(nll, tt, ut, weight, batch, loss)


def _rows_once(towers: Towers, batch: StepBatch, loss: Loss, weight: float, backward: Backward | None) -> StepLoss:
    texts, item_rng = _texts(towers, batch)
    nll, tt, ut = torch.zeros(3, device=batch.anchor_item.device)
    first = 0
    for chunk in _one_by_one(batch.chunks):
        states = towers.rows(chunk)
        user, target = (vectors.detach().requires_grad_() for vectors in (states.user, states.target))
        if len(user):
            with torch.enable_grad():
                own_tt, own_ut = _contrastive(user, target, texts, batch, loss, slice(first, first + len(user)))
                if backward:
                    (loss.alpha * own_tt + loss.beta * own_ut).backward()
            tt, ut, first = tt + own_tt.detach(), ut + own_ut.detach(), first + len(user)
        if backward:
            backward(_surrogate(states, _grad(user), _grad(target), weight))
        nll = nll + states.nll.detach()
        del states  # its graph has to be gone before the next one is built
    if backward:
        _replay_items(towers, batch, backward, item_rng, texts)
    return _report(nll, tt, ut, weight, batch, loss)


def _cached(towers: Towers, batch: StepBatch, loss: Loss, weight: float, backward: Backward | None) -> StepLoss:
    texts, item_rng = _texts(towers, batch)
    with torch.no_grad():  # the likelihood is computed where it is needed: with its graph
        rows, row_rng = _outputs_and_rng(lambda c: towers.rows(c, likelihood=backward is None), batch.chunks)
    user, target = (torch.cat(own).requires_grad_() for own in zip(*((r.user, r.target) for r in rows)))
    nll = torch.stack([r.nll for r in rows]).sum()
    with torch.enable_grad():
        tt, ut = _contrastive(user, target, texts, batch, loss)
    if backward:
        (loss.alpha * tt + loss.beta * ut).backward()
        rng_after = rng_state(batch.anchor_item.device)
        users, targets = (_grad(v).split([len(c.anchor_row) for c in batch.chunks]) for v in (user, target))
        for chunk, rng, of_user, of_target in zip(_one_by_one(batch.chunks), row_rng, users, targets):
            set_rng_state(rng)
            states = towers.rows(chunk)
            backward(_surrogate(states, of_user, of_target, weight))
            nll = nll + states.nll.detach()
            del states
        set_rng_state(rng_after)
        _replay_items(towers, batch, backward, item_rng, texts)
    return _report(nll, tt, ut, weight, batch, loss)


@torch.no_grad()
def _texts(towers: Towers, batch: StepBatch) -> tuple[Tensor, list[RngState]]:
    """(M, D) vectors of the step's item texts, a leaf that gathers their gradient, and what each chunk drew from."""
    items, rng = _outputs_and_rng(towers.items, batch.items)
    return torch.cat(items or [torch.empty(0, 0)]).requires_grad_(), rng


def _surrogate(states: RowStates, user: Tensor, target: Tensor, weight: float) -> Tensor:
    """A scalar with the objective's gradient for one chunk; `user`, `target`: that of the contrastive terms there."""
    return weight * states.nll + (states.user * user).sum() + (states.target * target).sum()


def _replay_items(towers: Towers, batch: StepBatch, backward: Backward, rng: list[RngState], texts: Tensor) -> None:
    start, rng_after = 0, rng_state(texts.device)
    for chunk, chunk_rng in zip(_one_by_one(batch.items), rng):
        set_rng_state(chunk_rng)
        part = slice(start, start + len(chunk.ends))
        start = part.stop
        backward((towers.items(chunk) * _grad(texts)[part]).sum())
    set_rng_state(rng_after)


def _grad(vectors: Tensor) -> Tensor:
    return torch.zeros_like(vectors) if vectors.grad is None else vectors.grad


def _contrastive(
    user: Tensor, target: Tensor, texts: Tensor, batch: StepBatch, loss: Loss, anchors: slice = slice(0, None)
) -> tuple[Tensor, Tensor]:
    """What the anchors given, of all of the step, add to L_TT and L_UT."""
    given = texts[batch.anchor_item], batch.negatives[anchors], loss.tau, loss.direction, anchors.start
    return contrastive_loss(target, *given), contrastive_loss(user, *given)


def _report(nll: Tensor, tt: Tensor, ut: Tensor, weight: float, batch: StepBatch, loss: Loss) -> StepLoss:
    nll, tt, ut = nll.detach(), tt.detach(), ut.detach()
    total = weight * nll + loss.alpha * tt + loss.beta * ut
    return StepLoss(total, nll / batch.supervised, tt, ut, nll / batch.targets)


def _outputs_and_rng(run: Callable[[Any], Any], chunks: list[Part]) -> tuple[list[Any], list[Any]]:
    outputs, rng = [], []
    for chunk in _one_by_one(chunks):
        rng.append(rng_state(chunk.ids.device))
        outputs.append(run(chunk))
    return outputs, rng


def _one_by_one(chunks: list[Part]) -> Iterator[Part]:
    """One chunk after another, each in the memory that those before it have left."""
    for chunk in chunks:
        if len(chunks) > 1:
            trim_heap(chunk.ids.device)
        yield chunk
