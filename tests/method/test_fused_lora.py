"""A linear layer and its adapter as one function: PEFT's gradients, by fewer operations."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from calrec_lite.method.step import two_tower_step
from calrec_lite.method.towers import Towers
from calrec_lite.model.fused_lora import fused
from calrec_lite.recipe import Loss
from tests.method.conftest import FP32, adapted, collate
from tests.method.test_joined_step import step


def fused_layers(towers: Towers) -> list[bool]:
    with towers.working():
        found = ["forward" in vars(layer) for layer in towers.adapters]
    assert not any("forward" in vars(layer) for layer in towers.adapters)
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("micro", [2, 100])
@pytest.mark.parametrize("four_bits", [False, True])
def test_gradients_are_those_of_peft(
    tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss, checkpointing: bool, micro: int, four_bits: bool
) -> None:
    lora = {"r": 4, "use_rslora": True}  # a scale that is no whole number
    model = adapted(tiny_folder, 1, checkpointing, **FP32 | {"load_in_4bit": four_bits, "lora": lora})
    batch = collate(rows, encoder, catalogue, plain_loss, micro)
    ours, theirs = Towers(model), Towers(model)
    theirs.fuses = False
    assert all(fused_layers(ours))
    assert not any(fused_layers(theirs))
    wanted, of_theirs = step(theirs, model, batch, plain_loss)
    got, of_ours = step(ours, model, batch, plain_loss)
    for name, gradient in wanted.items():
        largest = float(gradient.abs().max())
        assert largest > 0
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6 * largest, msg=name)
    assert of_ours < 0.92 * of_theirs


@pytest.mark.parametrize("four_bits", [False, True])
def test_in_bf16_they_are_as_close_to_those_in_fp32(
    tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss, four_bits: bool
) -> None:
    batch = collate(rows, encoder, catalogue, plain_loss, 100)
    in_fp32 = adapted(tiny_folder, 1, **FP32 | {"load_in_4bit": four_bits})
    exact, _ = step(Towers(in_fp32), in_fp32, batch, plain_loss)
    model = adapted(tiny_folder, 1, load_in_4bit=four_bits, dtype="bfloat16")
    found = []
    for fuses in (False, True):
        towers = Towers(model)
        towers.fuses = fuses
        found.append(step(towers, model, batch, plain_loss)[0])
    theirs, ours = found
    assert all(gradient.dtype is torch.float32 for gradient in ours.values())
    assert apart(ours, exact) < 1.1 * apart(theirs, exact)
    assert apart(ours, theirs) < 0.1


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Mean relative distance of gradients."""
    return sum(float((one[name] - other[name]).norm() / other[name].norm()) for name in other) / len(other)


@pytest.mark.parametrize(
    "base",
    [{"lora": {"r": 4, "dropout": 0.1}}, {"lora": {"r": 4, "use_dora": True}}, {"load_in_8bit": True}],
    ids=["dropout", "DoRA", "int8"],
)
def test_other_adapters_are_left_to_peft(tiny_folder: Path, rows, encoder, catalogue, plain_loss, base: dict) -> None:
    model = adapted(tiny_folder, 1, **{"load_in_4bit": False, **base})
    towers = Towers(model)
    assert towers.adapters
    assert not any(fused_layers(towers))
    step(towers, model, collate(rows, encoder, catalogue, plain_loss, 100), plain_loss)


def test_layers_with_a_bias(tiny_folder: Path) -> None:
    model = adapted(tiny_folder, 1, **FP32)
    assert isinstance(model, PeftModel)
    layer = model.get_base_model().get_decoder().layers[0].self_attn.q_proj
    layer.base_layer.bias = torch.nn.Parameter(torch.randn(layer.out_features), requires_grad=False)
    given, found = torch.randn(2, 3, layer.in_features), []
    for layers in ([], [layer]):
        states = given.clone().requires_grad_()
        with fused(layers, torch.float32):
            out = layer(states)
            out.square().sum().backward()
        found.append([out.detach(), states.grad])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_step_computes_with_the_weights_as_they_are(
    tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss
) -> None:
    """The cast copies of one step are not those of the next."""
    model = adapted(tiny_folder, 1, load_in_4bit=False, dtype="bfloat16")
    batch, towers = collate(rows, encoder, catalogue, plain_loss, 100), Towers(model)
    before = two_tower_step(towers, batch, plain_loss, None).loss
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if "lora_B" in n):
            parameter.mul_(3)
    after = two_tower_step(towers, batch, plain_loss, None).loss
    assert abs(float(after - before)) > 0.01
    torch.testing.assert_close(after, two_tower_step(Towers(model), batch, plain_loss, None).loss)
