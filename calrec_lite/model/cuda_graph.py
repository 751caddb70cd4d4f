"""A decoder's kernels launched as one: CUDA graphs of a few shapes, recorded when first met and replayed from then on.

A small base on a GPU waits for its host, which launches thousands of kernels a step; a graph is one launch. It has one
shape, so the texts of a call (`model.joined`, all at once) are filled up: their tokens by more texts, of which nothing
is read, and their number by empty ones.

Torch's `make_graphed_callables` does as much, but hands each weight's gradient to autograd by itself: one wait and one
kernel for each of hundreds of adapters. Here they are added by few. It also lets no other thread use the GPU meanwhile,
as the one that pins batches does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear8bitLt
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from calrec_lite.errors import RunError, one_line
from calrec_lite.model.fused_lora import fused
from calrec_lite.model.joined import Layout, decoded
from calrec_lite.model.memory import out_of_memory
from calrec_lite.model.sharded import is_sharded

FINEST = 64  # tokens by which shapes differ at least
SHAPES = 16  # recorded at most: each keeps gradients of the adapter; a call of another shape runs as it is
TOKENS_A_TEXT = 16  # of a shape: texts shorter than that on average are rare, and ask for a shape of their own
Given = tuple[Tensor, Tensor, Tensor]  # ids, positions, bounds of a call
OFF = ": set it to false, and the same command goes on where it stopped"
WARM_UP = 3  # calls before one is recorded: libraries set themselves up in the first


class DecoderCall:
    """A decoder's call as a graph holds it: (N,) ids and positions, (texts + 1,) bounds -> (N, D) states.

    Adapters' weights are cast within, as whatever a graph reads has to stay where it is.

    Args:
        adapters: of the decoder, trained. dtype: that is computed in.
        longest: tokens of the longest text there may be.
    """

    def __init__(self, decoder: Any, adapters: Sequence[LoraLayer], dtype: torch.dtype, longest: int) -> None:
        self.decoder, self.adapters, self.dtype, self.longest = decoder, adapters, dtype, longest
        self.trained = [weight for weight in decoder.parameters() if weight.requires_grad]

    def __call__(self, ids: Tensor, positions: Tensor, bounds: Tensor, longest: int | None = None) -> Tensor:
        bf16 = self.dtype is torch.bfloat16
        cast = torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)
        with cast, fused(self.adapters, self.dtype):
            return decoded(self.decoder, ids, positions, Layout(bounds=bounds, longest=longest or self.longest))


class Graph:
    """One shape of a call, recorded: its states and its weights' gradients lie where each replay writes them.

    Args:
        given: tensors of the call. pool: of memory, which graphs share: nothing of one but these outlives its
            backward pass.
    """

    def __init__(self, call: DecoderCall, given: Given, pool: Any) -> None:
        self.call, self.inputs = call, (given[0].clone(), given[1].clone(), given[2].clone())
        self._states: Tensor | None = None
        with torch.enable_grad():
            warm_up(lambda: torch.autograd.grad((out := call(*self.inputs)), call.trained, torch.ones_like(out)))
            states, self._forward = recorded(self._run, pool)
            self.states, self.pulled = states.detach(), torch.empty_like(states)
            del states
            self.gradients, self._backward = recorded(self._pull, pool)
        self._states = None

    def _run(self) -> Tensor:
        self._states = self.call(*self.inputs)
        return self._states

    def _pull(self) -> tuple[Tensor, ...]:
        assert self._states is not None
        return torch.autograd.grad(self._states, self.call.trained, self.pulled)

    def forward(self, given: Given) -> Tensor:
        """(N, D) states; the next replay overwrites them."""
        for place, tensor in zip(self.inputs, given, strict=True):
            place.copy_(tensor)
        self._forward.replay()
        return self.states

    def backward(self, pulled: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the trained weights; the next replay overwrites them."""
        self.pulled.copy_(pulled)
        self._backward.replay()
        return self.gradients


def warm_up(work: Callable[[], Any]) -> None:
    """Run it on a stream of its own, as it will be recorded; nothing of it stays."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def recorded(work: Callable[[], Any], pool: Any) -> tuple[Any, Any]:
    """What it gives, and the graph whose replay writes that anew. Other threads may use the GPU meanwhile."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        found = work()
    return found, graph


