"""What a run wrote is compared with what it noted, wherever it is used."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import calrec_lite.stored as stored_module
from calrec_lite.errors import InputError
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.export.bundle import export_run
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.stored import MANIFEST, require_unchanged
from calrec_lite.training.stage import train_run
from tests.training.conftest import train_until_merging, values


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of a finished run, as `cp -a` makes it."""
    return Run.open(shutil.copytree(trained.folder, tmp_path / "tiny"))


def half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def one_byte(file: Path) -> None:
    """Changed: the size stays."""
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("act", [train_run, evaluate_run, lambda run: export_run(run, run.export)])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", half),
        ("model.safetensors", one_byte),
        ("tokenizer.json", half),
        ("tokenizer_config.json", one_byte),
        ("config.json", one_byte),
        ("tokenizer.json", Path.unlink),
    ],
)
def test_merged_weights_that_changed_are_not_passed_on(
    run: Run, name: str, damage: Callable[[Path], None], act: Callable[[Run], object]
) -> None:
    file = run.stages[-1].merged / name
    damage(file)
    with pytest.raises(InputError, match=rf"{file}: .*; remove .*merged, and `calrec-lite train` .* merges it again"):
        act(run)
    assert not run.export.exists()
    shutil.rmtree(file.parent)  # as the message says
    train_run(run)
    assert run.final() == file.parent


def test_an_adapter_that_changed_is_not_merged_again(run: Run) -> None:
    shutil.rmtree(run.stages[0].merged)
    one_byte(run.stages[0].adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"adapter_model.safetensors: its content is not what was written; restore it"):
        train_run(run)


def test_figures_of_a_stage_that_changed_are_not_shown(run: Run) -> None:
    facts = run.stages[0].facts()
    run.stages[0].metrics.write_text(json.dumps({**facts, "steps": 10**6}))
    with pytest.raises(InputError, match=r"metrics.json: .*restore it, or remove .*to train the stage again"):
        run.stage_metrics()


def test_a_copy_is_read_once_and_a_run_without_manifest_as_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in run.folder.rglob("*.safetensors"):
        os.utime(file)
    run.final()

    def read(path: Path) -> str:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(stored_module, "file_sha256", read)
    run.final()
    (run.stages[-1].folder / MANIFEST).unlink()
    one_byte(run.final() / "model.safetensors")
    run.final()


@pytest.mark.parametrize(
    "content",
    [
        *("", "5", '{"stages": {"1-joint', '{"stages": 3}', '{"stages": {}, "dtype": {"x": 1}}'),
        *('{"stages": {}, "dtype": {"why": "x"}}', '{"stages": {"1-joint": {"data": 5}}, "sha256": "0"}'),
    ],
)
def test_a_damaged_state_is_one_line(run: Run, content: str) -> None:
    (run.folder / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json: .*restore it, or remove it"):
        Run.start(run.recipe, run.folder.parent)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", '{"steps": 6'),
        ("metrics.json", "[]"),
        (MANIFEST, "{"),
        (MANIFEST, '{"files": {"adapter/x": 5}}'),
        (MANIFEST, '{"files": {"adapter/x": {"size": "x", "time": 1, "sha256": ""}}}'),
        (MANIFEST, '{"files": {"adapter/x": {"size": Infinity, "time": 1, "sha256": ""}}}'),
    ],
)
def test_a_damaged_record_of_a_stage_is_one_line(run: Run, name: str, content: str) -> None:
    (run.stages[0].folder / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}: .*; re(store|move) it"):
        train_run(run)


def test_a_checkpoint_that_changed_is_not_gone_on_with(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = values(tiny_folder, data)
    recipe["stages"] = recipe["stages"][1:]
    run = Run.start(check_recipe(recipe), tmp_path)

    train_until_merging(run, monkeypatch)
    checkpoint = run.stages[0].last_checkpoint
    assert checkpoint
    assert "optimizer.pt" in json.loads((checkpoint / MANIFEST).read_text())["files"]
    one_byte(checkpoint / "adapter_model.safetensors")
    with pytest.raises(
        InputError, match=f"its content is not what was written; remove {checkpoint}, and training goes on"
    ):
        train_run(run)


def test_lines_of_a_log_that_are_none_are_left_out(run: Run) -> None:
    entries = run.log_entries()
    with run.log.open("ab") as file:
        file.write(b'5\n{"step": 3}\n\xff\n{"stage": "1-jo')
    assert run.log_entries() == entries


@pytest.mark.parametrize("entry", [{"size": "5"}, {"size": None}, {"time": "now"}, {"sha256": 5}, {"name": "../x"}])
def test_a_manifest_of_other_values_is_named(tmp_path: Path, entry: dict) -> None:
    """It comes with an export from elsewhere."""
    (tmp_path / "a").write_text("abc")
    values = {"size": 4, "time": 0, "sha256": "0", **entry}
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {values.pop("name", "a"): values}}))
    with pytest.raises(InputError, match="manifest.json: is no manifest; remove it"):
        require_unchanged(tmp_path)
