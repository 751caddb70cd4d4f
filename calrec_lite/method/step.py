"""The two-tower step: one gradient of the objective, however it is cut into micro-batches (docs/method.md, 3).

Where a whole step fits in memory it is plain autograd. Otherwise item vectors are computed first, without a graph. With
`direction: user_to_item` an anchor's terms need these and no other anchor: each chunk of rows runs once, item texts
once more, by the gradient that chunks gathered at their vectors. In the other directions rows, too, run without a graph
first (GradCache, Gao et al. 2021), unless `offload` keeps all graphs. Dropout is the same in both passes.

Several processes share a step out: each runs its rows and its item texts, and item vectors (in the other directions
rows' vectors, too) are gathered, with gradients. Every way of cutting asks for the same sums in the same order.
"""

from collections.abc import Callable, Iterable, Iterator
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
        backward: called with scalars whose gradients add up to the objective's, over all processes; None to evaluate.
    """
    contrast = bool(len(batch.anchor_item))
    weight = (1 - loss.alpha - loss.beta if contrast else 1.0) / batch.supervised
    if contrast and (batch.at_once or loss.direction != "user_to_item"):
        run = _whole if batch.at_once or (towers.offload and backward) else _cached
    else:
        run = _rows_once
    with towers.working():
        return run(towers, batch, loss, weight, backward)


def _whole(towers: Towers, batch: StepBatch, loss: Loss, weight: float, backward: Backward | None) -> StepLoss:
    """One graph of all chunks."""
    own, rows = _own(towers, batch)
    texts = batch.processes.gathered(_joined(towers, own), batch.first_text, batch.texts)
    user, target = (torch.cat(vectors) for vectors in zip(*((r.user, r.target) for r in rows)))
    if loss.direction == "user_to_item":
        anchors = slice(batch.first_anchor, batch.first_anchor + len(user))
        tt, ut = _contrastive(user, target, texts, batch, loss, anchors)
    else:
        user, target = (_all_anchors(vectors, batch) for vectors in (user, target))
        tt, ut = (value / batch.processes.size for value in _contrastive(user, target, texts, batch, loss))
    nll = torch.stack([r.nll for r in rows]).sum()
    if backward:
        backward(weight * nll + loss.alpha * tt + loss.beta * ut)
    return _report(nll, tt, ut, weight, batch, loss)


def _own(towers: Towers, batch: StepBatch) -> tuple[list[Tensor], list[RowStates]]:
    """Vectors of own item texts and states of own rows, with their graphs; by one forward where all fit in one."""
    hidden: list[Tensor | None] = [None] * (len(batch.items) + len(batch.chunks))
    if batch.at_once:
        hidden[:] = towers.all_states([*batch.items, *batch.chunks])
    items = [towers.items(part, hidden=states) for part, states in zip(batch.items, hidden)]
    rows = [towers.rows(chunk, hidden=states) for chunk, states in zip(batch.chunks, hidden[len(items) :])]
    return items, rows


def _rows_once(towers: Towers, batch: StepBatch, loss: Loss, weight: float, backward: Backward | None) -> StepLoss:
    texts, item_rng = _texts(towers, batch)
    nll, tt, ut = torch.zeros(3, device=batch.anchor_item.device)
    first = batch.first_anchor
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
        own = [torch.cat(vectors) for vectors in zip(*((r.user, r.target) for r in rows))]
        user, target = (_all_anchors(vectors, batch).requires_grad_() for vectors in own)
    nll = torch.stack([r.nll for r in rows]).sum()
    with torch.enable_grad():
        tt, ut = (value / batch.processes.size for value in _contrastive(user, target, texts, batch, loss))
    if backward:
        (loss.alpha * tt + loss.beta * ut).backward()
        rng_after = rng_state(batch.anchor_item.device)
        first, sizes = batch.first_anchor, [len(chunk.anchor_row) for chunk in batch.chunks]
        gradients = [batch.processes.summed(_grad(v))[first:] for v in (target, user)]  # the latest first, as autograd
        targets, users = (gradient[: sum(sizes)].split(sizes) for gradient in gradients)
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
    """(M, D) vectors of the step's item texts, a leaf that gathers their gradient, and what own chunks drew from."""
    items, rng = _outputs_and_rng(towers.items, batch.items)
    return batch.processes.gathered(_joined(towers, items), batch.first_text, batch.texts).requires_grad_(), rng


def _all_anchors(own: Tensor, batch: StepBatch) -> Tensor:
    return batch.processes.gathered(own, batch.first_anchor, len(batch.anchor_item))


def _joined(towers: Towers, parts: Iterable[Tensor]) -> Tensor:
    """(N, D) of all parts; N is 0, and it can have a gradient all the same, where there are none."""
    none = towers.head.new_zeros(0, towers.head.shape[1], dtype=torch.float32, requires_grad=True)
    return torch.cat([*parts] or [none])


def _surrogate(states: RowStates, user: Tensor, target: Tensor, weight: float) -> Tensor:
    """A scalar with the objective's gradient for one chunk; `user`, `target`: that of the contrastive terms there."""
    return weight * states.nll + (states.user * user).sum() + (states.target * target).sum()


def _replay_items(towers: Towers, batch: StepBatch, backward: Backward, rng: list[RngState], texts: Tensor) -> None:
    start, rng_after = batch.first_text, rng_state(texts.device)
    gradient = batch.processes.summed(_grad(texts)) if batch.texts else texts
    for chunk, chunk_rng in zip(_one_by_one(batch.items), rng):
        set_rng_state(chunk_rng)
        vectors = towers.items(chunk)
        part = slice(start, start + len(vectors))
        start = part.stop
        backward((vectors * gradient[part]).sum())
        del vectors
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
    nll, tt, ut = batch.processes.summed(torch.stack([nll.detach(), tt.detach(), ut.detach()]))
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
