"""A vocabulary trimmed to the ids that training reads: the other rows of embedding and LM head wait in RAM.

LoRA touches neither, so what is computed stays the same to the bit. The rows kept lie one after the other, and ids are
mapped where they are looked up, so that whoever runs the model goes on writing ids as the tokenizer gives them.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from peft import PeftModel

PLACE = "place_of_id"  # attribute of a trimmed layer: (V,) the row of each id
TRIMMED = (
    "while it is trained this model has no logits of all tokens: its LM head is reduced to what the loss reads; take "
    "trainer.recommender(), which makes it whole, or wait until training ends"
)


def rows_of(layer: nn.Module, ids: Tensor) -> Tensor:
    """(N, D) rows of an embedding or LM head, trimmed or whole, by `ids` (N,) of the tokenizer."""
    place: Tensor | None = getattr(layer, PLACE, None)
    weight: Any = layer.weight
    return weight[ids if place is None else place[ids]]


def all_rows(layer: nn.Module) -> Tensor:
    """(V, D) of an embedding or LM head. Raises RuntimeError where it is trimmed."""
    if hasattr(layer, PLACE):
        raise RuntimeError(TRIMMED)
    return layer.weight  # type: ignore[return-value]


def spared_bytes(model: "PeftModel", ids: np.ndarray, head: bool) -> int:
    """Bytes that `Trimmed` takes off the device; arguments as there."""
    return sum(
        max(0, len(layer.weight) - len(ids) - 1) * layer.weight.shape[1] * layer.weight.element_size()
        for layer in _distinct(_layers(model, head))
    )


class Trimmed:
    """Embedding, and LM head, of a model reduced to the rows of some ids, until `restore`.

    Whoever reads another id meanwhile gets NaN, on a GPU too, where an index out of range would end the process; who
    asks the model itself for logits, an error.

    Args:
        model: where it trains or adapts these layers, they stay as they are.
        ids: (K,) ascending and distinct: all that is read.
        head: the LM head too; otherwise it stays whole, and with it an embedding that shares its weights.
    """

    def __init__(self, model: "PeftModel", ids: np.ndarray, head: bool) -> None:
        self._whole: list[tuple[Any, nn.Parameter, int | None]] = []
        self._hooks: list[RemovableHandle] = []
        layers = _layers(model, head) if spared_bytes(model, ids, head) else []
        kept = {id(layer.weight): _kept(layer.weight, ids) for layer in _distinct(layers)}  # tied layers share theirs
        for layer in layers:
            whole, padding = layer.weight, getattr(layer, "padding_idx", None)
            self._whole.append((layer, whole, padding))
            layer.weight = kept[id(whole)]
            place = torch.full((len(whole),), len(ids), dtype=torch.int32)
            place[torch.from_numpy(ids)] = torch.arange(len(ids), dtype=torch.int32)
            setattr(layer, PLACE, place := place.to(whole.device))
            if isinstance(layer, nn.Embedding):
                layer.padding_idx = None  # of gradients alone, and out of range now
            hook = partial(_mapped, place) if isinstance(layer, nn.Embedding) else _refused
            self._hooks.append(layer.register_forward_pre_hook(hook))
        for _, whole, _ in self._whole:
            whole.data = whole.data.cpu()

    def restore(self) -> None:
        """All rows where they were. Nothing, where they are there already."""
        for layer, whole, padding in self._whole:
            whole.data = whole.data.to(layer.weight.device)
            layer.weight = whole
            delattr(layer, PLACE)
            if isinstance(layer, nn.Embedding):
                layer.padding_idx = padding
        for hook in self._hooks:
            hook.remove()
        self._whole, self._hooks = [], []


def _layers(model: "PeftModel", head: bool) -> list[Any]:
    """What can be trimmed: the embedding, the LM head; nothing that is trained, or that another layer reads whole."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # here: losses need this module, and lists need losses

    causal: Any = model.get_base_model()
    embedding, output = causal.get_input_embeddings(), causal.get_output_embeddings()
    if isinstance(embedding, nn.Embedding) and not head and embedding.weight is output.weight:
        return []
    layers = [embedding, output] if head else [embedding]
    plain = isinstance(embedding, nn.Embedding) and not any(isinstance(layer, BaseTunerLayer) for layer in layers)
    return layers if plain and not any(layer.weight.requires_grad for layer in layers) else []


def _distinct(layers: list[Any]) -> list[Any]:
    """One of those that share a weight."""
    return list({id(layer.weight): layer for layer in layers}.values())


def _kept(whole: Tensor, ids: np.ndarray) -> nn.Parameter:
    """(K + 1, D) the rows of `ids`, and one of NaN for all others."""
    rows = whole.new_full((len(ids) + 1, whole.shape[1]), torch.nan)
    torch.index_select(whole.detach(), 0, torch.from_numpy(ids).to(whole.device), out=rows[:-1])
    return nn.Parameter(rows, requires_grad=False)


def _mapped(place: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return place[inputs[0]], *inputs[1:]


def _refused(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise RuntimeError(TRIMMED)
