"""From stage to stage: merging, carrying on, and the warning where it costs something."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import calrec_lite.evaluate.evaluate_run as systems_module
import calrec_lite.training.fsdp as fsdp_module
import calrec_lite.training.handover as handover_module
from calrec_lite.errors import InputError
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.evaluate.tables import table
from calrec_lite.export.bundle import export_adapter
from calrec_lite.export.card import render_card
from calrec_lite.model.base import load_model
from calrec_lite.recipe import Base
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.handover import handover_rise, handover_warning
from calrec_lite.training.stage import train_run
from tests.training.conftest import values, weights


def test_4bit_base_trains_and_merges_onto_the_original(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """NF4 on whatever device there is; what is merged is the original weights plus the adapter, not the NF4 grid."""
    recipe = check_recipe(values(tiny_folder, data, load_in_4bit=True, dtype="bfloat16"))
    run = Run.start(recipe, tmp_path)
    train_run(run)
    merged = AutoModelForCausalLM.from_pretrained(run.final())
    assert not hasattr(merged.config, "quantization_config")
    key = "model.layers.0.self_attn.q_proj.weight"
    first = load_file(run.stages[0].adapter / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    delta = (32 / 4) * first[f"{prefix}.lora_B.weight"] @ first[f"{prefix}.lora_A.weight"]
    torch.testing.assert_close(weights(run.stages[0].merged)[key], weights(tiny_folder)[key] + delta)


def test_a_merged_model_that_does_not_fit_on_the_gpu_is_measured_quantised(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an 8B model on a card of 12 GB; only where it is loaded is pretended. The table says so."""
    quantised = values(tiny_folder, data, load_in_4bit=True)
    runs = {}
    for name, placed in (("whole", False), ("large", True)):
        for module in (handover_module, systems_module):
            monkeypatch.setattr(module, "placement", lambda *_, placed=placed: (placed, torch.device("cpu")))
        runs[name] = Run.start(check_recipe({**quantised, "name": name}), tmp_path)
        train_run(runs[name])
    whole, large = (runs[name].stage_metrics()["2-target"] for name in ("whole", "large"))
    assert (whole["merged_quantised"], large["merged_quantised"]) == (False, True)
    assert whole["valid_nats_merged"] != whole["valid_nats_requantised"]
    assert large["valid_nats_merged"] == large["valid_nats_requantised"]
    assert large["valid_nats_requantised"] == pytest.approx(whole["valid_nats_requantised"], abs=1e-3)
    assert "by `beam` in float32, quantised as in training" in table(evaluate_run(runs["large"]))
    assert "too large for the GPU" in render_card(runs["large"])
    assert "too large for the GPU" not in render_card(runs["whole"])


