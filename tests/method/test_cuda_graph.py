"""The decoder's calls replayed: a few shapes, filled up, for the same gradients; and what stands against it.

No GPU is asked for, but by one test: `taped` does on a CPU what CUDA graphs do, with torch's attention of many texts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calrec_lite.errors import InputError
from calrec_lite.method.step import two_tower_step
from calrec_lite.method.towers import Towers
from calrec_lite.model.cuda_graph import FINEST, SHAPES, Replayed, filled, shape_of
from calrec_lite.model.trimming import Trimmed
from calrec_lite.recipe import Loss
from tests.method.conftest import FP32, adapted, collate, gradients
from tests.method.test_joined_step import same
from tests.model.varlen import needs_varlen, on_a_cpu

pytestmark = needs_varlen


def taped(module: nn.Module, sample: tuple[Tensor, ...]) -> Any:
    """As torch.cuda.make_graphed_callables: tensors of one shape, read and written where they were recorded."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    inputs, tape = [tensor.clone() for tensor in sample], {}
    states = module(*sample).detach()
    of_weights = [torch.empty_like(weight) for weight in weights]

    class Graph(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *given: Tensor) -> Tensor:
            for place, tensor in zip(inputs, given):
                assert place.shape == tensor.shape
                place.copy_(tensor)
            with torch.enable_grad():
                tape["out"] = module(*inputs)
            return states.copy_(tape["out"].detach()).detach()

        @staticmethod
        def backward(ctx, pulled: Tensor):
            found = torch.autograd.grad(tape["out"], weights, pulled)
            for place, gradient in zip(of_weights, found):
                place.copy_(gradient)
            return *(None for _ in inputs), *(place.detach() for place in of_weights)

    return lambda *given: Graph.apply(*given, *weights)


@pytest.fixture
def own_model(tiny_folder: Path) -> nn.Module:
    return adapted(tiny_folder, 1, **FP32)


@pytest.fixture
def towers(own_model: nn.Module) -> Iterator[Towers]:
    with on_a_cpu():
        yield replaying(own_model)


def launched(model: nn.Module) -> Towers:
    """By the same attention, each kernel by itself."""
    towers = Towers(model)
    towers.join = "at once"
    return towers


def replaying(model: nn.Module, record: Any = taped) -> Towers:
    towers = launched(model)
    towers.replay(200)
    assert towers._replayed
    towers._replayed._record = record
    return towers


@pytest.mark.parametrize("direction", ["user_to_item", "both"])
@pytest.mark.parametrize("micro", [1, 3, 100])
def test_gradients_are_those_of_launched_kernels(
    towers: Towers, own_model, rows, encoder, catalogue, plain_loss: Loss, direction: str, micro: int
) -> None:
    """Of whole and of cut steps; a second step, other rows first, meets shapes that were recorded."""
    loss = plain_loss.model_copy(update={"direction": direction})
    for some in (rows, rows[3:] + rows[:2]):
        batch = collate(some, encoder, catalogue, loss, micro)
        before, (_, wanted) = towers._replayed._graphs.copy(), gradients(own_model, batch, loss, launched(own_model))
        _, got = gradients(own_model, batch, loss, towers)
        same(got, wanted)
    graphs = towers._replayed._graphs
    assert graphs
    assert micro == 100 or before.items() <= graphs.items()
    assert all(tokens % FINEST == 0 for tokens, _ in graphs)


def test_of_a_validation_too(towers: Towers, own_model, rows, encoder, catalogue, plain_loss: Loss) -> None:
    """What is recorded where no gradient is asked for has one all the same."""
    batch = collate(rows, encoder, catalogue, plain_loss, 100)
    wanted = two_tower_step(launched(own_model), batch, plain_loss, None)
    for _ in range(2):
        got = two_tower_step(towers, batch, plain_loss, None)
        torch.testing.assert_close(got.loss, wanted.loss)
    same(
        gradients(own_model, batch, plain_loss, towers)[1],
        gradients(own_model, batch, plain_loss, launched(own_model))[1],
    )


