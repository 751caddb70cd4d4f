"""What `CALRecTrainer` is given, opened: a model by name or loaded, its adapter, its tokenizer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from calrec_lite.data.domain import Catalogue, Sequences
from calrec_lite.data.objects import catalogue_of, histories_of
from calrec_lite.data.transitions import Transitions
from calrec_lite.errors import InputError
from calrec_lite.method.catalogue import encode_catalogue
from calrec_lite.method.rows import Rows, history_rows, last_item_rows
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import (
    add_lora,
    base_folder,
    is_quantised,
    load_model,
    lora_config,
    ready_adapter,
    require_positions,
)
from calrec_lite.model.merge import require_plain
from calrec_lite.model.tokenizer import load_tokenizer
from calrec_lite.recipe import Base, Lora
from calrec_lite.text.encoding import Encoder
from calrec_lite.training.config import CALRecConfig

NAME = "items"  # of the one domain that histories from Python make
Model = str | Path | PreTrainedModel | PeftModel
Records = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Opened:
    """A model, and where it comes from.

    Attributes:
        original: folder of its base's original weights; None where those in memory are what is known of them.
        tokenizer: folder of its tokenizer; None where it is not known.
    """

    model: PreTrainedModel | PeftModel
    original: Path | None
    tokenizer: Path | None


def open_model(model: Model, quantisation: BitsAndBytesConfig | None) -> Opened:
    """A model by its Hub id or folder, or a loaded one, as it is.

    Args:
        quantisation: of a model that is loaded here.

    Raises:
        InputError: there is no such model, or a loaded one shall be quantised.
    """
    if isinstance(model, str | Path):
        base = Base(model=str(model), load_in_4bit=bool(quantisation and quantisation.load_in_4bit))
        original = base_folder(base)
        return Opened(load_model(original, base, quantised=False, quantisation=quantisation), original, original)
    if quantisation is not None:
        raise InputError("quantization_config: the model is loaded already; give it by name, or leave this out")
    folder = _known_folder(model)
    # Weights in memory may have been changed since they were read; quantised ones are no base to merge onto.
    return Opened(model, folder if is_quantised(model) else None, folder)


def with_adapter(opened: Opened, args: CALRecConfig, peft_config: LoraConfig | None) -> PeftModel:
    """The model with an adapter to train: its own, or one that is put in.

    Args:
        peft_config: of the adapter; None: a recipe's default (`base.lora`).

    Raises:
        InputError: the adapter cannot be trained or merged, or there is one already.
    """
    model = opened.model
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise InputError("peft_config: the model has an adapter already; leave one of both out")
        if list(model.peft_config) != ["default"]:
            raise InputError(f"model: its adapter has to be called `default`, not {', '.join(model.peft_config)}")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError("model: its adapter is frozen: load it by from_pretrained(..., is_trainable=True)")
        config = model.peft_config["default"]
        if not isinstance(config, LoraConfig):
            raise InputError(f"model: its adapter is a {type(config).__name__}; only LoRA is trained and merged here")
        require_plain(config, "model")
        return ready_adapter(model)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise InputError("model: holds an adapter's layers already; give the PeftModel around it, or load it anew")
    lora = peft_config or lora_config(Lora())
    require_plain(lora, "peft_config")
    set_seed(args.seed)
    return add_lora(model, lora, bool(args.gradient_checkpointing))


def _known_folder(model: PreTrainedModel | PeftModel) -> Path | None:
    """Where a loaded model's files lie, so far as its config still says."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    try:
        return base_folder(Base(model=name, revision=getattr(model.config, "_commit_hash", None))) if name else None
    except InputError:  # moved since, or made in memory
        return None


def tokenizer_of(opened: Opened, given: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The given tokenizer, or that of the model's folder. Raises InputError where there is neither."""
    if given is not None:
        return given
    if opened.tokenizer is None:
        raise InputError("processing_class: where this model came from is not known; give its tokenizer")
    return load_tokenizer(opened.tokenizer)


@dataclass(frozen=True)
class Data:
    """What is trained on, and measured on while training; items and histories where they came from Python."""

    rows: Rows
    valid: Rows | None
    items: Catalogue | None = None
    histories: Sequences | None = None

    def transitions(self) -> Transitions:
        """What followed what in the histories."""
        assert self.histories is not None
        return Transitions.counted(self.histories.each(), self.rows.parts[0].catalogue.counts)


def open_data(
    train: Rows | Records,
    valid: Rows | Records | None,
    catalogue: Records | None,
    args: CALRecConfig,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
) -> Data:
    """Rows as they are, or histories over a catalogue as rows.

    Raises:
        InputError: the catalogue is missing, or something in it or the histories is of no use.
    """
    if isinstance(train, Rows):
        if valid is not None and not isinstance(valid, Rows):
            raise InputError("eval_dataset: give rows, as train_dataset does, or histories in both")
        if args.objective.effective_collaborative and any(p.catalogue.collaborative is None for p in train.parts):
            raise InputError("objective.collaborative: these rows' catalogue has no transitions; see encode_catalogue")
        return Data(train, valid)
    if args.offload_checkpoints and (
        args.device.type == "cpu" or not args.gradient_checkpointing or args.compile_layers
    ):
        raise InputError("offload_checkpoints: needs gradient_checkpointing and a CUDA device, and no compile_layers")
    if catalogue is None:
        raise InputError("catalogue: is missing; give the items: [{'item': id, 'title': text}, ...]")
    items, loss, encoder = catalogue_of(catalogue), args.objective, Encoder(tokenizer(), args.text)
    histories = histories_of(train, items, "train_dataset")
    counts = np.bincount(histories.items, minlength=len(items))
    weight = loss.effective_collaborative
    encoded = encode_catalogue(
        NAME,
        items,
        encoder,
        counts,
        loss.effective_prior,
        loss.effective_logit_scale,
        collaborative=weight,
        transitions=Transitions.counted(histories.each(), counts) if weight else None,
    )
    rows = Rows([history_rows(histories, encoded, encoder, loss)], encoder)
    if not len(rows):
        raise InputError("train_dataset: no history has two items, so there is no target to learn")
    if valid is None:
        return Data(rows, None, items, histories)
    if isinstance(valid, Rows):
        raise InputError("eval_dataset: give histories, as train_dataset does, or rows in both")
    held_out = Rows([last_item_rows(histories_of(valid, items, "eval_dataset"), encoded, encoder)], encoder)
    if not len(held_out):
        raise InputError("eval_dataset: no history has two items, so there is no target to measure")
    return Data(rows, held_out, items, histories)


def open_towers(model: PeftModel, args: CALRecConfig, read: Sequence[Rows]) -> Towers:
    """The two towers over a model, for the rows that it will read.

    Raises:
        InputError: they are longer than the base knows, or kernels cannot be fused or replayed as `args` asks.
    """
    longest = max(int(rows.length.max(initial=0)) for rows in read)
    require_positions(model, longest)
    towers = Towers(model, args.offload_checkpoints)
    if args.compile_layers:
        towers.compile()
    if args.cuda_graph:
        if args.checkpointing:  # transformers sets it up later
            raise InputError("optim.cuda_graph: set it, or gradient_checkpointing, to false")
        towers.replay(longest)
    return towers
