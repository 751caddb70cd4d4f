"""The shape of a base with its adapter, without a byte of weights: what training it will hold in memory."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from calrec_lite.model.base import add_adapter
from calrec_lite.model.device import DType
from calrec_lite.model.whole import refused
from calrec_lite.recipe import Base

NF4 = 0.56  # bytes of a weight with double quantisation, and what it is unpacked to meanwhile (docs/bases.md)
MOMENTS = {"adamw_torch": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # bytes of an adapter's weight
WEIGHT_AND_GRADIENT = 8  # fp32


def skeleton(folder: Path, base: Base, dtype: DType) -> PeftModel:
    """The model that training will hold, on the meta device. Raises InputError as loading and adapting it would."""
    with refused(f"{folder} with attention: {base.attention} cannot be loaded"):
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=base.trust_remote_code, local_files_only=True, attn_implementation="eager"
        )
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, dtype), trust_remote_code=base.trust_remote_code
            )
    with torch.device("meta"):
        return add_adapter(model, base)


def parameters(model: PeftModel) -> tuple[int, int]:
    """How many weights the base has, and how many the adapter."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return sum(p.numel() for p in model.parameters()) - trained, trained


def resting_bytes(model: PeftModel, base: Base, optimiser: str) -> int:
    """Bytes of weights, adapter, its gradient and the optimiser's moments: all that is there between two steps."""
    head = model.get_base_model().get_output_embeddings()  # type: ignore[operator]
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    frozen, trained = parameters(model)
    linear -= trained  # LoRA's own two are linear layers, too
    width = model.get_input_embeddings().weight.dtype.itemsize
    of_linear = NF4 if base.load_in_4bit else 1 if base.load_in_8bit else width
    return int(linear * of_linear + (frozen - linear) * width + trained * (WEIGHT_AND_GRADIENT + MOMENTS[optimiser]))