@pytest.mark.parametrize("four_bits", [False, True], ids=["full", "nf4"])
def test_an_adapter_carried_on_loses_nothing(tiny_folder: Path, data: Path, tmp_path: Path, four_bits: bool) -> None:
    """`handover: continue`: stage 2 starts where stage 1 ended, and one merge onto the original holds both."""
    recipe = values(tiny_folder, data, load_in_4bit=four_bits)
    recipe["stages"] = [{**s, "domains": ["shop"]} for s in recipe["stages"]]
    recipe["stages"][1]["handover"] = "continue"
    run = Run.start(check_recipe(recipe), tmp_path)
    train_run(run)
    first, second = run.stage_metrics().values()
    assert second["valid_nats_before"] == pytest.approx(first["valid_nats_after"], abs=1e-4)
    assert first["valid_nats_handed_on"] == first["valid_nats_after"]
    adapter = load_file(run.stages[1].adapter / "adapter_model.safetensors")
    key = "model.layers.0.self_attn.q_proj"
    a, b = (adapter[f"base_model.model.{key}.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(weights(run.final())[f"{key}.weight"], weights(tiny_folder)[f"{key}.weight"] + 8 * b @ a)


def test_hand_overs_of_both_kinds_in_one_run(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """merge, continue, continue: the last adapter belongs to the first stage's merged weights and holds all since."""
    recipe = values(tiny_folder, data)
    handovers = ("merge", "merge", "continue", "continue")
    recipe["stages"] = [
        {"name": f"s{i}", "domains": ["shop"], "max_steps": 2, "handover": h} for i, h in enumerate(handovers)
    ]
    run = Run.start(check_recipe(recipe), tmp_path)
    train_run(run)
    first, *others = run.stage_metrics().values()
    before = first["valid_nats_merged"]
    for stage in others:
        assert stage["valid_nats_before"] == pytest.approx(before, abs=1e-4)
        before = stage["valid_nats_after"]
    notes = json.loads((run.folder / "run.json").read_text())["stages"]
    assert {notes[f"{i}-s{i - 1}"]["base"] for i in (2, 3, 4)} == {str(run.stages[0].merged)}
    assert [notes[f"{i}-s{i - 1}"]["adapter"] for i in (2, 3, 4)] == [
        None,
        str(run.stages[1].adapter),
        str(run.stages[2].adapter),
    ]
    key, start = "model.layers.0.self_attn.q_proj", weights(run.stages[0].merged)
    for stage in run.stages[1:]:
        adapter = load_file(stage.adapter / "adapter_model.safetensors")
        a, b = (adapter[f"base_model.model.{key}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(weights(stage.merged)[f"{key}.weight"], start[f"{key}.weight"] + 8 * b @ a)
    with pytest.raises(InputError, match="handover: continue"):
        export_adapter(run, tmp_path / "adapter")


@pytest.mark.parametrize("four_bits", [False, True], ids=["full", "nf4"])
def test_one_model_at_a_time_is_in_memory(tiny_folder: Path, data: Path, tmp_path: Path, four_bits: bool) -> None:
    """Before another model is loaded, all earlier ones are gone, 8-bit optimiser and all: a GPU has room for one."""
    recipe = values(tiny_folder, data, load_in_4bit=four_bits)
    recipe["optim"]["name"] = "adamw_8bit"
    run = Run.start(check_recipe(recipe), tmp_path)
    seen: list[weakref.ref[torch.nn.Module]] = []
    alive: list[int] = []

    def load(*arguments: object, **options: object) -> torch.nn.Module:
        alive.append(sum(ref() is not None for ref in seen))
        model = load_model(*arguments, **options)
        seen.extend(map(weakref.ref, model.modules()))
        return model

    with pytest.MonkeyPatch.context() as patch:
        for module in (fsdp_module, handover_module):
            patch.setattr(module, "load_model", load)
        gc.disable()  # so that nothing is freed by chance
        try:
            train_run(run)
        finally:
            gc.enable()
    assert alive == [0] * (6 if four_bits else 4)


def test_a_costly_handover_is_a_loud_warning(
    tiny_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six steps on a tiny model cost nothing much, so the tolerance lies below what is measured."""
    recipe = check_recipe(values(tiny_folder, data, load_in_4bit=True))
    optim = recipe.optim.model_copy(update={"handover_tolerance": -9.0})
    run = Run(recipe.model_copy(update={"optim": optim}), tmp_path / "tiny")
    train_run(run)
    said = capsys.readouterr().out
    for name, facts in run.stage_metrics().items():
        rise = max(facts["valid_nats_handed_on"], facts["valid_nats_merged"]) - facts["valid_nats_after"]
        assert rise > -9
        assert f"WARNING: the hand-over after stage {name} costs {rise:.3f} nats an item" in said
    train_run(quiet := Run.start(recipe, tmp_path / "quiet"))
    rises = map(handover_rise, quiet.stage_metrics().values())
    assert ("WARNING" in capsys.readouterr().out) == any(rise > 0.05 for rise in rises)


def test_the_remedy_fits_the_cause() -> None:
    def warned(base: dict, after: float, merged: float, handed_on: float, large: bool = False) -> str | None:
        facts = {"valid_nats_after": after, "valid_nats_merged": merged, "valid_nats_handed_on": handed_on}
        return handover_warning({**facts, "merged_quantised": large}, Base(model="m", **base), 0.05)

    nf4, int8, full = {}, {"load_in_4bit": False, "load_in_8bit": True}, {"load_in_4bit": False}
    assert warned(nf4, 2.0, 2.04, 2.05) is None
    assert "`handover: continue` for the next stage, or base.load_in_4bit: false" in warned(nf4, 2.0, 2.0, 2.3)
    for handed_on in (2.0, 2.3):  # continued already, or the last stage
        said = warned(nf4, 2.0, 2.3, handed_on)
        assert "costs 0.300 nats" in said
        assert "base.load_in_4bit: false; or write" in said
        assert "handover: continue" not in said
    assert "base.load_in_8bit: false" in warned(int8, 2.0, 2.3, 2.3)
    assert warned(nf4, 2.0, 2.3, 2.0, large=True) is None  # continued: nothing is lost on the way
    said = warned(nf4, 2.0, 2.3, 2.3, large=True)
    assert "could be measured only quantised" in said
    assert "set `handover: continue`" in said
    said = warned(full, 2.0, 2.3, 2.3)
    assert "base.dtype: float32" in said
    assert "handover" not in said
    nan = float("nan")
    for case in ((2.0, nan, 2.0), (2.0, 2.0, nan), (2.0, nan, nan)):
        assert "costs nan nats" in warned(nf4, *case)
        assert "lower optim.learning_rate" in warned(nf4, *case)
