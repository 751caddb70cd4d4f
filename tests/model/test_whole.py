"""Model folders that are not whole, or hold more than weights, are refused by one line first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from calrec_lite.errors import InputError
from calrec_lite.model.base import (
    add_adapter,
    add_lora,
    base_folder,
    load_adapter_weights,
    load_model,
    require_positions,
)
from calrec_lite.model.device import choose_dtype
from calrec_lite.model.merge import merge_adapter
from calrec_lite.model.tokenizer import load_tokenizer
from calrec_lite.model.whole import require_whole_gguf
from calrec_lite.recipe import Base, Lora

Damage = Callable[[Path], Any]
UP = "model.layers.1.mlp.up_proj.weight"


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    """Change the stored weights."""

    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return damage


def config(**keys: Any) -> Damage:
    def damage(folder: Path) -> None:
        stored = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stored, **keys}))

    return damage


def text(name: str, content: str | float) -> Damage:
    """The file has this content, or keeps this share of its own."""

    def damage(folder: Path) -> None:
        old = (folder / name).read_bytes() if (folder / name).is_file() else b""
        new = content.encode() if isinstance(content, str) else old[: int(content * len(old))]
        (folder / name).write_bytes(new)

    return damage


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def sharded(index: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(index)

    return damage


DAMAGED: dict[str, tuple[Damage, str]] = {
    "a tensor is missing": (tensors(lambda s: s.pop(UP)), f"weights lack {UP}; take"),
    "it has another name": (tensors(lambda s: s.update(x=s.pop(UP))), f"weights lack {UP}; take"),
    "no embeddings": (tensors(lambda s: s.pop("model.embed_tokens.weight")), "lack lm_head.weight, model.embed_tokens"),
    "another shape": (
        tensors(lambda s: s.update({UP: s[UP][:9].clone()})),
        r"do not fit .*is \[9, 64\], not \[128, 64\]",
    ),
    "NaN": (tensors(lambda s: s[UP].view(-1)[3].fill_(float("nan"))), f"{UP} of its weights hold what is no number"),
    "half the weights": (text("model.safetensors", 0.5), "cannot be loaded"),
    "an adapter beside them": (text("adapter_config.json", "{}"), "an adapter .* lies beside the weights"),
    "pickled": (pickled, "no file named model.safetensors|no .*safetensors"),
    "a kernel from the Hub": (
        config(_attn_implementation="someone/kernel"),
        "`_attn_implementation` names foreign code",
    ),
    "and inside": (config(text_config={"attn_implementation": "a/b"}), "`attn_implementation` names foreign code"),
    "quantised": (config(quantization_config={}), "name their unquantised original"),
    "no config": (text("config.json", "5"), "config.json: holds no JSON object"),
    "half a config": (text("config.json", 0.5), "config.json: cannot be read"),
    "an odd activation": (config(hidden_act="odd"), "cannot be loaded: 'odd'"),
    "more heads than can be": (config(num_key_value_heads=10**6), "do not fit its config.json"),
    "no heads": (config(num_attention_heads=0), "cannot be loaded"),
    "more words than memory": (config(vocab_size=10**13), "do not fit its config.json"),
    "endless layers": (config(num_hidden_layers=10**9), "`num_hidden_layers` is 1e[+]09"),
    "a generation config": (text("generation_config.json", "5"), "cannot be loaded"),
    "an index of nothing": (sharded("[]"), "cannot be loaded|holds no JSON object"),
    "an index that leads away": (
        sharded(json.dumps({"weight_map": {UP: "../x"}})),
        "cannot be loaded|each tensor a file",
    ),
}


# What is no number shows only where weights are read: a merge copies, and what came of it is refused when loaded.
CASES = [(name, "loaded") for name in DAMAGED]
CASES += [(name, where) for name in DAMAGED if name != "NaN" for where in ("a base", "merged")]


@pytest.mark.parametrize(("name", "where"), CASES)
def test_what_is_not_whole_is_one_line(tiny_folder: Path, tmp_path: Path, name: str, where: str) -> None:
    damage, said = DAMAGED[name]
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    damage(folder)
    base = Base(model=str(folder), dtype="float32", load_in_4bit=False)
    if where == "merged":
        save_adapter(tiny_folder, tmp_path / "adapter")
        said = f"{said}|lacks model.safetensors|not a whole safetensors"
    act = {
        "loaded": lambda: load_model(folder, base),
        "a base": lambda: base_folder(base),
        "merged": lambda: merge_adapter(folder, tmp_path / "adapter", tmp_path / "to", progress=False),
    }[where]
    with pytest.raises(InputError, match=said) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    assert not (tmp_path / "to").exists()


def save_adapter(base: Path, to: Path) -> None:
    model = add_adapter(load_model(base, FLOAT32), FLOAT32)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(to))


FLOAT32 = Base(model="tiny", dtype="float32", load_in_4bit=False, lora=Lora(r=2))


def test_what_is_no_number_is_found_where_it_is_quantised_too(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    DAMAGED["NaN"][0](folder)
    with pytest.raises(InputError, match=f"{UP} of its weights hold what is no number"):
        load_model(folder, Base(model=str(folder), dtype="float32", load_in_4bit=True))


def test_the_one_file_counts_where_there_are_shards_too(tiny_folder: Path, tmp_path: Path) -> None:
    """transformers loads it, so it is what an adapter is merged onto."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tiny_folder).save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    for file in (tmp_path / "shards").glob("model*"):
        shutil.copy(file, folder)
    save_adapter(tiny_folder, tmp_path / "adapter")
    merge_adapter(folder, tmp_path / "adapter", tmp_path / "to", progress=False)
    assert [file.name for file in (tmp_path / "to").glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize(
    "damage",
    [
        text("tokenizer.json", "5"),
        text("tokenizer.json", 0.5),
        text("tokenizer_config.json", "5"),
        text("tokenizer.json", '{"truncation": true}'),
        text("tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": "many"}'),
    ],
)
def test_a_damaged_tokenizer_is_one_line(tiny_folder: Path, tmp_path: Path, damage: Damage) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    damage(folder)
    with pytest.raises(InputError, match="has no tokenizer that can be loaded") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_proj", "v_prj"], "v_prj adapts no layer of this base; adapted: q_proj"),
        ("nothing", "base.lora: .*nothing"),
    ],
)
def test_a_target_that_adapts_nothing_is_named(tiny_folder: Path, targets: Any, said: str) -> None:
    base = FLOAT32.model_copy(update={"lora": Lora(r=2, targets=targets)})
    with pytest.raises(InputError, match=said):
        add_adapter(load_model(tiny_folder, base), base)


