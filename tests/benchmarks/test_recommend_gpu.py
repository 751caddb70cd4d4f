"""The part of the recommending benchmark that wants a GPU, at a small size on a CPU."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import recommend_gpu


def test_every_strategy_at_every_size_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommend_gpu, "BATCH_TOKENS", (300, 700))
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=500, attn_implementation="sdpa", **shape)
    found = recommend_gpu.measured(config, torch.device("cpu"), seconds=0)
    assert list(found) == [f"{name} {tokens}" for name in ("dense", "beam", "rerank") for tokens in (300, 700)]
    assert [facts["users"] for facts in found.values()] == [1, 2] * 3
    assert all(facts["of_rate"] > 0 and facts["users_per_second"] > 0 for facts in found.values())
