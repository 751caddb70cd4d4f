"""Runs that were stopped, changed or started again."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from calrec_lite.errors import InputError, RunError
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run, StageFolder
from calrec_lite.training.stage import train_run
from tests.training.conftest import STEPS, train_until_merging, values, weights


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

    train_until_merging(run, monkeypatch)
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
    before = run.domain("shop").fingerprint
    with pytest.raises(InputError, match="has changed since a stage was trained"):
        Run.open(run.folder).prepare("shop")
    assert Run.open(run.folder).domain("shop").fingerprint == before  # what was trained on is still there


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
    while run.stages[1].last_checkpoint is None and time.monotonic() < deadline:
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
        (tmp_path / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoints" / "checkpoint-6").mkdir()
    assert StageFolder(tmp_path).last_checkpoint == tmp_path / "checkpoints" / "checkpoint-2"
    assert StageFolder(tmp_path / "none").last_checkpoint is None


def test_a_loss_that_is_no_number_stops_the_run(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.model.layers[0].mlp.up_proj.weight.data[0] = 3e38  # a number, but not what comes of it
    model.save_pretrained(broken)
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(broken)
    run = Run.start(check_recipe(values(broken, data)), tmp_path)
    with pytest.raises(RunError, match="no longer a number at step 2"):
        train_run(run)
    # However seldom it is logged, no checkpoint of such a step takes the place of a good one.
    recipe = {**values(broken, data), "name": "seldom"}
    recipe["optim"] |= {"log_every": 1000, "save_every": 1}
    run = Run.start(check_recipe(recipe), tmp_path)
    with pytest.raises(RunError, match="no longer a number at step 1"):
        train_run(run)
    assert not list(run.folder.rglob("checkpoint-*"))
