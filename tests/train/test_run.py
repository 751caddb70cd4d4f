"""A whole run on the tiny model: stages, hand-over, resume, logs, export, recommend."""

import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

import calrec_lite.train.stage as stage_module
from calrec_lite.cli import main
from calrec_lite.errors import InputError, RunError
from calrec_lite.evaluate.fusion import WEIGHTS, tune_fusion
from calrec_lite.evaluate.metrics import ndcg_at, ranks_from_lists
from calrec_lite.evaluate.protocol import build_cases
from calrec_lite.evaluate.systems import evaluate_run, open_recommender
from calrec_lite.export.bundle import export_adapter, export_run
from calrec_lite.model.base import load_model
from calrec_lite.model.merge import merge_adapter
from calrec_lite.recipe import Base
from calrec_lite.recipe_file import check_recipe
from calrec_lite.recommend import Recommender
from calrec_lite.text.template import Template
from calrec_lite.train.run import Run
from calrec_lite.train.stage import handover_rise, handover_warning, last_checkpoint, train_run
from tests.conftest import item_names

ROOT = Path(__file__).parents[2]

STEPS = 6  # too few to learn much: that training helps is shown on real weights in tests/real


def values(tiny_folder: Path, data: Path, **base) -> dict:
    """A recipe of two domains and two stages, as plain data."""
    return {
        "name": "tiny",
        "base": {
            "model": str(tiny_folder),
            "dtype": "float32",
            "load_in_4bit": False,
            "lora": {"r": 4},
            **base,
            "license": "mit",
        },
        "domains": {
            name: {"interactions": str(data / f"{name}.csv"), "fields": {"Title": "title"}, "columns": {"time": "time"}}
            for name in ("shop", "other")
        },
        "text": {"max_items": 6},
        "stages": [
            {"name": "joint", "domains": ["other", "shop"], "max_steps": STEPS},
            {"name": "target", "domains": ["shop"], "max_steps": STEPS},
        ],
        "optim": {"batch_size": 4, "micro_batch_size": 2, "save_every": 2, "log_every": 2, "learning_rate": 5e-3},
        "recommend": {"beams": 15},
        "evaluate": {"users": 20, "bootstrap": 200},
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, n in (("shop", 30), ("other", 20)):
        names = item_names(n)
        lines = ["user,item,time,title"]
        for user in range(40):
            start = rng.integers(n)
            lines += [f"{user},{(start + t) % n},{t},{names[(start + t) % n]}" for t in range(rng.integers(4, 12))]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.start(check_recipe(values(tiny_folder, data)), tmp_path_factory.mktemp("runs"))
    train_run(run)
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_stages_change_the_weights_and_hand_them_on(trained: Run, tiny_folder: Path) -> None:
    base, first, second = (weights(f) for f in (tiny_folder, trained.stages[0].merged, trained.stages[1].merged))
    adapted = [k for k in base if "proj" in k]
    assert all(not torch.equal(base[k], first[k]) and not torch.equal(first[k], second[k]) for k in adapted)
    assert all(torch.equal(base[k], second[k]) for k in base if k not in adapted)
    facts = trained.stage_metrics()
    assert list(facts) == ["1-joint", "2-target"]
    for stage in facts.values():
        assert stage["valid_nats_after"] != stage["valid_nats_before"]
        assert stage["valid_nats_merged"] == pytest.approx(stage["valid_nats_after"], abs=1e-3)
        assert stage["parity"]["max_difference"] < 1e-2
    assert facts["2-target"]["valid_nats_before"] == pytest.approx(facts["1-joint"]["valid_nats_merged"], abs=1e-3)
    assert not trained.stages[0].checkpoints.exists()


def test_log_has_every_component_and_rate(trained: Run) -> None:
    entries = [json.loads(line) for line in trained.log.read_text().splitlines()]
    steps = [(e["stage"], e["step"]) for e in entries if "loss" in e]
    assert steps == [(s, k) for s in ("1-joint", "2-target") for k in (2, 4, 6)]
    for entry in (e for e in entries if "loss" in e):
        for key in ("nig", "tt", "ut", "nats_per_item", "grad_norm", "targets_per_second", "tokens_per_second"):
            assert entry[key] > 0, key
        assert 0 < entry["mfu"] < 1
        assert entry["memory_bytes"] > 1e7
        loss = trained.recipe.loss
        whole = (1 - loss.alpha - loss.beta) * entry["nig"] + loss.alpha * entry["tt"] + loss.beta * entry["ut"]
        assert entry["loss"] == pytest.approx(whole, rel=1e-3)


def test_tensorboard_shows_the_same_as_the_log(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """The event file is read back; it outlives the stage's checkpoints."""
    recipe = values(tiny_folder, data)
    recipe["stages"] = recipe["stages"][1:]
    recipe["optim"]["report_to"] = ["tensorboard"]
    run = Run.start(check_recipe(recipe), tmp_path)
    train_run(run)
    events = EventAccumulator(str(run.stages[0].folder / "tensorboard")).Reload()
    entries = [json.loads(line) for line in run.log.read_text().splitlines()]
    for key in (
        "loss",
        "nig",
        "tt",
        "ut",
        "grad_norm",
        "tokens_per_second",
        "targets_per_second",
        "mfu",
        "memory_bytes",
    ):
        shown = [(e.step, e.value) for e in events.Scalars(f"train/{key}")]
        assert shown == [(e["step"], pytest.approx(e[key], rel=1e-5)) for e in entries if "loss" in e], key


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_8bit_optimizers_train(tiny_folder: Path, data: Path, tmp_path: Path, name: str) -> None:
    """bitsandbytes' own; on a CPU it says that it does not page, and trains. States are one byte a weight."""
    recipe = values(tiny_folder, data, lora={"r": 64})  # smaller matrices are kept in 32 bits
    recipe["stages"] = [{"name": "target", "domains": ["shop"], "max_steps": 30}]
    recipe["optim"] |= {"name": name, "save_every": 30, "log_every": 10, "learning_rate": 2e-3}
    run, kept = Run.start(check_recipe(recipe), tmp_path), []

    class Kept(stage_module.CALRecTrainer):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            kept.append(self)

        def train(self, **options: object) -> object:
            result = super().train(**options)
            types = [s["state1"].dtype for s in self.optimizer.optimizer.state.values()]
            assert types.count(torch.uint8) > len(types) / 2
            return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "CALRecTrainer", Kept)
        train_run(run)
    facts = run.stage_metrics()["1-target"]
    assert len(kept) == 1
    assert facts["valid_nats_after"] < facts["valid_nats_before"]


@pytest.mark.parametrize(
    "base", [{"load_in_8bit": True, "dtype": "bfloat16"}, {"dtype": "bfloat16"}], ids=["int8", "bf16"]
)
def test_int8_and_bf16_bases_train(tiny_folder: Path, data: Path, tmp_path: Path, base: dict) -> None:
    """fp32 and NF4 have runs of their own."""
    recipe = values(tiny_folder, data, **base)
    recipe["stages"] = [{"name": "target", "domains": ["shop"], "max_steps": 20}]
    recipe["optim"] |= {"learning_rate": 5e-3, "gradient_checkpointing": True}
    run = Run.start(check_recipe(recipe), tmp_path)
    train_run(run)
    facts = run.stage_metrics()["1-target"]
    assert facts["valid_nats_after"] < facts["valid_nats_before"]


def test_an_estimate_is_kept_for_a_restart(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """With less memory free the second time, `auto` would cut the steps differently."""
    recipe = values(tiny_folder, data)
    recipe["stages"] = recipe["stages"][1:]
    recipe["optim"]["micro_batch_size"] = "auto"
    run = Run.start(check_recipe(recipe), tmp_path)
    train_run(run)
    assert run.stage_metrics()["1-target"]["micro_batch_size"] == 4  # there is room for all of a tiny step
    file = run.stages[0].folder / "micro_batch.json"
    assert json.loads(file.read_text())["micro_batch_size"] == 4
    run.stages[0].metrics.unlink()
    file.write_text('{"micro_batch_size": 3}')
    train_run(Run.open(run.folder))
    assert run.stage_metrics()["1-target"]["micro_batch_size"] == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to move checkpoints from")
def test_offload_without_a_gpu_is_an_error(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    recipe = values(tiny_folder, data)
    recipe["optim"]["gradient_checkpointing"] = "offload"
    with pytest.raises(InputError, match="no CUDA device: set it to true"):
        train_run(Run.start(check_recipe(recipe), tmp_path))


def test_a_finished_run_is_not_trained_again(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = weights(trained.final())
    train_run(Run.open(trained.folder))
    assert capsys.readouterr().out.count("done already") == 2
    assert all(torch.equal(before[k], v) for k, v in weights(trained.final()).items())


def test_killed_between_training_and_merging_no_step_is_added(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = values(tiny_folder, data)
    recipe["stages"] = recipe["stages"][:1]
    recipe["optim"]["schedule"] = "constant_with_warmup"  # so that a step too many would show
    run = Run.start(check_recipe(recipe), tmp_path)

    def killed(*arguments: object, **options: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "merge_adapter", killed)
        with pytest.raises(KeyboardInterrupt):
            train_run(run)
    before = load_file(run.stages[0].adapter / "adapter_model.safetensors")
    train_run(Run.open(run.folder))
    after = load_file(run.stages[0].adapter / "adapter_model.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert run.stage_metrics()["1-joint"]["steps"] == STEPS


def test_memory_may_change_between_two_starts_but_data_may_not(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    recipe = values(tiny_folder, tmp_path / "data")
    recipe["stages"] = recipe["stages"][1:]
    run = Run.start(check_recipe(recipe), tmp_path)
    train_run(run)
    recipe["optim"]["micro_batch_size"] = 1
    Run.start(check_recipe(recipe), tmp_path)
    with (tmp_path / "data" / "shop.csv").open("a") as file:
        file.write("new,1,1,another thing\nnew,2,2,red pen\nnew,3,3,blue pen\n")
    with pytest.raises(InputError, match="has changed since a stage was trained"):
        evaluate_run(Run.open(run.folder))


def test_another_recipe_of_the_same_name_is_refused(trained: Run) -> None:
    other = trained.recipe.model_copy(update={"seed": 9})
    with pytest.raises(InputError, match="differs in seed"):
        Run.start(other, trained.folder.parent)


def test_killed_and_started_again_it_ends_in_the_same_weights(
    trained: Run, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    """SIGKILL at a checkpoint of the second stage; the weights are equal bit for bit to never having stopped."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values(tiny_folder, data)))
    command = [sys.executable, "-m", "calrec_lite", "train", str(recipe), "--runs", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    run = Run.start(check_recipe(values(tiny_folder, data)), tmp_path)
    deadline = time.monotonic() + 120
    while last_checkpoint(run.stages[1].checkpoints) is None and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not run.stages[1].done
    assert subprocess.run(command, capture_output=True).returncode == 0
    for stage, other in zip(trained.stages, run.stages):
        one, two = weights(stage.merged), weights(other.merged)
        assert all(torch.equal(one[k], two[k]) for k in one)
    steps = [json.loads(line)["step"] for line in run.log.read_text().splitlines() if '"loss"' in line]
    assert steps == [2, 4, 6, 2, 4, 6]


def test_a_cut_off_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((2, "{}"), (4, '{"global_st')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-6").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert last_checkpoint(tmp_path / "none") is None


def test_a_loss_that_is_no_number_stops_the_run(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(broken)
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(broken)
    run = Run.start(check_recipe(values(broken, data)), tmp_path)
    with pytest.raises(RunError, match="no longer a number at step 2"):
        train_run(run)


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
        patch.setattr(stage_module, "load_model", load)
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
    def warned(base: dict, after: float, merged: float, handed_on: float) -> str | None:
        facts = {"valid_nats_after": after, "valid_nats_merged": merged, "valid_nats_handed_on": handed_on}
        return handover_warning(facts, Base(model="m", **base), 0.05)

    nf4, int8, full = {}, {"load_in_4bit": False, "load_in_8bit": True}, {"load_in_4bit": False}
    assert warned(nf4, 2.0, 2.04, 2.05) is None
    assert "`handover: continue` for the next stage, or base.load_in_4bit: false" in warned(nf4, 2.0, 2.0, 2.3)
    for handed_on in (2.0, 2.3):  # continued already, or the last stage
        said = warned(nf4, 2.0, 2.3, handed_on)
        assert "costs 0.300 nats" in said
        assert "base.load_in_4bit: false; or write" in said
        assert "handover: continue" not in said
    assert "base.load_in_8bit: false" in warned(int8, 2.0, 2.3, 2.3)
    said = warned(full, 2.0, 2.3, 2.3)
    assert "base.dtype: float32" in said
    assert "handover" not in said
    nan = float("nan")
    for case in ((2.0, nan, 2.0), (2.0, 2.0, nan), (2.0, nan, nan)):
        assert "costs nan nats" in warned(nf4, *case)
        assert "lower optim.learning_rate" in warned(nf4, *case)


@pytest.fixture(scope="module")
def exported(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What was measured, and the folder that was exported afterwards."""
    results = evaluate_run(trained)
    return results, export_run(trained, tmp_path_factory.mktemp("exported") / "export")


def test_evaluation_export_and_recommend(trained: Run, exported: tuple[dict, Path]) -> None:
    results, folder = exported
    systems = {"popularity", "last_item", "bm25_last", "transitions", "base", "stage1", "final"}
    assert set(results["systems"]) == systems
    for metrics in results["systems"].values():
        assert set(metrics) == {"recall@1", "recall@10", "ndcg@10", "mrr"}
        assert all(m["low"] <= m["value"] <= m["high"] for m in metrics.values())
    recommender = Recommender.from_pretrained(folder)
    titles = recommender.catalogue.titles
    lists = recommender.recommend([titles[:3], ["something nobody has heard of"], []], k=10)
    for own in lists:
        assert len({item.title for item in own}) == 10
        assert {item.title for item in own} <= set(titles)
    assert not {item.title for item in lists[0]} & set(titles[:3])
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert not plain.generation_config.do_sample
    with pytest.raises(InputError, match="no earlier export"):
        export_run(trained, trained.folder)


def test_the_card_says_what_is_on_disk(trained: Run, exported: tuple[dict, Path], tiny_folder: Path) -> None:
    results, folder = exported
    empty, front, body = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert not empty
    assert metadata["license"] == "mit"
    assert metadata["library_name"] == "transformers"
    assert "base_model" not in metadata, "a folder of this machine is no Hub id"
    (model,) = metadata["model-index"]
    (measured,) = model["results"]
    final = json.loads((trained.evaluation / "metrics.json").read_text())["systems"]["final"]
    assert {m["type"]: m["value"] for m in measured["metrics"]} == {k: round(m["value"], 4) for k, m in final.items()}
    fingerprint = trained.domain("shop").fingerprint
    assert fingerprint[:12] in measured["dataset"]["name"]
    assert f"`{fingerprint}`" in body
    assert f"`{trained.domain('other').fingerprint}`" in body
    assert "Licence of the base: mit." in body
    assert f"finetuned from `{tiny_folder.name}`" in body
    for system, metrics in results["systems"].items():
        (row,) = (line for line in body.splitlines() if line.startswith(f"| {system} "))
        assert f"{metrics['ndcg@10']['value']:.4f} [{metrics['ndcg@10']['low']:.4f}" in row
    for stage, facts in trained.stage_metrics().items():
        (row,) = (line for line in body.splitlines() if line.startswith(f"| {stage} "))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        nats = [f"{facts[f'valid_nats_{when}']:.3f}" for when in ("before", "after", "merged")]
        assert cells[1:5] == [str(facts["steps"]), *nats]
        parity = facts["parity"]
        shares = [f"{parity['top1_agreement']:.4f}", f"{parity['mean_difference']:.4f}"]
        assert cells[-3:] == [*shares, f"{parity['max_difference']:.3f}"]


def test_an_export_holds_no_path_of_this_machine(trained: Run, exported: tuple[dict, Path], tiny_folder: Path) -> None:
    _, folder = exported
    files = [f for f in folder.rglob("*") if f.is_file() and f.suffix != ".safetensors"]
    assert len(files) > 8
    for file in files:
        text = file.read_text(encoding="utf-8")
        for path in (trained.folder, tiny_folder, Path(tempfile.gettempdir()), Path.home()):
            assert str(path) not in text, file.name
    card = (folder / "README.md").read_text()
    assert not re.search(r"(?<![\w:/])/\w", card), "an absolute path"
    assert "interactions: shop.csv\n" in card


def test_sentence_transformers_opens_an_export(trained: Run, exported: tuple[dict, Path]) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the test extra has it")
    _, folder = exported
    opened = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    recommender = Recommender.from_pretrained(folder)
    template = Template(trained.recipe.text, tuple(trained.domain("shop").catalogue.labels))
    texts = [template.item(fields) for fields in trained.domain("shop").catalogue.fields[:12]]
    encoder, towers = trained.encoder, recommender.strategies.towers
    tokens = encoder.items(texts)
    rows = [np.concatenate([encoder.start, t]) for t in tokens] + [encoder.prompt(tokens[:n]) for n in (0, 1, 5)]
    with torch.no_grad():
        ours = [towers.vectors(torch.from_numpy(r)[None], torch.tensor([len(r)]))[0].numpy() for r in rows]
    prompts = [template.prompt(texts[:n]) for n in (0, 1, 5)]
    theirs = [*opened.encode_document(texts), *opened.encode_query(prompts)]
    assert min(float(a @ b) for a, b in zip(ours, theirs, strict=True)) >= 0.9999
    assert np.linalg.norm(theirs, axis=1) == pytest.approx(1, abs=1e-4)


def test_exporting_md_is_true(
    trained: Run, exported: tuple[dict, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python runs as it stands, and its table names every file of an export but those of the tokenizer."""
    pytest.importorskip("sentence_transformers", reason="the test extra has it")
    _, folder = exported
    page = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "export").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert names["items"][0].startswith("Title: ")
    assert isinstance(names["text"], str)
    assert names["scores"].shape == (len(trained.domain("shop").catalogue),)
    recommender = Recommender.from_pretrained(folder)
    prompt = trained.encoder.prompt(trained.encoder.items(names["items"][:3]))
    with torch.no_grad():
        towers = recommender.strategies.towers
        ours = towers.vectors(torch.from_numpy(prompt)[None], torch.tensor([len(prompt)]))[0].numpy()
    assert float(ours @ names["user"]) >= 0.9999
    patterns = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))
    listed = {pattern.rstrip("/") for pattern in patterns}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    found = {path.name for path in folder.iterdir()} - tokenizer
    assert not [name for name in found if not any(fnmatchcase(name, pattern) for pattern in listed)]


def test_an_adapter_alone_is_exported_only_where_others_have_its_base(
    trained: Run, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="handover: continue"):
        export_adapter(trained, tmp_path / "adapter")
    recipe = values(tiny_folder, data)
    recipe["stages"] = recipe["stages"][1:]
    run = Run.start(check_recipe(recipe), tmp_path)
    train_run(run)
    folder = export_adapter(run, tmp_path / "adapter")
    assert not list(folder.glob("model*.safetensors"))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_folder.name
    card = (folder / "README.md").read_text()
    assert "Recommender" not in card
    assert str(tiny_folder) not in card
    merge_adapter(tiny_folder, folder, tmp_path / "merged", progress=False)
    one, two = weights(tmp_path / "merged"), weights(run.final())
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_an_adapter_names_the_hub_id_and_revision_of_its_base(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    """The base lies where the Hub's cache has it, as after a download."""
    commit = "0123456789012345678901234567890123456789"
    cache = tmp_path / "hub" / "models--maker--base"
    shutil.copytree(tiny_folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = trained.recipe.base.model_copy(update={"model": "maker/base", "revision": commit})
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    run = Run(trained.recipe.model_copy(update={"base": base, "stages": trained.recipe.stages[:1]}), folder)
    exported = export_adapter(run, tmp_path / "adapter")
    config = LoraConfig.from_pretrained(str(exported))
    assert (config.base_model_name_or_path, config.revision) == ("maker/base", commit)
    assert yaml.safe_load((exported / "README.md").read_text().split("---\n")[1])["base_model"] == "maker/base"


def test_sampling_gives_lists_of_distinct_items_too(trained: Run) -> None:
    from calrec_lite.evaluate.systems import open_recommender

    options = trained.recipe.recommend.model_copy(update={"strategy": "sample", "samples": 8, "temperature": 1.0})
    sampling = Run(trained.recipe.model_copy(update={"recommend": options}), trained.folder)
    recommender = open_recommender(sampling, trained.final())
    histories = [np.array([0, 1, 2], np.int32), np.array([4], np.int32)]
    lists = recommender.rank(histories, 10, exclude_seen=True)
    for history, own in zip(histories, lists):
        assert len(set(own.tolist()) - {-1}) == 10
        assert not set(own.tolist()) & set(history.tolist())
    assert (lists == recommender.rank(histories, 10, exclude_seen=True)).all()


def test_fusion_is_tuned_on_validation_users_as_the_lists_are_made(
    trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recommender = open_recommender(trained, trained.final())
    cases = build_cases(trained.domain("shop"), "validation", 15, 0)
    tried = {t.fusion: t for t in tune_fusion(recommender, cases, exclude_seen=True)}
    assert set(tried) == set(WEIGHTS)
    options = trained.recipe.recommend.model_copy(update={"strategy": "rerank", "fusion": 5.0})
    fused = Recommender(
        recommender.strategies.towers,
        recommender.encoder,
        recommender.catalogue,
        recommender.ids,
        options,
        trained.recipe.seed,
    )
    ranks = ranks_from_lists(fused.rank(cases.histories, 10, True), cases.targets)
    assert tried[5.0].ndcg10 == pytest.approx(float(ndcg_at(ranks, 10).mean()))
    monkeypatch.setattr(sys, "argv", ["calrec-lite", "tune", str(trained.folder), "--users", "15"])
    main()
    assert "15 validation users" in capsys.readouterr().out
