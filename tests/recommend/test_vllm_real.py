"""vLLM itself, where it is installed: what docs/vllm.md says was run. Seconds on a GPU, minutes on a CPU."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM

vllm = pytest.importorskip("vllm")

from calrec_lite.recommend import Recommender  # noqa: E402
from calrec_lite.recommend.draws import Draws  # noqa: E402
from calrec_lite.recommend.vllm import PROCESSOR, vllm_recommender  # noqa: E402
from calrec_lite.recommend.vllm_vectors import PooledVectors  # noqa: E402
from tests.recommend.test_vllm import HISTORIES, NEVER  # noqa: E402
from tests.recommend.vllm_driver import CONTEXT, STATES, UPDATE  # noqa: E402

ROUNDS, SAMPLES = 50, 8  # so few at once that no prompt is read in parts: on a CPU vLLM cannot seed those


@pytest.fixture
def wide(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The exported folder with heads of 64 numbers, which vLLM's attention wants."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setattr(vllm, "LLM", partial(vllm.LLM, enforce_eager=True))  # compiling would take most of the time
    config = LlamaConfig.from_pretrained(package)
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64}
    LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), **sizes})).save_pretrained(package)
    return package


def test_the_driver_has_the_interfaces_of_this_vllm() -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
    from vllm.v1.worker.gpu.sample.logits_processor.loader import build_custom_logits_processors_params_validator

    for driven, real in ((CONTEXT, LogitsContext), (STATES, LogitsProcRequestState), (UPDATE, BatchUpdate)):
        assert set(driven) <= {field.name for field in dataclasses.fields(real)}
    check = build_custom_logits_processors_params_validator([PROCESSOR])
    check(vllm.SamplingParams(extra_args={"catalogue": [1]}))
    with pytest.raises(VLLMValidationError, match="indices of the catalogue"):
        check(vllm.SamplingParams(extra_args={"catalogue": "1"}))


def test_items_are_drawn_from_our_distribution(wide: Path) -> None:
    made = vllm_recommender(wide, "sample", "float32", [f"recommend.samples={SAMPLES}", "recommend.temperature=1.0"])
    ours = Recommender.from_pretrained(wide, strategy="dense", dtype="float32")
    known, encoder = [np.array(history) for history in HISTORIES], made.encoder
    prompts = [encoder.prompt([made.catalogue.tokens[i] for i in history]) for history in HISTORIES]
    rounds: list[list[Draws]] = []
    for seed in range(ROUNDS):
        made.strategies.draw.seed = seed  # type: ignore[union-attr]
        rounds.append(made.strategies.draw(prompts, known))  # type: ignore[misc]
    for user, row in enumerate(ours.strategies.logprobs(prompts, known)):
        items, logprobs = (np.concatenate([getattr(r[user], name) for r in rounds]) for name in ("items", "logprobs"))
        np.testing.assert_allclose(logprobs, row[items], atol=1e-3)
        expected = len(items) * np.exp(row)
        rare = expected < 5
        counts = np.bincount(items, minlength=len(row))
        found, wanted = (np.append(v[~rare], v[rare].sum()) for v in (counts, expected))
        assert chisquare(found, wanted * found.sum() / wanted.sum()).pvalue > NEVER
    again = made.strategies.draw(prompts, known)  # type: ignore[misc]
    assert [d.items.tolist() for d in again] == [d.items.tolist() for d in rounds[-1]]


def test_pooled_vectors_are_ours(wide: Path) -> None:
    ours = Recommender.from_pretrained(wide, strategy="dense", dtype="float32")
    pooled = PooledVectors(wide, ours.strategies.towers.head.dtype)
    tokens = list(ours.catalogue.tokens)
    np.testing.assert_allclose(pooled.items(tokens), ours.strategies.item_vectors.vectors.cpu().numpy(), atol=1e-4)
    prompts = [ours.encoder.prompt([tokens[i] for i in history]) for history in [*HISTORIES, []]]
    np.testing.assert_allclose(pooled.prompts(prompts), ours.strategies.user_vectors(prompts), atol=1e-4)
