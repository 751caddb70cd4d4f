"""The two-tower step: one gradient of the objective, however it is cut into micro-batches (docs/method.md, 3).

Where a whole step fits in memory, or its activations are offloaded to RAM, it is plain autograd. Otherwise:
the contrastive terms need every chunk's vectors at once, so the vectors are first computed without a graph, the
gradient of the contrastive terms with respect to them is taken, and each chunk is then run again with its own
graph (GradCache, Gao et al. 2021). Memory is that of one chunk, so the last chunk of rows keeps its graph from
the first pass; the price is one more forward of all others, without the LM head. Random states are recorded in
the first pass and replayed in the second, so that dropout is the same in both.
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
from calrec_lite.recipe import Loss

Backward = Callable[[Tensor], None]
Part = TypeVar("Part", Chunk, ItemChunk)
RngState = tuple[Tensor, Tensor | None, torch.device]


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
    if not contrast:
        return _nll_only(towers, batch, loss, weight, backward)
    if batch.at_once or (towers.offload and backward):
        return _whole(towers, batch, loss, weight, backward)
    return _cached(towers, batch, loss, weight, backward)


def _nll_only(towers: Towers, batch: StepBatch, loss: Loss, weight: float, backward: Backward | None) -> StepLoss:
    """No contrastive terms: each chunk's graph is complete in itself."""
    nll = torch.zeros((), device=batch.anchor_item.device)
    zero = nll.clone()
    for chunk in _one_by_one(batch.chunks) if len(batch.chunks) > 1 else batch.chunks:
        chunk_nll = towers.rows(chunk).nll
        if backward:
            backward(weight * chunk_nll)
        nll = nll + chunk_nll.detach()
    return _report(nll, zero, zero, weight, batch, loss)


def _whole(towers: Towers, batch: StepBatch, loss: Loss, weight: float, backward: Backward | None) -> StepLoss:
    """One graph of all chunks."""
    rows = [towers.rows(chunk) for chunk in batch.chunks]
    texts = torch.cat([towers.items(part) for part in batch.items])
    tt, ut = _contrastive(torch.cat([r.user for r in rows]), torch.cat([r.target for r in rows]), texts, batch, loss)
    nll = torch.stack([r.nll for r in rows]).sum()
    if backward:
        backward(weight * nll + loss.alpha * tt + loss.beta * ut)
    return _report(nll, tt, ut, weight, batch, loss)


def _cached(towers: Towers, batch: StepBatch, loss: Loss, weight: float, backward: Backward | None) -> StepLoss:
    *replayed, last_chunk = batch.chunks
    with torch.no_grad():  # the likelihood is computed where it is needed: with its graph
        rows, row_rng = _outputs_and_rng(lambda c: towers.rows(c, likelihood=backward is None), replayed)
        items, item_rng = _outputs_and_rng(towers.items, batch.items)
    last_states = towers.rows(last_chunk)
    user = torch.cat([r.user for r in rows] + [last_states.user.detach()]).requires_grad_()
    target = torch.cat([r.target for r in rows] + [last_states.target.detach()]).requires_grad_()
    texts = torch.cat(items).requires_grad_()
    nll = torch.stack([r.nll for r in rows] + [last_states.nll]).sum().detach()
    with torch.enable_grad():
        tt, ut = _contrastive(user, target, texts, batch, loss)
        if backward:
            (loss.alpha * tt + loss.beta * ut).backward()
    if backward:
        rng_after = rng_state(batch.anchor_item.device)
        sizes = [len(chunk.anchor_row) for chunk in batch.chunks]
        gradients = list(zip(_grad(user).split(sizes), _grad(target).split(sizes)))
        backward(_surrogate(last_states, gradients[-1], weight))
        del last_states  # its graph has to be gone before the next one is built
        for chunk, rng, gradient in zip(_one_by_one(replayed), row_rng, gradients):
            set_rng_state(rng)
            states = towers.rows(chunk)
            backward(_surrogate(states, gradient, weight))
            nll = nll + states.nll.detach()
            del states
        _replay_items(towers, batch, backward, item_rng, texts)
        set_rng_state(rng_after)
    return _report(nll, tt, ut, weight, batch, loss)


def _surrogate(states: RowStates, gradient: tuple[Tensor, Tensor], weight: float) -> Tensor:
    """A scalar with the objective's gradient for one chunk: at its vectors, that of the contrastive terms."""
    return weight * states.nll + (states.user * gradient[0]).sum() + (states.target * gradient[1]).sum()


def _replay_items(towers: Towers, batch: StepBatch, backward: Backward, rng: list[Any], texts: Tensor) -> None:
    start = 0
    for chunk, chunk_rng in zip(_one_by_one(batch.items), rng):
        set_rng_state(chunk_rng)
        part = slice(start, start + len(chunk.ends))
        start = part.stop
        backward((towers.items(chunk) * _grad(texts)[part]).sum())


def _grad(vectors: Tensor) -> Tensor:
    return torch.zeros_like(vectors) if vectors.grad is None else vectors.grad


def _contrastive(user: Tensor, target: Tensor, texts: Tensor, batch: StepBatch, loss: Loss) -> tuple[Tensor, Tensor]:
    """L_TT and L_UT over all anchors of the step."""
    target_texts = texts[batch.anchor_item]  # (A, D)
    tt = contrastive_loss(target, target_texts, batch.negatives, loss.tau, loss.direction)
    return tt, contrastive_loss(user, target_texts, batch.negatives, loss.tau, loss.direction)


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
        trim_heap(chunk.ids.device)
        yield chunk


def rng_state(device: torch.device) -> RngState:
    """The random states that a forward on the device draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None, device


def set_rng_state(state: RngState) -> None:
    """Go back to what `rng_state` returned."""
    cpu, cuda, device = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
