"""Loading a base: how much room it takes, and what is said where it cannot be loaded."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from calrec_lite.errors import InputError, RunError
from calrec_lite.model import base as base_module
from calrec_lite.model.base import add_adapter, load_model, loaded_bytes, placement
from calrec_lite.model.memory import activation_bytes
from calrec_lite.recipe import Base, Lora


@pytest.mark.parametrize(
    ("stored", "asked"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_the_room_of_a_model_is_that_of_the_dtype_it_is_loaded_in(
    tiny_folder: Path, tmp_path: Path, stored: str, asked: str
) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=getattr(torch, stored)).save_pretrained(tmp_path)
    base = Base(model=str(tmp_path), dtype=asked, load_in_4bit=False)
    model = load_model(tmp_path, base)
    assert loaded_bytes(tmp_path, base) == sum(p.numel() * p.element_size() for p in model.parameters())


def test_weights_that_are_there_twice_are_counted_once(tiny_folder: Path, tmp_path: Path) -> None:
    """Mistral's folders hold the same weights again in their maker's format."""
    folder = shutil.copytree(tiny_folder, tmp_path / "twice")
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    base = Base(model=str(folder))
    assert loaded_bytes(folder, base) == loaded_bytes(tiny_folder, base)


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attention is installed here")
def test_an_attention_that_is_not_here_is_one_line(tiny_folder: Path) -> None:
    base = Base(model=str(tiny_folder), attention="flash_attention_2", load_in_4bit=False)
    with pytest.raises(InputError, match="attention: flash_attention_2 cannot be loaded: .*[Ff]lash") as caught:
        load_model(tiny_folder, base)
    assert "\n" not in str(caught.value)


def test_an_architecture_that_transformers_does_not_know_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "unknown")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"model_type": "llama"', '"model_type": "abacus"'))
    with pytest.raises(InputError, match="cannot be loaded: .*abacus"):
        load_model(folder, Base(model=str(folder), load_in_4bit=False))


def test_a_base_that_memory_has_no_room_for_says_what_to_do(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(RunError, match="out of memory while .* in 4 bits .* base.load_in_4bit: true"):
        load_model(tiny_folder, Base(model=str(tiny_folder), load_in_4bit=False))


@pytest.mark.parametrize(
    ("four_bits", "free", "placed"),
    [(True, 2.0, (False, "cuda")), (True, 1.2, (True, "cuda")), (False, 1.2, (False, "cpu"))],
    ids=["room", "no room, quantised in training", "no room"],
)
def test_what_does_not_fit_on_the_gpu_is_quantised_as_in_training(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, four_bits: bool, free: float, placed: tuple[bool, str]
) -> None:
    base = Base(model=str(tiny_folder), load_in_4bit=four_bits)
    needed = loaded_bytes(tiny_folder, base)
    monkeypatch.setattr(base_module, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * needed), 4 * needed))
    quantised, where = placement(tiny_folder, base)
    assert (quantised, where.type) == placed


@pytest.mark.parametrize(
    ("targets", "said"),
    [(["q_proj", "embed_tokens"], "embed_tokens is a Embedding"), (["q_proj", "lm_head"], "lm_head is the LM head")],
    ids=["embeddings", "head"],
)
def test_what_cannot_be_merged_is_refused_before_it_is_trained(
    tiny_folder: Path, targets: list[str], said: str
) -> None:
    base = Base(model=str(tiny_folder), dtype="float32", load_in_4bit=False, lora=Lora(r=4, targets=targets))
    with pytest.raises(InputError, match=said):
        add_adapter(load_model(tiny_folder, base), base)


def test_layers_that_are_not_linear_are_refused_before_training() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="h.0.attn.c_attn is a Conv1D; only linear layers"):
        add_adapter(model, Base(model="gpt2", load_in_4bit=False))


def test_the_estimate_knows_an_mlp_by_its_layers() -> None:
    """Configs have different names for its width, if any."""
    config = OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2)
    config.word_embed_proj_dim = 16
    base = Base(model="opt", load_in_4bit=False)
    assert activation_bytes(add_adapter(OPTForCausalLM(config), base), False) == 2 * (4 * (10 * 16 + 5 * 48) + 8 * 16)
