"""Decoding over one shared prompt cache against plain forwards of whole texts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from calrec_lite.model.towers import Towers
from calrec_lite.recommend.decode import beam_search, sample
from calrec_lite.recommend.tree import PromptTree
from calrec_lite.text.encoding import EncodedCatalogue, Encoder
from calrec_lite.text.trie import Trie

HISTORIES = [[0, 1, 2], [5], [7, 8, 9, 10, 11], []]
NOTHING = [np.empty(0, np.int64)] * len(HISTORIES)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def towers(request: pytest.FixtureRequest, tiny_folder: Path, encoder: Encoder) -> Towers:
    """A model of full attention, and one with a sliding window shorter than the prompts."""
    if request.param == "llama":
        return Towers(AutoModelForCausalLM.from_pretrained(tiny_folder).eval())
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(encoder.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"] * 2,
        initializer_range=0.3,
    )
    return Towers(Gemma3ForCausalLM(config).eval())


@pytest.fixture
def prompts(encoder: Encoder, catalogue: EncodedCatalogue) -> list[np.ndarray]:
    return [encoder.prompt([catalogue.tokens[i] for i in history]) for history in HISTORIES]


@torch.no_grad()
def exact(towers: Towers, prompt: np.ndarray, items: list[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """(N,) log-probability of every item, each scored by itself in a forward of its whole text."""
    scores = np.zeros(len(items))
    plain = [t.tolist() for t in items]
    for i, tokens in enumerate(plain):
        ids = torch.tensor([[*prompt.tolist(), *tokens]])
        logits = towers.states(ids)[0] @ towers.head.T
        for d in range(len(tokens)):
            children = sorted({t[d] for t in plain if t[:d] == tokens[:d]})
            if len(children) > 1:
                below = [sum(n + 1 for t, n in zip(plain, counts) if t[: d + 1] == [*tokens[:d], c]) for c in children]
                logp = (logits[len(prompt) + d - 1][children].float() + torch.tensor(below).log()).log_softmax(-1)
                scores[i] += float(logp[children.index(tokens[d])])
    return scores


def test_beam_search_finds_the_true_order_with_exact_scores(
    towers: Towers, prompts: list[np.ndarray], encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    n = len(catalogue)
    found = beam_search(PromptTree(towers, prompts, encoder.pad), catalogue.trie, catalogue.bias, n, NOTHING)
    for prompt, ranked in zip(prompts, found):
        scores = exact(towers, prompt, catalogue.tokens, catalogue.counts)
        assert np.exp(scores).sum() == pytest.approx(1, abs=1e-4)
        assert sorted(ranked.items.tolist()) == list(range(n))
        np.testing.assert_allclose(ranked.scores, scores[ranked.items], atol=2e-4)
        assert (np.diff(ranked.scores) <= 1e-9).all()


def test_few_beams_keep_the_best_and_excluded_items_never_show(
    towers: Towers, prompts: list[np.ndarray], encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    whole = beam_search(
        PromptTree(towers, prompts, encoder.pad), catalogue.trie, catalogue.bias, len(catalogue), NOTHING
    )
    barred = [w.items[:3] for w in whole]
    found = beam_search(PromptTree(towers, prompts, encoder.pad), catalogue.trie, catalogue.bias, 20, barred)
    for all_, some, out in zip(whole, found, barred):
        assert not set(some.items.tolist()) & set(out.tolist())
        assert len(set(some.items.tolist())) == len(some.items)
        assert some.items[:5].tolist() == all_.items[3:8].tolist()


def test_lists_do_not_depend_on_who_shares_the_batch(
    towers: Towers, prompts: list[np.ndarray], encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    together = beam_search(PromptTree(towers, prompts, encoder.pad), catalogue.trie, catalogue.bias, 10, NOTHING)
    for prompt, ranked in zip(prompts, together):
        alone = beam_search(PromptTree(towers, [prompt], encoder.pad), catalogue.trie, catalogue.bias, 10, NOTHING[:1])[
            0
        ]
        assert alone.items.tolist() == ranked.items.tolist()
        np.testing.assert_allclose(alone.scores, ranked.scores, atol=1e-4)


def test_a_catalogue_of_one_item(towers: Towers, prompts: list[np.ndarray], encoder: Encoder, catalogue) -> None:
    trie = Trie.build(catalogue.tokens[:1])
    found = beam_search(PromptTree(towers, prompts, encoder.pad), trie, np.empty(0, np.float32), 5, NOTHING)
    assert all(f.items.tolist() == [0] and f.scores[0] == 0 for f in found)


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
        first = np.bincount([s.tokens[0] if s.tokens else encoder.end for s in own], minlength=len(wanted)) / 400
        likely = int(wanted.argmax())
        if likely not in encoder.stops:
            assert first[likely] == pytest.approx(float(wanted[likely]), abs=0.12)
    text = max((s for s in drawn[0] if len(s.tokens) == 3), key=lambda s: s.logprob)
    ids = torch.tensor([[*prompts[0].tolist(), *text.tokens]])
    logp = (towers.states(ids)[0] @ towers.head.T).float().log_softmax(-1)
    at = len(prompts[0])
    assert text.logprob == pytest.approx(sum(float(logp[at + d - 1, t]) for d, t in enumerate(text.tokens)), abs=1e-3)


def test_samples_are_reproducible_and_independent_of_the_batch(
    towers: Towers, prompts: list[np.ndarray], encoder: Encoder
) -> None:
    def run(users: list[int]) -> list[list[list[int]]]:
        tree = PromptTree(towers, [prompts[u] for u in users], encoder.pad)
        draws = [np.random.default_rng([5, u]) for u in users]
        return [[s.tokens for s in own] for own in sample(tree, 8, 1.0, encoder.stops, 6, draws)]

    assert run([0, 1, 2]) == run([0, 1, 2])
    assert run([2, 0])[1] == run([0, 1, 2])[0]