def test_a_pattern_that_adapts_nothing_is_named(tiny_folder: Path) -> None:
    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"k_proj": 3}}
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], **patterns)
    with pytest.raises(InputError, match="k_proj adapts no layer"):
        add_lora(load_model(tiny_folder, FLOAT32), lora)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(next(iter(s))), "its adapter lacks"),
        (lambda s: s.update({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}), "fits another model"),
        (lambda s: next(iter(s.values())).fill_(float("nan")), "has NaN in"),
    ],
)
def test_an_adapter_is_carried_on_whole_or_not_at_all(
    tiny_folder: Path, tmp_path: Path, change: Callable[..., Any], said: str
) -> None:
    save_adapter(tiny_folder, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)
    with pytest.raises(InputError, match=said):
        add_adapter(load_model(tiny_folder, FLOAT32), FLOAT32, carried=tmp_path / "adapter")
    file.rename(file.with_name("adapter_model.bin"))
    with pytest.raises(InputError, match="adapter cannot be loaded"):
        load_adapter_weights(add_adapter(load_model(tiny_folder, FLOAT32), FLOAT32), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (lambda s: s.pop(next(k for k in s if "lora_B" in k)), {}),
        (lambda s: s.update({next(iter(s)): torch.zeros(3)}), {}),
        (lambda s: s.update({next(iter(s)): torch.zeros(9, 64)}), {}),
        (lambda s: next(iter(s.values())).fill_(float("nan")), {}),
        (lambda s: None, {"lora_alpha": float("inf")}),
        (lambda s: None, {"alpha_pattern": {"([": 3}}),
        (lambda s: None, {"r": "many", "target_modules": 5, "peft_type": "ODD"}),
    ],
)
def test_an_adapter_whose_parts_do_not_fit_is_not_merged(
    tiny_folder: Path, tmp_path: Path, change: Callable[..., Any], config: dict[str, Any]
) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(tiny_folder, adapter)
    state = load_file(adapter / "adapter_model.safetensors")
    change(state)
    save_file(state, adapter / "adapter_model.safetensors")
    stored = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**stored, **config}))
    with pytest.raises(InputError, match=f"{adapter}: ") as caught:
        merge_adapter(tiny_folder, adapter, tmp_path / "to", progress=False)
    assert "\n" not in str(caught.value)


def test_rows_beyond_a_bases_own_length_are_refused() -> None:
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, max_position_embeddings=32))
    require_positions(model, 32)
    with pytest.raises(InputError, match="rows have up to 33 tokens, and this base reads 32"):
        require_positions(model, 33)


def test_sizes_that_a_config_makes_up_are_not_probed(tiny_folder: Path, tmp_path: Path) -> None:
    """The probe of number types makes layers of the config's width, before weights are compared with it."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config(hidden_size=10**9, intermediate_size=-3)(folder)
    choose_dtype(Base(model=str(folder)), folder, torch.device("cpu"))


def test_a_gguf_file_that_is_cut_off_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "base.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), np.float32))
    writer.add_tensor("output.weight", np.zeros((64, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    require_whole_gguf(file)
    whole = file.read_bytes()
    for length in (len(whole) - 100, len(whole) // 2, 100, 20, 5):
        file.write_bytes(whole[:length])
        with pytest.raises(
            InputError, match=f"base.gguf is cut off or damaged: it has {length:,} bytes, .* again"
        ) as e:
            base_folder(Base(model=str(file)))
        assert len(str(e.value).splitlines()) == 1
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="base.gguf is no GGUF file"):
        base_folder(Base(model=str(file)))
    assert not list((tmp_path / "cache").rglob("config.json"))
