"""Loading a base: how much room it takes, and what is said where it cannot be loaded."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from calrec_lite.errors import InputError, RunError
from calrec_lite.model.base import load_model, loaded_bytes
from calrec_lite.recipe import Base


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
    with pytest.raises(RunError, match="out of memory while .* set base.load_in_4bit: true"):
        load_model(tiny_folder, Base(model=str(tiny_folder), load_in_4bit=False))
