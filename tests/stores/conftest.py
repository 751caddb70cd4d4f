"""An exported folder of the tiny model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.decode.conftest import package  # noqa: F401


@pytest.fixture(scope="module")
def causal(tiny_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture
def retrained(package: Path) -> Path:  # noqa: F811
    """The same folder with other weights."""
    model = AutoModelForCausalLM.from_pretrained(package)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(package)
    return package
