"""Adapter -> full weights: the merged model says what the adapter model said."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import calrec_lite.model.merge as merging
from calrec_lite.errors import InputError
from calrec_lite.files import BESIDE_WEIGHTS, _host
from calrec_lite.model.merge import merge_adapter
from calrec_lite.model.parity import parity

KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"k_proj": 3}},
}


def trained(base: Path, to: Path, **options) -> torch.nn.Module:
    """An adapter with weights as after training."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    adapted = get_peft_model(model, config)
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(str(to))
    return adapted.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_merged_logits_equal_the_adapters(tiny_folder: Path, tmp_path: Path, kind: str) -> None:
    model = trained(tiny_folder, tmp_path / "adapter", **KINDS[kind])
    assert merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / "merged", progress=False) == 14
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(tiny_folder)(ids).logits
        found = parity(iter([model(ids).logits[0]]), iter([merged(ids).logits[0]]))
        assert (model(ids).logits - before).abs().max() > 0.1
    assert found.max_difference < 1e-3
    assert found.top1_agreement == 1
    assert merged.config.tie_word_embeddings
    assert merged.get_output_embeddings().weight.data_ptr() == merged.get_input_embeddings().weight.data_ptr()


def test_onto_the_dequantized_weights_is_what_the_4bit_model_computes(tiny_folder: Path, tmp_path: Path) -> None:
    """Adapter on a live NF4 base against both merges: the dequantised one is the same function, the original is not."""
    from peft import PeftModel

    from calrec_lite.model.base import load_model
    from calrec_lite.recipe import Base

    trained(tiny_folder, tmp_path / "adapter")
    base = Base(model=str(tiny_folder), dtype="float32", load_in_4bit=True)
    live = PeftModel.from_pretrained(load_model(tiny_folder, base), str(tmp_path / "adapter")).train()
    ids, differences = torch.arange(20)[None], {}
    for onto in ("original", "dequantized"):
        merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / onto, onto, progress=False)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / onto)
        with torch.no_grad():
            differences[onto] = float((live(ids).logits - merged(ids).logits).abs().max())
    assert differences["dequantized"] < 1e-3
    assert differences["original"] > 0.05


