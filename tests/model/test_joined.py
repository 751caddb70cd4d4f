"""Texts joined in one call of a decoder, against a call for each block; and which decoders cannot do it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from calrec_lite.model.joined import Way, joined_states, joining, joins, varlen_agrees, way_to_join
from tests.model import varlen
from tests.model.varlen import needs_varlen

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
JOINED: list[dict[str, Any]] = [
    {"model_type": "llama"},
    {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
     "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
    {"model_type": "qwen3"},
    {"model_type": "mistral", "sliding_window": None},
    {"model_type": "phi3"},
    {"model_type": "granite"},
    {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
]  # fmt: skip
APART: list[dict[str, Any]] = [
    {"model_type": "mistral", "sliding_window": 8},
    {"model_type": "gemma3_text", "sliding_window": 8},
    {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
    {"model_type": "phi3", "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
     "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}},
]  # fmt: skip


def decoder(options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    own = {k: v for k, v in TINY.items() if options["model_type"] != "gpt2" or k.endswith("id") or k == "vocab_size"}
    config = AutoConfig.for_model(**{**own, **options})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().get_decoder()


@dataclass
class Block:
    ids: torch.Tensor
    ends: torch.Tensor
    lengths: np.ndarray


@pytest.fixture
def blocks() -> list[Block]:
    """Texts of two towers: three of up to 20 tokens, and five of up to 6; two of them as long as each other."""
    draw, made = torch.Generator().manual_seed(0), []
    for width, lengths in ((20, [20, 13, 1]), (6, [6, 6, 4, 3, 3])):
        ids = torch.randint(3, 64, (len(lengths), width), generator=draw)
        made.append(Block(ids, torch.tensor(lengths), np.array(lengths)))
    return made


def shape_name(options: dict[str, Any]) -> str:
    return " ".join([options["model_type"], options.get("rope_parameters", {}).get("rope_type", "")]).strip()


@pytest.mark.parametrize("options", JOINED, ids=shape_name)
@pytest.mark.parametrize("way", ["padded", "one by one"])
def test_states_are_those_of_a_call_for_each_block(options: dict[str, Any], blocks: list[Block], way: Way) -> None:
    own = decoder(options)
    assert joins(own)
    with torch.no_grad():
        expected = [own(input_ids=block.ids, use_cache=False).last_hidden_state for block in blocks]
        with joining(own):
            for got, wanted, block in zip(joined_states(own, blocks, way), expected, blocks, strict=True):
                real = torch.arange(block.ids.shape[1]) < block.ends[:, None]
                torch.testing.assert_close(got[real], wanted[real], rtol=1e-4, atol=1e-5)
                assert way == "padded" or not got[~real].any()
            alone = own(input_ids=blocks[0].ids, use_cache=False).last_hidden_state  # other calls meanwhile
    torch.testing.assert_close(alone, expected[0], rtol=1e-4, atol=1e-5)
    assert own.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("options", APART, ids=shape_name)
def test_other_attention_is_left_to_calls_of_their_own(options: dict[str, Any]) -> None:
    assert not joins(decoder(options))


def test_another_implementation_of_attention_stays() -> None:
    own = decoder({"model_type": "llama"})
    own.config._attn_implementation = "eager"
    assert not joins(own)


def test_a_device_without_a_kernel_for_all_texts_keeps_the_padding() -> None:
    own = decoder({"model_type": "llama"})
    assert way_to_join(own, torch.device("cpu"), torch.float32) == "one by one"
    assert way_to_join(own, torch.device("meta"), torch.float32) == "padded"
    assert way_to_join(decoder(APART[0]), torch.device("cpu"), torch.float32) is None
    with pytest.raises(NotImplementedError):  # a RuntimeError, by which a GPU without it is told
        varlen_agrees(torch.device("cpu"), torch.float32, 4, 2, 8)


@pytest.fixture
def kernels() -> Iterator[None]:
    with varlen.on_a_cpu():
        yield


@needs_varlen
def test_all_texts_at_once(blocks: list[Block], kernels: None) -> None:
    """States, and gradients at them, through `varlen_attn` as torch has it; a wrong kernel is found by the trial."""
    own = decoder({"model_type": "llama"})
    found = []
    for way in ("one by one", "at once"):
        own.zero_grad()
        with joining(own):
            states = joined_states(own, blocks, way)
            sum((s * s.detach().roll(1, -1)).sum() for s in states).backward()
        found.append([*(s.detach() for s in states), *(p.grad.clone() for p in own.parameters())])
    for one, all_ in zip(*found, strict=True):
        torch.testing.assert_close(all_, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
    assert varlen_agrees(torch.device("cpu"), torch.float32, 4, 2, 8)


@needs_varlen
def test_a_kernel_that_sees_other_texts_is_found(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = varlen.texts_of
    monkeypatch.setattr(varlen, "texts_of", lambda bounds: plain(bounds[[0, -1]]))
    assert not varlen_agrees(torch.device("cpu"), torch.float32, 4, 2, 8)
