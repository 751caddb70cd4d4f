"""A whole step by one forward of both towers, and texts without padding: the same gradients by fewer operations."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from calrec_lite.method.step import two_tower_step
from calrec_lite.method.towers import Towers
from calrec_lite.recipe import Loss
from tests.method.conftest import FP32, adapted, collate


class Operations(TorchDispatchMode):
    """Counts what is asked of a device, views left out."""

    VIEWS = ("view", "t", "transpose", "slice", "expand", "unsqueeze", "squeeze", "detach", "select", "alias", "split",
             "split_with_sizes", "_unsafe_view", "as_strided", "permute", "_reshape_alias")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().split("::")[1].split(".")[0] not in self.VIEWS
        return func(*args, **(kwargs or {}))


def step(towers: Towers, model: torch.nn.Module, batch, loss: Loss) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients, and how many operations they took."""
    model.zero_grad()
    with Operations() as operations:
        two_tower_step(towers, batch, loss, lambda scalar: scalar.backward())
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}, operations.count


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("direction", ["user_to_item", "both"])
def test_both_towers_by_one_forward(
    tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss, checkpointing: bool, direction: str
) -> None:
    model = adapted(tiny_folder, 1, checkpointing, **FP32)
    loss = plain_loss.model_copy(update={"direction": direction})
    batch = collate(rows, encoder, catalogue, loss, 100)
    assert batch.at_once
    two, padded, packed = (Towers(model) for _ in range(3))
    two.join, padded.join = None, "padded"
    assert packed.join == "one by one"
    calls: list[int] = []
    two.decoder.register_forward_pre_hook(lambda *call: calls.append(1))
    wanted, of_two = step(two, model, batch, loss)
    assert len(calls) == 1 + len(batch.items)
    for towers in (padded, packed):
        calls.clear()
        got, of_one = step(towers, model, batch, loss)
        assert len(calls) == 1
        same(got, wanted)
        if towers is padded:  # text by text a CPU has more calls of attention
            assert of_one < 0.7 * of_two


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("direction", ["user_to_item", "both"])
@pytest.mark.parametrize("micro", [1, 3])
def test_chunks_without_padding(
    tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss, checkpointing: bool, direction: str, micro: int
) -> None:
    """In steps that are cut, and by fewer tokens in each layer."""
    model = adapted(tiny_folder, 1, checkpointing, **FP32)
    loss = plain_loss.model_copy(update={"direction": direction})
    batch = collate(rows, encoder, catalogue, loss, micro)
    assert not batch.at_once
    padded, packed = Towers(model), Towers(model)
    padded.join = "padded"
    seen: list[int] = []
    padded.decoder.norm.register_forward_pre_hook(lambda norm, given: seen.append(given[0].shape[:-1].numel()))
    wanted, _ = step(padded, model, batch, loss)
    assert sum(seen) > sum(part.ids.numel() for part in batch.chunks)
    seen.clear()
    got, _ = step(packed, model, batch, loss)
    rows_twice = 1 + (direction == "both")
    assert sum(seen) == sum(
        times * int(part.lengths.sum())
        for parts, times in ((batch.chunks, rows_twice), (batch.items, 2))
        for part in parts
    )
    same(got, wanted)


def same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, gradient in wanted.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6 * largest, msg=name)