def test_shards_are_kept_and_bf16_stays_bf16(tiny_folder: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16).save_pretrained(
        tmp_path / "base", max_shard_size="20KB"
    )
    trained(tmp_path / "base", tmp_path / "adapter")
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", progress=False)
    shards = sorted(p.name for p in (tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(p.name for p in (tmp_path / "merged").glob("*.safetensors")) == shards
    for shard in shards:
        old, new = load_file(tmp_path / "base" / shard), load_file(tmp_path / "merged" / shard)
        assert {k: (v.dtype, v.shape) for k, v in old.items()} == {k: (v.dtype, v.shape) for k, v in new.items()}
        for key in old:
            assert torch.equal(old[key], new[key]) == ("proj" not in key)


def test_the_bases_terms_come_along(tiny_folder: Path, tmp_path: Path) -> None:
    """From the Hub into the cache, and from the base into what is made of it."""
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    terms = {name: f"terms of {name}" for name in ("LICENSE", "LICENSE.md", "NOTICE", "Notice.txt")}
    for name, text in terms.items():
        (base / name).write_text(text)
    (base / "LICENSES").mkdir()
    trained(base, tmp_path / "adapter")
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", progress=False)
    assert {n: (tmp_path / "merged" / n).read_text() for n in terms} == terms
    assert set(filter_repo_objects([*terms, "notes.md", "model.bin"], allow_patterns=list(BESIDE_WEIGHTS))) == set(
        terms
    )


def test_adapters_that_do_nothing_or_do_not_fit_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    trained(tiny_folder, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({k: v * 0 if "lora_B" in k else v for k, v in weights.items()}, file)
    with pytest.raises(InputError, match="does nothing"):
        merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / "merged", progress=False)
    save_file({k.replace("layers.1", "layers.7"): v for k, v in weights.items()}, file)
    with pytest.raises(InputError, match="fits another base"):
        merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / "merged", progress=False)
    save_file({k: v[:, :-1].contiguous() if "lora_A" in k else v for k, v in weights.items()}, file)
    with pytest.raises(InputError, match="another shape"):
        merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / "merged", progress=False)
    save_file({**weights, "base_model.model.lm_head.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="no LoRA"):
        merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / "merged", progress=False)
    shutil.copytree(tiny_folder, tmp_path / "quantised")
    config = json.loads((tmp_path / "quantised" / "config.json").read_text())
    (tmp_path / "quantised" / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    save_file(weights, file)
    with pytest.raises(InputError, match="unquantised original"):
        merge_adapter(tmp_path / "quantised", tmp_path / "adapter", tmp_path / "merged", progress=False)
    with pytest.raises(InputError, match="not a LoRA adapter"):
        merge_adapter(tiny_folder, tmp_path / "nowhere", tmp_path / "merged", progress=False)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_changed_its_base_is_refused(tiny_folder: Path, tmp_path: Path, kind: str) -> None:
    """Made by PEFT; merged all the same, it would be another model than the one that was trained."""
    trained(tiny_folder, tmp_path / "adapter", init_lora_weights=kind)
    with pytest.raises(InputError, match=f"init_lora_weights `{kind}` changed the base before training"):
        merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / "merged", progress=False)
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore:PiSSA changes the base")
def test_a_pissa_adapter_that_peft_made_plain_is_merged(tiny_folder: Path, tmp_path: Path) -> None:
    """The way out that the refusal names."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa")
    model = get_peft_model(base, config)
    model.peft_config["default"].init_lora_weights = True  # PEFT's own recipe: what was there before training
    model.save_pretrained(str(tmp_path / "before"))
    model.peft_config["default"].init_lora_weights = "pissa"
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted = model.eval()(ids).logits[0]
    model.save_pretrained(str(tmp_path / "plain"), path_initial_model_for_weight_conversion=str(tmp_path / "before"))
    merge_adapter(tiny_folder, tmp_path / "plain", tmp_path / "merged", progress=False)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits[0]
    assert parity(iter([wanted]), iter([found])).max_difference < 1e-3


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_alone_are_merged(tiny_folder: Path, tmp_path: Path, kind: str) -> None:
    model = trained(tiny_folder, tmp_path / "adapter", init_lora_weights=kind)
    merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / "merged", progress=False)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert parity(iter([model(ids).logits[0]]), iter([merged(ids).logits[0]])).max_difference < 1e-3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alora_invocation_tokens", [5, 6]),
        ("layer_replication", [[0, 2], [0, 2]]),
        ("use_qalora", True),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("lora_bias", True),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("kasa_config", {}),
        ("use_bdlora", {"target_modules_bd_a": ["q_proj"], "nblocks": 2}),
    ],
)
def test_what_is_no_plain_addition_is_refused(tiny_folder: Path, tmp_path: Path, key: str, value: object) -> None:
    trained(tiny_folder, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(InputError, match=f"with .*{key}.* are no plain addition"):
        merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / "merged", progress=False)


def test_a_merge_that_breaks_off_leaves_nothing(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tiny_folder, tmp_path / "adapter")

    def full_disk(tensor: torch.Tensor) -> memoryview:
        raise OSError("No space left on device")

    monkeypatch.setattr(merging, "_raw", full_disk)
    with pytest.raises(OSError, match="No space"):
        merge_adapter(tiny_folder, tmp_path / "adapter", tmp_path / "merged", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_killed_merge_looks_unfinished_and_the_next_one_clears_it_away(tiny_folder: Path, tmp_path: Path) -> None:
    """SIGKILL while a shard is written; another's files of a like name, or of a process that lives, are left alone."""
    trained(tiny_folder, tmp_path / "adapter")
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    shutil.copytree(tiny_folder, base)
    weights = load_file(base / "model.safetensors")
    more = {f"extra.{i}": torch.zeros(512, 512) for i in range(400)}  # 420 MB, so that there is a middle
    save_file({**weights, **more}, base / "model.safetensors", {"format": "pt"})
    command = [sys.executable, "-m", "calrec_lite", "merge", *map(str, (base, adapter, merged))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    left, deadline = tmp_path / f".merged.{_host()}-{process.pid}.tmp", time.monotonic() + 120
    while not (left / "model.safetensors").is_file() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not merged.exists()
    assert left.is_dir()
    assert (left / "model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size
    me, other = f"{_host()}-{process.pid}", f"elsewhere-{process.pid}"  # 1 is a process that lives
    names = (f".merged.{_host()}-1.tmp", f".merged2.{me}.tmp", f".merged.{other}.tmp", ".merged.draft.tmp")
    spared = [tmp_path / name for name in names]
    for folder in spared:
        folder.mkdir()
    shutil.copy(tiny_folder / "model.safetensors", base)
    merge_adapter(base, adapter, merged, progress=False)
    assert not left.exists()
    assert all(folder.is_dir() for folder in spared)
    assert AutoModelForCausalLM.from_pretrained(merged).config.tie_word_embeddings


@pytest.mark.parametrize("index", [False, True])
def test_a_base_without_its_safetensors_is_one_line(tiny_folder: Path, tmp_path: Path, index: bool) -> None:
    trained(tiny_folder, tmp_path / "adapter")
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    (base / "model.safetensors").unlink()
    if index:
        (base / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(InputError, match="lacks model.*safetensors; download the base again"):
        merge_adapter(base, tmp_path / "adapter", tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_a_base_that_holds_what_is_no_number_is_not_merged(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    trained(tiny_folder, tmp_path / "adapter")
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"{name}, merged, holds what is no number"):
        merge_adapter(base, tmp_path / "adapter", tmp_path / "to", progress=False)
    assert not (tmp_path / "to").exists()
