"""Sampling over one shared prompt cache against the model's own distribution."""

import numpy as np
import pytest
import torch

from calrec_lite.decode.prompt_tree import PromptTree
from calrec_lite.decode.sample import Sample, sample
from calrec_lite.method.towers import Towers
from calrec_lite.text.encoding import Encoder


@torch.no_grad()
def test_samples_have_their_own_log_probability_and_the_right_frequencies(
    towers: Towers, prompts: list[np.ndarray], encoder: Encoder
) -> None:
    draws = [np.random.default_rng([1, u]) for u in range(len(prompts))]
    drawn = sample(PromptTree(towers, prompts, encoder.pad), 400, 0.7, encoder.stops, 3, draws)
    for prompt, own in zip(prompts, drawn):
        assert len(own) == 400
        logits = (towers.states(torch.from_numpy(prompt)[None])[0, -1] @ towers.head.T).float()
        wanted = (logits / 0.7).softmax(-1)
        first = np.bincount([s.tokens[0] for s in own], minlength=len(wanted)) / 400
        likely = int(wanted.argmax())
        if likely not in encoder.stops:
            assert first[likely] == pytest.approx(float(wanted[likely]), abs=0.12)
    at, texts = len(prompts[0]), [s for s in drawn[0] if s.tokens[-1] in encoder.stops or len(s.tokens) == 3]
    assert len(texts) == 400
    ended = [s for s in texts if s.tokens[-1] in encoder.stops]
    assert not any(t in encoder.stops for s in texts for t in s.tokens[:-1])
    for text in (max(texts, key=lambda s: s.logprob), *ended[:2]):
        ids = torch.tensor([[*prompts[0].tolist(), *text.tokens]])
        logp = (towers.states(ids)[0] @ towers.head.T).float().log_softmax(-1)
        wanted = sum(float(logp[at + d - 1, t]) for d, t in enumerate(text.tokens))  # of the ending token too
        assert text.logprob == pytest.approx(wanted, abs=1e-3)


def test_samples_are_reproducible_and_independent_of_the_batch(
    towers: Towers, prompts: list[np.ndarray], encoder: Encoder
) -> None:
    def run(users: list[int]) -> list[list[list[int]]]:
        with torch.no_grad():
            tree = PromptTree(towers, [prompts[u] for u in users], encoder.pad)
        draws = [np.random.default_rng([5, u]) for u in users]
        return [[s.tokens for s in own] for own in sample(tree, 8, 1.0, encoder.stops, 6, draws)]

    assert run([0, 1, 2]) == run([0, 1, 2])
    assert run([2, 0])[1] == run([0, 1, 2])[0]
    assert any(len(tokens) > 1 for own in run([0, 1, 2]) for tokens in own)


def test_logits_in_slices_give_the_same_texts(
    towers: Towers, prompts: list[np.ndarray], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> list[list[Sample]]:
        with torch.no_grad():
            tree = PromptTree(towers, prompts, encoder.pad)
        return sample(tree, 8, 1.0, encoder.stops, 6, [np.random.default_rng([5, u]) for u in range(len(prompts))])

    whole = run()
    monkeypatch.setattr("calrec_lite.decode.sample.HEAD_ENTRIES", 3 * len(towers.head) + 1)
    for own, wanted in zip(run(), whole, strict=True):
        assert [s.tokens for s in own] == [s.tokens for s in wanted]
        assert [s.logprob for s in own] == pytest.approx([s.logprob for s in wanted], abs=1e-4)