def test_a_call_is_filled_by_a_quarter_at_most() -> None:
    shapes = {}
    for tokens in range(1, 20_000):
        for texts in (1, -(-tokens // 20), -(-tokens // 2)):
            full, most = shape_of(tokens, texts, 300)
            assert tokens <= full
            assert full - tokens < max(FINEST, tokens / 4)
            assert most >= texts + (full - tokens) / 300
            shapes.setdefault(full, set()).add(most)
    assert len([full for full in shapes if 2048 <= full < 16384]) <= 12
    ids, positions, bounds = filled(
        torch.tensor([7, 8, 9]), torch.tensor([0, 1, 0]), torch.tensor([0, 2, 3]), 64, 8, 20
    )
    assert ids.tolist() == [7, 8, 9] + [7] * 61
    assert positions.tolist() == [0, 1, 0] + [0] * 61
    assert bounds.tolist() == [0, 2, 3, 23, 43, 63, 64, 64, 64]


def test_the_tensor_of_a_graph_is_no_weights_gradient(
    towers: Towers, own_model, rows, encoder, catalogue, plain_loss
) -> None:
    gradients(own_model, collate(rows, encoder, catalogue, plain_loss, 100), plain_loss, towers)
    weights = [weight for weight in own_model.parameters() if weight.requires_grad]
    before = [weight.grad.clone() for weight in weights]
    batch = collate(rows[:3], encoder, catalogue, plain_loss, 100)
    replayed = towers._replayed
    with towers.working(), torch.enable_grad():
        for states in towers.all_states([*batch.items, *batch.chunks]):
            assert states.isfinite().all()
    assert replayed is not None
    assert all(torch.equal(weight.grad, was) for weight, was in zip(weights, before))


def test_a_trimmed_vocabulary_lies_elsewhere(
    towers: Towers, own_model, rows, encoder, catalogue, plain_loss: Loss
) -> None:
    """Validation before training reads the whole one, training the trimmed one, validation after it the whole one."""
    loss = plain_loss.model_copy(update={"softmax": "catalogue"})
    batch = collate(rows, encoder, catalogue, loss, 100)
    _, wanted = gradients(own_model, batch, loss, launched(own_model))
    recorded = []
    for trimmed in (False, True, False):
        trim = Trimmed(own_model, encoder.ids_with(catalogue.tokens), head=True) if trimmed else None
        for _ in range(2):
            same(gradients(own_model, batch, loss, towers)[1], wanted)
        recorded += towers._replayed._graphs.values()
        if trim:
            trim.restore()
    assert len({id(graph) for graph in recorded}) == 3


def wrong(module: nn.Module, sample: tuple[Tensor, ...]) -> Any:
    return lambda *given: 1.1 * module(*given)


def refused(module: nn.Module, sample: tuple[Tensor, ...]) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize(("record", "says"), [(wrong, "its gradients differ"), (refused, "not permitted when stream")])
def test_a_graph_that_is_no_good_is_not_used(
    towers: Towers, own_model, rows, encoder, catalogue, plain_loss, record: Any, says: str, capsys
) -> None:
    towers._replayed._record = record
    batch = collate(rows, encoder, catalogue, plain_loss, 1)
    same(
        gradients(own_model, batch, plain_loss, towers)[1],
        gradients(own_model, batch, plain_loss, launched(own_model))[1],
    )
    said = [line for line in capsys.readouterr().out.splitlines() if "optim.cuda_graph" in line]
    assert len(said) == 1
    assert says in said[0]
    assert not towers._replayed._graphs


def test_out_of_memory_is_the_steps_and_lets_graphs_go(
    towers: Towers, own_model, rows, encoder, catalogue, plain_loss
) -> None:
    gradients(own_model, collate(rows, encoder, catalogue, plain_loss, 1), plain_loss, towers)
    assert towers._replayed._graphs

    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    towers._replayed._record = full
    with pytest.raises(torch.OutOfMemoryError):
        gradients(own_model, collate(rows, encoder, catalogue, plain_loss, 100), plain_loss, towers)
    assert not towers._replayed._graphs


def test_rare_shapes_run_as_they_are(towers: Towers, own_model, rows, encoder, catalogue, plain_loss) -> None:
    gradients(own_model, collate(rows[:1], encoder, catalogue, plain_loss, 1), plain_loss, towers)
    towers._replayed._graphs = {(n, n): None for n in range(SHAPES)}
    batch = collate(rows, encoder, catalogue, plain_loss, 100)
    same(
        gradients(own_model, batch, plain_loss, towers)[1],
        gradients(own_model, batch, plain_loss, launched(own_model))[1],
    )
    assert len(towers._replayed._graphs) == SHAPES
    towers._replayed._graphs, towers._replayed.call.longest = {}, 3
    same(
        gradients(own_model, batch, plain_loss, towers)[1],
        gradients(own_model, batch, plain_loss, launched(own_model))[1],
    )
    assert not towers._replayed._graphs


@pytest.mark.parametrize(
    ("options", "checkpointing", "says"),
    [
        ({}, False, "set it to false: texts share no call"),
        ({}, True, "gradient_checkpointing is on"),
        ({"lora": {"r": 4, "dropout": 0.1}}, False, "lora.dropout is above 0"),
    ],
)
def test_what_stands_against_it_is_said(tiny_folder: Path, options: dict, checkpointing: bool, says: str) -> None:
    towers = Towers(adapted(tiny_folder, 1, checkpointing, **{**FP32, **options}))
    with pytest.raises(InputError, match=f"optim.cuda_graph: .*{says}"):
        towers.replay(200)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose kernels are recorded")
@pytest.mark.parametrize("micro", [3, 100])
def test_on_a_gpu(tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss, micro: int, capsys) -> None:
    model = adapted(tiny_folder, 1, load_in_4bit=False).cuda()
    towers, batch = Towers(model), collate(rows, encoder, catalogue, plain_loss, micro).to("cuda")
    _, wanted = gradients(model, batch, plain_loss, Towers(model))
    towers.replay(200)
    assert isinstance(towers._replayed, Replayed)
    for _ in range(3):
        _, got = gradients(model, batch, plain_loss, towers)
        for name, gradient in wanted.items():
            assert (got[name] - gradient).norm() <= 0.02 * gradient.norm(), name
    assert towers._replayed._graphs
    assert "optim.cuda_graph" not in capsys.readouterr().out
