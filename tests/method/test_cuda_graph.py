"""The decoder's calls replayed: a few shapes, filled up, for the same gradients; and what stands against it.

No GPU is asked for, but by one test: `recorded` does on a CPU what CUDA graphs do, with torch's own attention.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from calrec_lite.errors import InputError, RunError
from calrec_lite.method.step import two_tower_step
from calrec_lite.method.towers import Towers
from calrec_lite.model import cuda_graph
from calrec_lite.model.cuda_graph import FINEST, SHAPES, Replayed, filled, shape_of
from calrec_lite.model.trimming import Trimmed
from calrec_lite.recipe import Loss
from tests.method.conftest import FP32, adapted, collate, gradients
from tests.method.test_joined_step import same
from tests.model.varlen import needs_varlen, on_a_cpu

pytestmark = needs_varlen


class Rerun:
    """As torch.cuda.CUDAGraph: what it gave lies where it lay, and is written anew."""

    def __init__(self, work: Callable[[], Any], found: Any) -> None:
        self.work, self.places = work, [tensor.detach() for tensor in tree_leaves(found)]

    def replay(self) -> None:
        for place, tensor in zip(self.places, tree_leaves(self.work()), strict=True):
            with torch.no_grad():
                place.copy_(tensor)


def recorded(work: Callable[[], Any], pool: Any) -> tuple[Any, Rerun]:
    with torch.enable_grad():
        found = work()
    return found, Rerun(lambda: torch.enable_grad()(work)(), found)


@pytest.fixture
def own_model(tiny_folder: Path) -> nn.Module:
    return adapted(tiny_folder, 1, **FP32)


@pytest.fixture
def towers(own_model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[Towers]:
    monkeypatch.setattr(cuda_graph, "warm_up", lambda work: work())
    monkeypatch.setattr(cuda_graph, "recorded", recorded)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    with on_a_cpu():
        towers = launched(own_model)
        towers.replay(200)
        yield towers


def launched(model: nn.Module) -> Towers:
    """By the same attention, each kernel by itself."""
    towers = Towers(model)
    towers.join = "at once"
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
    """Without gradients nothing is recorded, and what was is replayed."""
    batch = collate(rows, encoder, catalogue, plain_loss, 100)
    wanted = two_tower_step(launched(own_model), batch, plain_loss, None)
    with torch.no_grad():
        torch.testing.assert_close(two_tower_step(towers, batch, plain_loss, None).loss, wanted.loss)
    assert not towers._replayed._graphs
    gradients(own_model, batch, plain_loss, towers)
    (graph,) = towers._replayed._graphs.values()
    graph.states.fill_(torch.nan)
    with torch.no_grad():
        torch.testing.assert_close(two_tower_step(towers, batch, plain_loss, None).loss, wanted.loss)
    assert graph.states.isfinite().all()
    towers.release()
    assert not towers._replayed._graphs


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
    batch = collate(rows, encoder, catalogue, plain_loss, 100)
    gradients(own_model, batch, plain_loss, towers)
    (graph,) = towers._replayed._graphs.values()
    before = [weight.grad.clone() for weight in graph.call.trained]
    with towers.working():
        graph.forward(graph.inputs)
        graph.backward(torch.ones_like(graph.states))
    assert all(torch.equal(weight.grad, was) for weight, was in zip(graph.call.trained, before, strict=True))
    two_tower_step(towers, batch, plain_loss, lambda scalar: scalar.backward())  # added to what is there
    for weight, was in zip(graph.call.trained, before, strict=True):
        torch.testing.assert_close(weight.grad, 2 * was)


def test_no_graph_of_autograd_is_alive_when_one_is_recorded(
    towers: Towers, own_model, rows, encoder, catalogue, plain_loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nodes of weights belong to the stream they were made on, and spoil what is recorded on another."""
    weights, held = [weight for weight in own_model.parameters() if weight.requires_grad], Counter()

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            held["now"] += 1

        def __del__(self) -> None:
            held["now"] -= 1

    def watched(work: Callable[[], Any]) -> None:
        gc.collect()
        held["at most"] = max(held["at most"], held["now"])
        held["times"] += 1

    monkeypatch.setattr(cuda_graph, "warm_up", watched)
    for micro in (1, 100):
        batch = collate(rows, encoder, catalogue, plain_loss.model_copy(update={"direction": "both"}), micro)
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.tensor):
            two_tower_step(towers, batch, plain_loss, lambda scalar: scalar.backward())
    assert weights
    assert held["times"] > 1
    assert held["at most"] == 0


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


def wrong(work: Callable[[], Any], pool: Any) -> tuple[Any, Any]:
    found, graph = recorded(work, pool)
    graph.work = lambda: [1.1 * tensor for tensor in tree_leaves(work())]
    return found, graph


def refused(work: Callable[[], Any], pool: Any) -> tuple[Any, Any]:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize(("record", "says"), [(wrong, "gives other gradients"), (refused, "not permitted when")])
def test_a_graph_that_is_no_good_ends_the_run(
    towers: Towers, own_model, rows, encoder, catalogue, plain_loss, record: Any, says: str, monkeypatch
) -> None:
    monkeypatch.setattr(cuda_graph, "recorded", record)
    batch = collate(rows, encoder, catalogue, plain_loss, 1)
    with pytest.raises(RunError, match=f"optim.cuda_graph: .*{says}.*set it to false, and the same command") as ended:
        gradients(own_model, batch, plain_loss, towers)
    assert "\n" not in str(ended.value)


def test_out_of_memory_is_the_steps_and_lets_graphs_go(
    towers: Towers, own_model, rows, encoder, catalogue, plain_loss, monkeypatch
) -> None:
    gradients(own_model, collate(rows, encoder, catalogue, plain_loss, 1), plain_loss, towers)
    assert towers._replayed._graphs

    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda_graph, "recorded", full)
    with pytest.raises(torch.OutOfMemoryError):
        gradients(own_model, collate(rows, encoder, catalogue, plain_loss, 100), plain_loss, towers)
    assert not towers._replayed._graphs


def test_rare_shapes_run_as_they_are(towers: Towers, own_model, rows, encoder, catalogue, plain_loss) -> None:
    gradients(own_model, collate(rows[:1], encoder, catalogue, plain_loss, 1), plain_loss, towers)
    (graph, *_) = towers._replayed._graphs.values()
    towers._replayed._graphs = {(n, n): graph for n in range(SHAPES)}
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
        ({}, False, "texts share no call"),
        ({}, True, "gradient_checkpointing is on"),
        ({"lora": {"r": 4, "dropout": 0.1}}, False, "lora.dropout is above 0"),
        ({"load_in_4bit": False, "load_in_8bit": True}, False, "a base in int8 waits"),
    ],
)
def test_what_stands_against_it_is_said(tiny_folder: Path, options: dict, checkpointing: bool, says: str) -> None:
    towers = Towers(adapted(tiny_folder, 1, checkpointing, **{**FP32, **options}))
    with pytest.raises(InputError, match=f"optim.cuda_graph: .*{says}"):
        towers.replay(200)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose kernels are recorded")
@pytest.mark.parametrize("micro", [3, 100])
def test_on_a_gpu(tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss, micro: int) -> None:
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