class _Replay(torch.autograd.Function):
    """Adds its gradients to the weights' own: no tensor of a graph is a weight's gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graph: Graph, *given: Tensor) -> Tensor:
        ctx.graph = graph
        return graph.forward(given).detach()  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pulled: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        weights, found = ctx.graph.call.trained, ctx.graph.backward(pulled)
        bare = [weight for weight in weights if weight.grad is None]
        for weight in bare:
            weight.grad = torch.empty_like(weight)
        if bare:
            torch._foreach_zero_([weight.grad for weight in bare])
        torch._foreach_add_([weight.grad for weight in weights], list(found))
        return (None,) * (2 + len(ctx.graph.inputs))


class Replayed:
    """Calls of a decoder by its graphs; in `joined_states` in place of the decoder.

    A graph is compared with the same call as it is when it is recorded, gradients too. Where no gradient is asked for a
    new shape runs as it is: nothing is recorded for it.
    """

    def __init__(self, call: DecoderCall) -> None:
        self.call = call
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._pool: Any = None
        self._embedding = 0  # where it lay when they were recorded

    def __call__(self, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """(N, D) states of ids (N,); to be used, and pulled back, before the next call.

        Raises:
            RunError: nothing can be recorded here, or it gives other numbers.
        """
        assert layout.bounds is not None
        if (embedding := self.call.decoder.get_input_embeddings().weight.data_ptr()) != self._embedding:
            self.release()  # it was trimmed, or is whole again
            self._embedding = embedding
        longest, given = self.call.longest, (ids, positions, layout.bounds)
        shape = shape_of(len(ids), len(layout.bounds) - 1, longest)
        new = shape not in self._graphs
        if layout.longest > longest or (new and (not torch.is_grad_enabled() or len(self._graphs) == SHAPES)):
            return self.call(*given, layout.longest)
        full = filled(*given, *shape, longest)
        if new:
            self._graphs[shape] = self._recorded(full)
        anchor = ids.new_zeros((), dtype=torch.float32).requires_grad_(torch.is_grad_enabled())
        return _Replay.apply(anchor, self._graphs[shape], *full)[: len(ids)]

    def release(self) -> None:
        """Let all graphs go, and their memory."""
        self._graphs, self._pool = {}, None

    def _recorded(self, given: Given) -> Graph:
        wanted, pulled = self._as_it_is(given)
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = Graph(self.call, given, self._pool)
            found = [graph.forward(given).clone(), *graph.backward(pulled)]
        except RuntimeError as error:
            self.release()
            if out_of_memory(error):  # the step is cut smaller, and shapes that there were are not met again
                raise
            raise RunError(f"optim.cuda_graph: no graph can be recorded ({one_line(error)}){OFF}") from error
        if not all(_alike(a, b) for a, b in zip(wanted, found, strict=True)):
            raise RunError(f"optim.cuda_graph: a graph of {len(given[0])} tokens gives other gradients{OFF}")
        return graph

    def _as_it_is(self, given: Given) -> tuple[list[Tensor], Tensor]:
        """States and gradients without a graph, and what was pulled at. What autograd keeps of it is gone afterwards:
        nodes of weights that are alive belong to this stream, and would be recorded on another."""
        with torch.enable_grad():
            states = self.call(*given)
            draw = torch.Generator(states.device).manual_seed(0)
            pulled = torch.randn(states.shape, generator=draw, device=states.device, dtype=states.dtype)
            return [states.detach(), *torch.autograd.grad(states, self.call.trained, pulled)], pulled


def what_stands_against(decoder: nn.Module) -> list[str]:
    """Why a decoder's calls cannot be recorded, whatever the GPU."""
    reasons = {
        "gradient_checkpointing is on": getattr(decoder, "gradient_checkpointing", False),
        "lora.dropout is above 0": any(isinstance(m, nn.Dropout) and m.p for m in decoder.modules()),
        "a base in int8 waits for the GPU in each layer": any(isinstance(m, Linear8bitLt) for m in decoder.modules()),
        "the base is split among processes": is_sharded(decoder),
    }
    return [reason for reason, there in reasons.items() if there]


def shape_of(tokens: int, texts: int, longest: int) -> tuple[int, int]:
    """Tokens and texts of the graph for a call: at most a quarter more tokens, four shapes for each doubling."""
    grain = max(FINEST, 1 << max(0, tokens.bit_length() - 3))
    full = -(-tokens // grain) * grain
    texts += -(-(full - tokens) // longest)
    share = -(-full // TOKENS_A_TEXT)
    return full, -(-texts // share) * share


def filled(ids: Tensor, positions: Tensor, bounds: Tensor, tokens: int, texts: int, longest: int) -> Given:
    """A call's tensors with so many tokens and texts: an id that is there again, at position 0, and empty texts."""
    more = tokens - len(ids)
    number = torch.arange(1, texts + 2 - len(bounds), dtype=bounds.dtype, device=bounds.device)
    ends = (len(ids) + longest * number).clamp(max=tokens)
    return torch.cat([ids, ids[:1].expand(more)]), F.pad(positions, (0, more)), torch.cat([bounds, ends])


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 0.02 * one.norm())
