"""The loss over the whole vocabulary: its value, its gradient, and the memory that it takes."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from calrec_lite.model import head_loss
from calrec_lite.model.head_loss import vocabulary_nll


def test_vocabulary_nll_equals_cross_entropy_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, labels = torch.randn(50, 8), torch.randint(50, (23,))
    wanted_states = torch.randn(23, 8, requires_grad=True)
    wanted = torch.nn.functional.cross_entropy(wanted_states @ head.T, labels, reduction="none")
    wanted.sum().backward()
    monkeypatch.setattr(head_loss, "HEAD_ENTRIES", 50 * 4)  # four positions at a time
    states = wanted_states.detach().clone().requires_grad_()
    got = vocabulary_nll(states, head, labels)
    got.sum().backward()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(states.grad, wanted_states.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_slice_of_logits_is_alive_at_a_time(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """In fp32, and beside them in a 16-bit base's own type; the last slice has as many as the first."""
    entries = 1000 * 64
    monkeypatch.setattr(head_loss, "HEAD_ENTRIES", entries)
    head, labels = torch.randn(1000, 8, dtype=dtype), torch.randint(1000, (3 * 64,))
    states = torch.randn(len(labels), 8, dtype=dtype, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        vocabulary_nll(states, head, labels).sum().backward()
    events = sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = torch.tensor([event.nbytes() for event in events if event.name() == "[memory]"]).cumsum(0)
    logits = entries * (4 if dtype is torch.float32 else 4 + 2)
    assert logits < int(held.max()) < 1.25 * logits  # two slices would be 2; bf16 kernels take some of their own
