"""A whole run on the tiny model: stages, logs, optimisers and bases."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerState

import calrec_lite.training.stage as stage_module
from calrec_lite.errors import InputError
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.progress import StageProgress
from calrec_lite.training.stage import train_run
from tests.training.conftest import values, weights


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
    before: dict[str, float] = {}
    for entry in (e for e in entries if "loss" in e):
        for key in ("nig", "tt", "ut", "nats_per_item", "grad_norm", "targets_per_second", "tokens_per_second"):
            assert entry[key] > 0, key
        assert 0 < entry["mfu"] < 1
        targets = entry["targets_per_second"] * (entry["seconds"] - before.get(entry["stage"], 0.0))
        assert targets == pytest.approx(round(targets), abs=1e-6)  # of the clock's time: no validation, no start-up
        assert 8 <= round(targets) <= 8 * 5  # of two steps of four rows
        before[entry["stage"]] = entry["seconds"]
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
        def __init__(self, *arguments: object, **named: object) -> None:
            super().__init__(*arguments, **named)
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


@pytest.mark.parametrize(
    ("loss", "scale", "prior"),
    [({"logit_scale": 0.3}, 0.3, True), ({"prior": 0.0}, 0.2, False), ({"softmax": "vocabulary"}, 1.0, False)],
)
def test_items_are_scored_as_the_loss_was(
    tiny_folder: Path, data: Path, tmp_path: Path, loss: dict, scale: float, prior: bool
) -> None:
    """Scale and prior belong to the catalogue softmax: what is trained without them is scored without them."""
    run = Run.start(check_recipe(values(tiny_folder, data) | {"loss": loss}), tmp_path)
    catalogue = run.catalogue("shop")
    assert (catalogue.logit_scale, bool(catalogue.bias.any())) == (scale, prior)


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
    file.write_text('{"micro_batch_size": 3, "gradient_checkpointing": false}')
    train_run(Run.open(run.folder))
    assert run.stage_metrics()["1-target"]["micro_batch_size"] == 3
    run.stages[0].metrics.unlink()
    recipe["optim"]["gradient_checkpointing"] = True  # as advised where memory lacked: another estimate
    train_run(Run.start(check_recipe(recipe), tmp_path))
    assert json.loads(file.read_text()) == {"micro_batch_size": 4, "gradient_checkpointing": True, "split": False}
    run.stages[0].metrics.unlink()
    file.write_text('{"micro_batch_size": 1, "gradient_checkpointing": true, "split": true}')  # as of a part of a base
    train_run(Run.start(check_recipe(recipe), tmp_path))
    assert json.loads(file.read_text())["micro_batch_size"] == 4


def test_compiled_layers_are_not_offloaded(tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    recipe = values(tiny_folder, data)
    recipe["optim"] |= {"gradient_checkpointing": "offload", "compile": True}
    monkeypatch.setattr(stage_module, "device", lambda: torch.device("cuda"))
    with pytest.raises(InputError, match="optim.compile: not together with gradient_checkpointing: offload"):
        train_run(Run.start(check_recipe(recipe), tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to move checkpoints from")
def test_offload_without_a_gpu_is_an_error(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    recipe = values(tiny_folder, data)
    recipe["optim"]["gradient_checkpointing"] = "offload"
    with pytest.raises(InputError, match="no CUDA device: set it to true"):
        train_run(Run.start(check_recipe(recipe), tmp_path))


def test_the_device_and_the_minutes_are_said_before_they_are_spent(
    tiny_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = check_recipe(values(tiny_folder, data))
    train_run(Run.start(recipe, tmp_path))
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert "device: CPU, 1 thread" in lines[0]
    assert lines[0].endswith("; float32: as base.dtype asks")
    assert [line for line in lines if "to go" in line] == [line for line in lines if line.startswith("3 steps to go, ")]
    assert sum("about a minute, or less" in line for line in lines) == 2  # once a stage
    assert "more than an hour" not in said.out


def test_more_than_an_hour_is_a_warning_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    progress = StageProgress()
    progress._tell(seconds=8.04, steps=440)
    assert capsys.readouterr().out == "440 steps to go, 8 seconds each: about 59 minutes\n"
    progress._tell(seconds=8.04, steps=3)
    assert capsys.readouterr().out == "3 steps to go, 8 seconds each: about a minute, or less\n"
    progress._tell(seconds=8.04, steps=900)
    said = capsys.readouterr().out
    assert "about 121 minutes" in said
    assert "WARNING: more than an hour" in said
    assert "stages.N.max_steps" in said


def test_a_stage_by_the_clock_says_how_much_time_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress, state = StageProgress(), TrainerState(stateful_callbacks={"Clock": {"seconds": 30}})
    args = SimpleNamespace(max_seconds=300.0)
    progress.on_train_begin(args, state, None)
    progress.on_step_end(args, state, None)
    progress.on_train_end(args, state, None)
    assert "train, 4.5 minutes left" in capsys.readouterr().err
