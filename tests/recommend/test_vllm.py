"""What lies around vLLM: completions to samples to lists, and the clear word where it is absent or of no use."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.model.towers import Towers
from calrec_lite.recipe import Recommend
from calrec_lite.recommend import Recommender
from calrec_lite.recommend.package import fingerprint
from calrec_lite.recommend.sample import Sample
from calrec_lite.recommend.vllm import as_sample, prompt_seed, vllm_recommender
from calrec_lite.text.encoding import EncodedCatalogue, Encoder, Tokens

HISTORIES = [["red cup", "blue pen"], [], ["a title nobody knows"]]
OPTIONS = Recommend(strategy="sample", samples=6, temperature=0.7)


def test_recorded_completions_give_the_lists_of_our_own_sampler(
    tiny_folder: Path, domain: Domain, encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    towers = Towers(AutoModelForCausalLM.from_pretrained(tiny_folder))
    ids = domain.catalogue.ids
    ours = Recommender(towers, encoder, catalogue, ids, OPTIONS, seed=3)
    ended = set()

    def recorded(prompts: Sequence[Tokens]) -> list[list[Sample]]:
        """Real token ids in the form vLLM gives them: the token that ended a text is the last one."""
        texts = [[(tuple(s.tokens), s.logprob) for s in own] for own in ours.strategies.draw(prompts)]
        ended.update(tokens[-1] in encoder.stops for own in texts for tokens, _ in own)
        return [[as_sample(tokens, logprob) for tokens, logprob in own] for own in texts]

    other = Recommender(None, encoder, catalogue, ids, OPTIONS, seed=3, draw=recorded)
    assert other.recommend(HISTORIES, 5) == ours.recommend(HISTORIES, 5)
    assert True in ended


def test_the_token_that_ended_a_text_is_kept(encoder: Encoder) -> None:
    assert as_sample((5, 6, encoder.newline), -1.5) == Sample([5, 6, encoder.newline], -1.5)
    assert as_sample((), 0.0) == Sample([], 0.0)


def test_seeds_of_neighbours_do_not_meet() -> None:
    seeds = np.array([prompt_seed(0, np.array([1, token])) for token in range(2000)])
    assert np.diff(np.sort(seeds)).min() > 0
    assert not set(seeds[:50] + 1) & set(seeds)  # vLLM adds the text's number
    assert prompt_seed(0, np.array([1])) != prompt_seed(1, np.array([0]))
    assert prompt_seed(0, np.array([7, 8])) == prompt_seed(0, np.array([7, 8]))


def test_other_strategies_are_refused(package: Path) -> None:
    with pytest.raises(InputError, match="steer `beam`; add --strategy sample"):
        vllm_recommender(package)
    with pytest.raises(InputError, match="--strategy fly: write one of beam, "):
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
