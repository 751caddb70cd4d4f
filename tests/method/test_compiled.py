"""Layers fused by torch.compile: the same gradients, in steps whole and cut."""

import time
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from calrec_lite.method.towers import Towers
from calrec_lite.model.compiling import seconds_without_compiling
from calrec_lite.recipe import Loss
from tests.conftest import needs_compiler, slow
from tests.method.conftest import FP32, adapted, collate, gradients


@needs_compiler
@pytest.mark.parametrize(
    ("checkpointing", "four_bits"),
    [pytest.param(False, False, marks=slow), (True, True)],  # a minute of compiling each
    ids=["plain", "NF4 checkpointing"],
)
def test_compiled_layers_give_the_same_gradients(
    tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss, checkpointing: bool, four_bits: bool
) -> None:
    """Dropout too: a compiled layer draws as it would uncompiled, in a first and in a replayed pass of a cut step."""
    base = FP32 | {"load_in_4bit": four_bits, "lora": {"r": 4, "dropout": 0.2}}
    model = adapted(tiny_folder, 2, checkpointing, **base)
    batches = [
        collate(rows[:count], encoder, catalogue, plain_loss, micro) for count, micro in ((7, 20), (7, 2), (5, 9))
    ]

    towers = Towers(model)
    towers.join, towers.fuses = None, False  # compiled layers run padding, too, for which dropout draws as well

    def seeded(batch):
        torch.manual_seed(5)
        return gradients(model, batch, plain_loss, towers)

    plain = [seeded(batch) for batch in batches]
    torch._dynamo.reset()
    counters.clear()
    towers.compile()
    again = Towers(model)
    assert (again.join, again.fuses) == (None, False)
    began, clock = time.perf_counter(), seconds_without_compiling()
    for batch, (loss, expected) in zip(batches, plain):
        got_loss, got = seeded(batch)
        torch.testing.assert_close(got_loss, loss, rtol=1e-5, atol=1e-6)
        for name, gradient in expected.items():
            torch.testing.assert_close(
                got[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name
            )
    trained = seconds_without_compiling() - clock  # by the clock of a stage's `minutes`
    assert 0 < trained < 0.5 * (time.perf_counter() - began)
    assert counters["stats"]["unique_graphs"] > 1  # with and without a graph for the backward pass
    assert not counters["graph_break"]
    assert not counters["recompile_limit"]
