"""Attention under a mask without keys and values written out for each head: equal, in fewer bytes, while it is open."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, Gemma3TextConfig, Gemma3TextModel, LlamaConfig, LlamaModel

from calrec_lite.model.grouped import grouped


def model(attention: str = "sdpa") -> LlamaModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 3, "initializer_range": 0.2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    return LlamaModel(LlamaConfig(vocab_size=50, attn_implementation=attention, **shape, **heads)).eval()


@torch.no_grad()
def continued(decoder: LlamaModel, ids: int, within: Callable) -> tuple[torch.Tensor, int]:
    """States of some ids that see parts of a cache of 200 tokens, and the bytes that were taken on the way."""
    draw, cache = torch.Generator().manual_seed(1), DynamicCache()
    decoder(input_ids=torch.randint(50, (3, 200), generator=draw), past_key_values=cache)
    visible = torch.rand(3, 1, ids, 200 + ids, generator=draw) < 0.5
    visible[..., 0] = True
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    new = torch.randint(50, (3, ids), generator=draw)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen, within(decoder):
        states = decoder(input_ids=new, attention_mask=mask, past_key_values=cache).last_hidden_state
    taken = [event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return states, sum(b for b in taken if b > 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("ids", [1, 8, 100])
def test_it_is_equal_in_fewer_bytes(attention: str, ids: int) -> None:
    decoder = model(attention)
    wanted, before = continued(decoder, ids, lambda decoder: nullcontext())
    found, after = continued(decoder, ids, grouped)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    expanded = 3 * 2 * 3 * 8 * 208 * 16 * 4  # layers, keys and values, users, heads, keys, width, bytes
    if attention == "sdpa" and ids == 8:  # one id alone is grouped by transformers, of many the mask is larger
        assert before - after > 0.8 * expanded
    else:
        assert after <= before
    assert decoder.config._attn_implementation == attention


@torch.no_grad()
def test_without_a_mask_windows_are_as_ever() -> None:
    """As another thread's call finds the decoder, or a prompt's."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
    kinds = ["sliding_attention", "full_attention"]
    decoder = Gemma3TextModel(Gemma3TextConfig(vocab_size=50, layer_types=kinds, **shape, **heads)).eval()
    ids = torch.randint(50, (2, 20))
    wanted = decoder(input_ids=ids).last_hidden_state
    with grouped(decoder):
        found = decoder(input_ids=ids).last_hidden_state
    assert torch.equal(found, wanted)
