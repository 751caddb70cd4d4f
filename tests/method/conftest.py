"""The tiny model with an adapter, some rows, and a step's gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch

from calrec_lite.method.batch import Collator
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.step import two_tower_step
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import add_adapter, load_model
from calrec_lite.recipe import Base, Loss
from calrec_lite.text.encoding import Encoder, Row


def adapted(folder: Path, seed: int, checkpointing: bool = False, std: float = 0.1, **base) -> torch.nn.Module:
    """The tiny model with an adapter that is not zero, in training mode."""
    torch.manual_seed(seed)
    of = Base.model_validate({"model": str(folder), "lora": {"r": 4}, **base})
    model = add_adapter(load_model(folder, of), of, checkpointing).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    return model


FP32 = {"dtype": "float32", "load_in_4bit": False}


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> torch.nn.Module:
    return adapted(tiny_folder, 1, **FP32)


@pytest.fixture(scope="module")
def rows(encoder: Encoder, catalogue: EncodedCatalogue) -> list[Row]:
    histories = [[0, 1, 2, 3], [5, 2], [7, 8, 1], [9, 4, 3, 2, 1], [2, 6, 5], [11, 12], [3, 2, 9]]
    users = [0, 1, 2, 3, 3, None, None]  # two windows of one user; two rows of nobody known
    return [encoder.row(np.array(h), catalogue.tokens, "shop", u) for h, u in zip(histories, users, strict=True)]


def collate(rows: list[Row], encoder: Encoder, catalogue: EncodedCatalogue, loss: Loss, micro: int):
    return Collator({"shop": catalogue}, loss, int(encoder.start[0]), encoder.pad, micro)(rows)


def gradients(model, batch, loss: Loss, towers: Towers | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    result = two_tower_step(towers or Towers(model), batch, loss, lambda scalar: scalar.backward())
    return result.loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
