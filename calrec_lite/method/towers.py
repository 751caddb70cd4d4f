"""One LLM, two towers: a forward of a history gives its likelihood, v_U and v_T|U; one of an item's text gives v_T."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from transformers import Cache

from calrec_lite.errors import InputError
from calrec_lite.method.batch import Chunk, ItemChunk
from calrec_lite.method.losses import generation_loss
from calrec_lite.model.base import positions
from calrec_lite.model.compiling import compile_layers, is_compiled
from calrec_lite.model.cuda_graph import DecoderCall, Replayed, what_stands_against
from calrec_lite.model.fused_lora import fused
from calrec_lite.model.grouped import grouped
from calrec_lite.model.joined import Way, joined_states, joining, way_to_join
from calrec_lite.model.spans import span_means

START = 1  # tokens before the text; the first token of a decoder is an attention sink and is left out of every mean


@dataclass
class RowStates:
    """What pass B yields for a chunk: the summed loss of its targets, and (A, D) unit vectors in fp32."""

    nll: Tensor
    user: Tensor
    target: Tensor


class Towers:
    """The two towers over one causal language model.

    A bf16 base computes in bf16 while its adapter stays in fp32: autocast casts the small adapter, not the
    states, which PEFT would otherwise copy to fp32 in each of its layers (measured on a CPU: 1.3x the
    speed, half the memory of those casts).

    Args:
        model: a transformers causal LM, with or without PEFT's adapter layers in it.
        offload: keep in RAM what a forward saves for its backward: with gradient checkpointing, each layer's input
            and little else, so that the graphs of a whole step can exist at once.
    """

    def __init__(self, model: nn.Module, offload: bool = False) -> None:
        self.offload = offload
        causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.decoder: Any = causal.get_decoder()
        output = causal.get_output_embeddings()
        config = causal.config.get_text_config()
        scaled = [k for k in ("final_logit_softcapping", "logit_scale", "logits_scaling") if getattr(config, k, None)]
        if scaled or output.bias is not None:
            raise InputError(f"base.model: an LM head with {', '.join(scaled) or 'a bias'} is not supported")
        self.output: nn.Module = output
        layers = getattr(config, "layer_types", None)  # without them one window, if any, holds for all layers (Mistral)
        self.by_layer_type = layers is not None
        sliding = layers is None or "sliding_attention" in layers
        self.window: int | None = getattr(config, "sliding_window", None) if sliding else None
        plain = not is_compiled(self.decoder)  # how many blocks there are would be compiled in
        self.join: Way | None = way_to_join(self.decoder, self.head.device, self.head.dtype) if plain else None
        self._replayed: Replayed | None = None
        self._working = False
        self.autocast = self.head.dtype is torch.bfloat16
        self.fuses = plain and self.head.dtype is not torch.float16  # PEFT computes adapters of such bases in float32
        self.adapters = [m for m in model.modules() if isinstance(m, LoraLayer)] if self.fuses else []

    @property
    def positions(self) -> int:
        """Tokens that the model reads."""
        return positions(self.decoder.config)

    @property
    def head(self) -> Tensor:
        """(V, D) weights of the LM head; of fewer tokens while it is trimmed (`model.trimming`)."""
        return self.output.weight  # type: ignore[return-value]

    @contextmanager
    def working(self) -> Iterator[None]:
        """While it is open, forwards and their backward passes are made as a step needs them.

        Texts of both towers can go through the decoder in one call, adapters take few kernels, and PEFT casts no states
        for its layers: autocast does what is needed, and less. Afterwards the caller's model generates as before.
        """
        enabled_before = [layer.cast_input_dtype_enabled for layer in self.adapters]
        for layer in self.adapters:
            layer.cast_input_dtype_enabled = False
        self._working = True
        try:
            with ExitStack() as stack:
                if self.join:
                    stack.enter_context(joining(self.decoder))
                if self.fuses and not self._replayed:  # which does so within each call
                    stack.enter_context(fused(self.adapters, self.head.dtype))
                yield
        finally:
            self._working = False
            for layer, enabled in zip(self.adapters, enabled_before):
                layer.cast_input_dtype_enabled = enabled

    def compile(self) -> None:
        """Fuse the kernels of each decoder layer (`model.compiling.compile_layers`): for training only."""
        compile_layers(self.decoder, self.head.device)
        self.join, self.fuses = None, False

    def replay(self, longest: int) -> None:
        """Replay the decoder's kernels from CUDA graphs (`model.cuda_graph`): for training only.

        Args:
            longest: tokens of the longest text.

        Raises:
            InputError: something stands against it.
        """
        against = what_stands_against(self.decoder)
        if self.join != "at once":
            against.append("texts share no call (that needs CUDA, bf16, plain causal attention, no `compile`)")
        if self.offload:
            against.append("checkpoints are offloaded")
        if against:
            raise InputError(f"optim.cuda_graph: set it to false: {'; '.join(against)}")
        self._replayed = Replayed(DecoderCall(self.decoder, self.adapters, self.head.dtype, longest))

    def release(self) -> None:
        """Let graphs that were recorded go, and their memory."""
        if self._replayed:
            self._replayed.release()

    def states(self, ids: Tensor) -> Tensor:
        """(B, T, D) last-layer states after the final norm. Right padding and a causal mask need no attention mask."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.autocast):
            return self.decoder(input_ids=ids, use_cache=False).last_hidden_state

    def continued(
        self,
        ids: Tensor,
        cache: Cache,
        visible: Tensor | None = None,
        positions: Tensor | None = None,
        key_positions: Tensor | None = None,
    ) -> Tensor:
        """(B, N, D) states of `ids` (B, N) after what `cache` holds; their keys and values are added to it.

        Args:
            visible: (B, N, keys) which keys, the cached and the new, each id attends to; None: causal.
            positions: (B, N) of the ids. key_positions: (B, keys), for layers that see a window only.
        """
        mask: Any = None
        if visible is not None:
            mask = self._mask(visible)
            if self.window:
                near = positions.unsqueeze(2) - key_positions.unsqueeze(1) < self.window  # type: ignore[union-attr]
                near_mask = self._mask(visible & near)
                mask = {"full_attention": mask, "sliding_attention": near_mask} if self.by_layer_type else near_mask
        attention = nullcontext() if mask is None else grouped(self.decoder)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.autocast), attention:
            return self.decoder(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state

    def _mask(self, visible: Tensor) -> Tensor:
        """(B, 1, N, keys) to be added to attention scores."""
        zeros = torch.zeros(visible.shape, dtype=self.head.dtype, device=visible.device)
        return zeros.masked_fill_(~visible, torch.finfo(self.head.dtype).min).unsqueeze(1)

    def _saving(self) -> AbstractContextManager[Any]:
        """Where what is saved for the backward pass goes."""
        return save_on_cpu(pin_memory=self.head.device.type == "cuda") if self.offload else nullcontext()

    def all_states(self, parts: Sequence[Chunk | ItemChunk]) -> list[Tensor]:
        """`states` of each part: within `working` by one call of the decoder, if its attention lets them share one."""
        with self._saving():
            if not self.join or not self._working or (self.join == "padded" and len(parts) == 1):
                return [self.states(part.ids) for part in parts]
            if self._replayed:
                return joined_states(self.decoder, parts, self.join, self._replayed)
            with torch.autocast(parts[0].ids.device.type, torch.bfloat16, enabled=self.autocast):
                return joined_states(self.decoder, parts, self.join)

    def rows(self, chunk: Chunk, likelihood: bool = True, hidden: Tensor | None = None) -> RowStates:
        """Pass B; without `likelihood` the vectors alone, and a loss of zero. `hidden`: of `all_states`, if known."""
        with self._saving():
            return self._rows(chunk, likelihood, self.all_states([chunk])[0] if hidden is None else hidden)

    def _rows(self, chunk: Chunk, likelihood: bool, hidden: Tensor) -> RowStates:
        nll = generation_loss(hidden, self.output, chunk) if likelihood else hidden.new_zeros((), dtype=torch.float)
        if not len(chunk.anchor_row):
            empty = hidden.new_zeros(0, hidden.shape[-1], dtype=torch.float32)
            return RowStates(nll, empty, empty)
        begin = torch.full_like(chunk.anchor_start, START)
        bounds = torch.stack([begin, chunk.anchor_start]), torch.stack([chunk.anchor_start, chunk.anchor_end])
        means = span_means(hidden, chunk.anchor_row, chunk.anchor_place, chunk.anchors_per_row, *bounds)  # (2, A, D)
        return RowStates(nll, *F.normalize(means, dim=-1))

    def items(self, chunk: ItemChunk, hidden: Tensor | None = None) -> Tensor:
        """Pass A: (M, D) unit vectors v_T of item texts alone, of a filler none. `hidden`: of `all_states`."""
        with self._saving():
            hidden = self.all_states([chunk])[0] if hidden is None else hidden
            # A filler has no token after the start: a mean of none would be NaN, and so its gradient.
            return hidden.flatten(0, 1)[:0].float() if chunk.filler else self.pooled(hidden, chunk.ends)

    def vectors(self, ids: Tensor, ends: Tensor) -> Tensor:
        """(B, D) unit vectors in fp32: the mean of the states from after the start token to `ends` (B,)."""
        return self.pooled(self.states(ids), ends)

    def pooled(self, hidden: Tensor, ends: Tensor) -> Tensor:
        """(B, D) unit vectors in fp32 from states (B, T, D): their mean from after the start token to `ends` (B,)."""
        rows = torch.arange(len(hidden), device=hidden.device)
        begin = torch.full_like(ends, START)
        return F.normalize(span_means(hidden, rows, torch.zeros_like(rows), 1, begin[None], ends[None])[0], dim=-1)
