"""What lies around vLLM: completions to samples to lists, and the clear word where it is absent or of no use."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from calrec_lite.data.domain import Domain
from calrec_lite.decode.sample import Sample
from calrec_lite.errors import InputError
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.towers import Towers
from calrec_lite.package.layout import fingerprint
from calrec_lite.recipe import Recommend
from calrec_lite.recommend import Recommender
from calrec_lite.recommend.vllm import Drawing, prompt_seed, vllm_recommender
from calrec_lite.text.encoding import Encoder

HISTORIES = [["red cup", "blue pen"], [], ["a title nobody knows"]]
OPTIONS = Recommend(strategy="sample", samples=6, temperature=0.7)


class Engine:
    """`vllm.LLM` as it is called here: our own sampler answers, and what it was asked is kept."""

    def __init__(self, answers: dict[tuple[int, ...], list[Sample]]) -> None:
        self.answers, self.asked = answers, list[tuple[list[int], SimpleNamespace]]()

    def generate(self, prompts: list[Any], parameters: list[SimpleNamespace], use_tqdm: bool) -> list[SimpleNamespace]:
        self.asked += [(p["prompt_token_ids"], own) for p, own in zip(prompts, parameters, strict=True)]
        texts = [self.answers[tuple(p["prompt_token_ids"])] for p in prompts]
        made = [[SimpleNamespace(token_ids=tuple(s.tokens), cumulative_logprob=s.logprob) for s in t] for t in texts]
        return [SimpleNamespace(outputs=outputs) for outputs in made]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's two plain classes: it needs a GPU, and is not installed where tests run."""
    module = ModuleType("vllm")
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    module.TokensPrompt = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


def test_what_vllm_is_asked_and_how_its_answers_become_lists(
    tiny_folder: Path, domain: Domain, encoder: Encoder, catalogue: EncodedCatalogue, stub: None
) -> None:
    ids = domain.catalogue.ids
    ours = Recommender(
        Towers(AutoModelForCausalLM.from_pretrained(tiny_folder)), encoder, catalogue, ids, OPTIONS, seed=3
    )
    prompts = [encoder.prompt(ours._tokens(h, [ours.find(t) for t in h])) for h in HISTORIES]
    samples = ours.strategies.draw(prompts)
    engine = Engine({tuple(p.tolist()): own for p, own in zip(prompts, samples, strict=True)})
    most = max(map(len, catalogue.tokens))
    draw = Drawing(engine, OPTIONS, 3, encoder.stops, most, room=most + max(map(len, prompts)))
    other = Recommender(None, encoder, catalogue, ids, OPTIONS, seed=3, draw=draw)
    assert other.recommend(HISTORIES, 5) == ours.recommend(HISTORIES, 5)
    assert any(s.tokens[-1] in encoder.stops for own in samples for s in own)  # the token that ended a text is kept
    for prompt, own in engine.asked:
        assert own.seed == prompt_seed(3, np.array(prompt))
        assert (own.n, own.temperature, own.max_tokens, own.logprobs) == (6, 0.7, most, 0)
        assert (own.stop_token_ids, own.ignore_eos, own.detokenize) == (encoder.stops.tolist(), True, False)
    draw.room -= 1
    with pytest.raises(InputError, match=rf"a history of \d+ tokens; .* room for {draw.room}"):
        other.recommend(HISTORIES, 5)


def test_seeds_of_neighbours_do_not_meet() -> None:
    seeds = np.array([prompt_seed(0, np.array([1, token])) for token in range(2000)])
    assert np.diff(np.sort(seeds)).min() > 0
    assert not set(seeds[:50] + 1) & set(seeds)  # vLLM adds the text's number
    assert prompt_seed(0, np.array([1])) != prompt_seed(1, np.array([0]))
    assert prompt_seed(0, np.array([7, 8])) == prompt_seed(0, np.array([7, 8]))


def test_other_strategies_are_refused(package: Path) -> None:
    with pytest.raises(InputError, match="steer `beam`; add --strategy sample"):
        vllm_recommender(package)
    with pytest.raises(InputError, match="--strategy fly: write one of fused, fast, beam, "):
        vllm_recommender(package, "fly")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_absent_vllm_is_one_clear_line(package: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be imported .*pip install 'calrec-lite\[vllm\]'"):
        vllm_recommender(package, "sample")


def test_a_model_written_anew_has_another_fingerprint(package: Path) -> None:
    before = fingerprint(package)
    (package / "vectors.safetensors").write_bytes(b"what is derived from the model does not count")
    assert fingerprint(package) == before
    weights = package / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert fingerprint(package) != before
