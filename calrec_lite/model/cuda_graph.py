"""A decoder's kernels launched as one: CUDA graphs of a few shapes, recorded when first met and replayed from then on.

A small base on a GPU waits for its host, which launches thousands of kernels a step; a graph is one launch. It has one
shape, so the texts of a call (`model.joined`, all at once) are filled up: their tokens by more texts, of which nothing
is read, and their number by empty ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from tqdm import tqdm

from calrec_lite.model.fused_lora import fused
from calrec_lite.model.joined import Layout, decoded
from calrec_lite.model.memory import out_of_memory

FINEST = 64  # tokens by which shapes differ at least
SHAPES = 16  # recorded at most: each keeps gradients of the adapter; a call of another shape runs as it is
TOKENS_A_TEXT = 16  # of a shape: texts shorter than that on average are rare, and ask for a shape of their own

Record = Callable[[nn.Module, tuple[Tensor, ...]], Any]


class DecoderCall(nn.Module):
    """A decoder's call as a graph holds it: (N,) ids and positions, (texts + 1,) bounds -> (N, D) states.

    Adapters' weights are cast within, as whatever a graph reads has to stay where it is.

    Args:
        adapters: of the decoder, trained. dtype: that is computed in.
        longest: tokens of the longest text there may be.
    """

    def __init__(self, decoder: Any, adapters: Sequence[LoraLayer], dtype: torch.dtype, longest: int) -> None:
        super().__init__()
        self.decoder, self.adapters, self.dtype, self.longest = decoder, adapters, dtype, longest

    def forward(self, ids: Tensor, positions: Tensor, bounds: Tensor, longest: int | None = None) -> Tensor:
        bf16 = self.dtype is torch.bfloat16
        cast = torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)
        with cast, fused(self.adapters, self.dtype):
            return decoded(self.decoder, ids, positions, Layout(bounds=bounds, longest=longest or self.longest))


class Replayed:
    """Calls of a decoder by its graphs; in `joined_states` in place of the decoder.

    A graph's first call is compared with the same call as it is, gradients too. Where they differ, or nothing can be
    recorded, a line says so and calls run as they are.

    Args:
        record: makes of a module and the tensors of a call the same module, replayed.
    """

    def __init__(self, call: DecoderCall, record: Record = torch.cuda.make_graphed_callables) -> None:
        self.call, self._record = call, record
        self._graphs: dict[tuple[int, int], Any] = {}
        self._embedding = 0  # where it lay when they were recorded
        self._works = True

    def __call__(self, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """(N, D) states of ids (N,); to be used, and pulled back, before the next call."""
        assert layout.bounds is not None
        if (embedding := self.call.decoder.get_input_embeddings().weight.data_ptr()) != self._embedding:
            self._graphs, self._embedding = {}, embedding  # it was trimmed, or is whole again
        longest, given = self.call.longest, (ids, positions, layout.bounds)
        shape = shape_of(len(ids), len(layout.bounds) - 1, longest)
        new = shape not in self._graphs
        if layout.longest > longest or (new and (not self._works or len(self._graphs) == SHAPES)):
            return self.call(*given, layout.longest)
        full = filled(*given, *shape, longest)
        try:
            if new:
                self._graphs[shape] = self._recorded(full)
        except RuntimeError as error:
            if out_of_memory(error):  # the step is cut smaller, and the shapes there were are not met again
                self._graphs.clear()
                raise
            return self._as_it_is(given, str(error).splitlines()[0])
        if self._graphs[shape] is None:
            del self._graphs[shape]
            return self._as_it_is(given, "its gradients differ")
        if torch.is_grad_enabled():
            self._own_gradients()
        return self._graphs[shape](*full)[: len(ids)]

    def _recorded(self, given: tuple[Tensor, ...]) -> Any:
        """The graph, or None where it does not give what the call gives."""
        trained = [weight for weight in self.call.parameters() if weight.requires_grad]
        with torch.enable_grad():
            plain = self.call(*given)
            draw = torch.Generator(plain.device).manual_seed(0)
            pulled = torch.randn(plain.shape, generator=draw, device=plain.device, dtype=plain.dtype)
            wanted = [plain.detach(), *torch.autograd.grad(plain, trained, pulled)]
            own = DecoderCall(self.call.decoder, self.call.adapters, self.call.dtype, self.call.longest)
            graph = self._record(own, tuple(tensor.clone() for tensor in given))
            out = graph(*given)
            found = [out.detach(), *torch.autograd.grad(out, trained, pulled)]
        return graph if all(_alike(a, b) for a, b in zip(wanted, found)) else None

    def _own_gradients(self) -> None:
        """A weight without a gradient would be given the graph's own tensor, which the next replay overwrites."""
        bare = [weight for weight in self.call.parameters() if weight.requires_grad and weight.grad is None]
        for weight in bare:
            weight.grad = torch.empty_like(weight)
        if bare:
            torch._foreach_zero_([weight.grad for weight in bare])  # few kernels

    def _as_it_is(self, given: tuple[Tensor, ...], why: str) -> Tensor:
        if self._works:
            self._works = False
            tqdm.write(f"optim.cuda_graph: no graph is used from here on ({why[:200]})")
        return self.call(*given)


def shape_of(tokens: int, texts: int, longest: int) -> tuple[int, int]:
    """Tokens and texts of the graph for a call: at most a quarter more tokens, four shapes for each doubling."""
    grain = max(FINEST, 1 << max(0, tokens.bit_length() - 3))
    full = -(-tokens // grain) * grain
    texts += -(-(full - tokens) // longest)
    share = -(-full // TOKENS_A_TEXT)
    return full, -(-texts // share) * share


def filled(
    ids: Tensor, positions: Tensor, bounds: Tensor, tokens: int, texts: int, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A call's tensors with so many tokens and texts: an id that is there again, at position 0, and empty texts."""
    more = tokens - len(ids)
    number = torch.arange(1, texts + 2 - len(bounds), dtype=bounds.dtype, device=bounds.device)
    ends = (len(ids) + longest * number).clamp(max=tokens)
    return torch.cat([ids, ids[:1].expand(more)]), F.pad(positions, (0, more)), torch.cat([bounds, ends])


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 0.02 * one.norm())
