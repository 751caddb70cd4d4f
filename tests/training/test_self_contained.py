"""A run needs nothing but itself; a start that trained nothing claims nothing; an evaluation that stopped goes on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import calrec_lite.evaluate.evaluate_run as evaluating
from calrec_lite import load_recipe, train
from calrec_lite.cli import group
from calrec_lite.errors import InputError, RunError
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.evaluate.store import read_metrics, read_rankings
from calrec_lite.export.bundle import export_run
from calrec_lite.recipe.file import check_recipe, save_resolved
from calrec_lite.run import Run
from calrec_lite.stored import MANIFEST
from tests.training.conftest import values

HOLD = """
import sys, time
from pathlib import Path
from calrec_lite.claim import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(120)
"""


def small(tiny_folder: Path, data: Path, **changes: object) -> dict:
    """One stage of two steps."""
    recipe = values(tiny_folder, data)
    recipe["stages"] = [{"name": "target", "domains": ["shop"], "max_steps": 2}]
    recipe["evaluate"] |= {"users": 12, "bootstrap": 20}
    return {**recipe, **changes}


def command(*arguments: object) -> str:
    result = CliRunner().invoke(group, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_with_the_raw_files_gone_all_but_training_works(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    recipe = check_recipe(small(tiny_folder, tmp_path / "data"))
    run = train(recipe, tmp_path / "runs")
    shutil.rmtree(tmp_path / "data")
    moved = tmp_path / "elsewhere" / "tiny"
    moved.parent.mkdir()
    run.folder.rename(moved)
    assert "| final" in command("evaluate", moved)
    assert "Best: N@10" in command("tune", moved, "--users", 10)
    assert "report.html" in command("report", moved)
    command("evaluate", moved, "--split", "validation")
    other = moved / "evaluation-validation-12"
    assert "-> final" in command("compare", moved, moved, "--pair", "popularity", "final")
    assert read_metrics(other)["protocol"]["split"] == "validation"
    assert str(moved / "export") in command("export", moved)
    first = Run.open(moved).domain("shop").catalogue.titles[0]
    assert "\n10\t" in command("recommend", moved / "export", first)
    with pytest.raises(InputError, match="no such file"):
        Run.open(moved).prepare("shop")


def test_a_start_that_trained_nothing_claims_nothing(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    wrong = small(tiny_folder, data)
    wrong["base"] = {**wrong["base"], "model": str(tmp_path / "not-here"), "dtype": "auto"}
    with pytest.raises(InputError, match="not-here"):
        train(check_recipe(wrong), tmp_path)
    assert (tmp_path / "tiny" / "recipe.yaml").is_file()
    run = train(check_recipe(small(tiny_folder, data)), tmp_path)
    assert run.dtype.dtype == "float32"
    kept = (run.final() / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"another recipe \(it differs in loss\)"):
        train(check_recipe(small(tiny_folder, data, loss={"tau": 0.4})), tmp_path)
    assert (run.final() / "model.safetensors").read_bytes() == kept


def test_what_is_kept_of_a_stopped_stage_is_training(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """A checkpoint counts; what was written before the first one does not."""
    run = Run.start(check_recipe(small(tiny_folder, data)), tmp_path)
    (stage,) = run.stages
    stage.folder.mkdir()
    (stage.folder / "before.json").write_text("{}")
    run.note(stage.folder.name, "training", data={"shop": "another fingerprint"})
    other = check_recipe(small(tiny_folder, data, seed=5))
    assert Run.start(other, tmp_path).recipe.seed == 5
    assert not stage.folder.exists()
    assert Run.open(run.folder).prepare("shop")
    whole = stage.checkpoints / "checkpoint-2"
    whole.mkdir(parents=True)
    (whole / "trainer_state.json").write_text("{}")
    with pytest.raises(InputError, match="differs in seed"):
        Run.start(check_recipe(small(tiny_folder, data)), tmp_path)


def test_what_decides_nothing_makes_no_other_recipe(
    trained: Run, tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = values(tiny_folder, data)
    monkeypatch.chdir(tiny_folder.parent)
    again["base"] |= {"model": tiny_folder.name, "license": "apache-2.0"}
    again["optim"] |= {"report_to": ["tensorboard"], "log_every": 1}
    again["domains"]["shop"]["interactions"] = str(data / ".." / data.name / "shop.csv")
    copied = shutil.copytree(trained.folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("export*"))
    run = Run.start(check_recipe(again), tmp_path)
    assert run.folder == copied
    assert run.prepare("shop").fingerprint == trained.domain("shop").fingerprint


def test_other_data_under_the_same_name_is_refused_before_anything_is_replaced(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    recipe = small(tiny_folder, data)
    run = train(check_recipe(recipe), tmp_path)
    kept = {f: f.read_bytes() for f in run.folder.rglob("*") if f.is_file()}
    other = json.loads(json.dumps(recipe))
    other["domains"]["shop"]["interactions"] = str(data / "other.csv")
    with pytest.raises(InputError, match="has changed since a stage was trained"):
        train(check_recipe(other), tmp_path)
    other["stages"][0]["name"] = "renamed"  # another stage's name hides no data either
    with pytest.raises(InputError, match="has changed since a stage was trained"):
        Run(check_recipe(other), run.folder).prepare("shop")
    assert {f: f.read_bytes() for f in run.folder.rglob("*") if f.is_file()} == kept


@pytest.mark.parametrize("lost", [["domains"], ["domains", "run.json"], ["run.json"]])
def test_data_of_another_working_folder_never_take_the_place_of_a_runs(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: list[str]
) -> None:
    recipe = small(tiny_folder, data)
    recipe["domains"]["shop"]["interactions"] = "shop.csv"
    for folder, source in (("here", "shop.csv"), ("there", "other.csv")):
        (tmp_path / folder).mkdir()
        shutil.copy(data / source, tmp_path / folder / "shop.csv")
    monkeypatch.chdir(tmp_path / "here")
    run = train(check_recipe(recipe), tmp_path / "runs")
    for name in lost:
        shutil.move(run.folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path / "there")
    kept = {f: f.read_bytes() for f in run.folder.rglob("*") if f.is_file()}
    exports = [lambda r: export_run(r, r.export)] if "domains" in lost else []  # it does well with what is there
    for work in (lambda r: r.prepare("shop"), *exports):
        with pytest.raises(
            InputError, match="nothing says what" if len(lost) > 1 else "the data of `shop` has changed"
        ):
            work(Run.open(run.folder))
        assert {f: f.read_bytes() for f in run.folder.rglob("*") if f.is_file()} == kept


def test_a_folder_belongs_to_one_process(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    run = Run.start(check_recipe(small(tiny_folder, data)), tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "claimed\n"
    try:
        with pytest.raises(InputError, match=f"process {holder.pid} is at work"):
            train(check_recipe(small(tiny_folder, data)), tmp_path)
        with pytest.raises(InputError, match=f"process {holder.pid} is at work"):
            train(check_recipe(small(tiny_folder, data, seed=3)), tmp_path)
    finally:
        holder.kill()
        holder.wait()
    train(check_recipe(small(tiny_folder, data, seed=3)), tmp_path)  # what a killed process claimed is free
    assert not (run.folder / "process.json").exists()


def test_an_evaluation_goes_on_with_what_was_measured(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluate_run(trained, folder=tmp_path / "whole")
    measured = evaluating.evaluate_system
    turn: list[str] = []

    def fails(*arguments: object) -> object:
        turn.append("")
        if len(turn) == 5:
            raise RunError("out of memory")
        return measured(*arguments)

    monkeypatch.setattr(evaluating, "evaluate_system", fails)
    with pytest.raises(RunError):
        evaluate_run(trained, folder=tmp_path / "stopped")
    monkeypatch.undo()
    assert not (tmp_path / "stopped").exists()
    capsys.readouterr()
    gone_on = evaluate_run(trained, folder=tmp_path / "stopped")
    assert capsys.readouterr().out.count("measured already") == 4
    assert not (tmp_path / "stopped.part").exists()
    assert sorted(f.name for f in (tmp_path / "stopped").iterdir()) == [MANIFEST, "metrics.json", "rankings.parquet"]
    for key in ("systems", "slices", "users", "protocol", "recommend", "dtype"):
        assert json.dumps(gone_on[key]) == json.dumps(whole[key])  # in the same order, too
    columns = ["system", "user", "rank", "list"]
    one, other = (read_rankings(tmp_path / name, columns) for name in ("whole", "stopped"))
    assert one.equals(other)


def test_an_evaluation_whose_first_systems_are_gone_is_not_written(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baselines = trained.recipe.evaluate.model_copy(update={"baselines": ["popularity", "transitions"], "base": False})
    run = Run(trained.recipe.model_copy(update={"evaluate": baselines}), trained.folder)
    measured = evaluating.evaluate_system

    def removes(*arguments: object) -> object:
        shutil.rmtree(tmp_path / "e.part")
        (tmp_path / "e.part").mkdir()
        return measured(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "evaluate_system", removes)
        with pytest.raises(RunError, match="what was measured of popularity, .*transitions with it"):
            evaluate_run(run, folder=tmp_path / "e")
    assert not (tmp_path / "e").exists()
    assert set(evaluate_run(run, folder=tmp_path / "e")["systems"]) >= {"popularity", "transitions", "final"}


def test_a_half_done_evaluation_of_another_kind_is_not_gone_on_with(trained: Run, tmp_path: Path) -> None:
    part = tmp_path / "evaluation.part"
    part.mkdir()
    (part / "begun.json").write_text('{"dtype": "float16"}')
    shutil.copy(trained.folder / "recipe.yaml", part)  # whatever lies there
    results = evaluate_run(trained, folder=tmp_path / "evaluation")
    assert "final" in results["systems"]
    assert not (tmp_path / "evaluation" / "recipe.yaml").exists()


def test_train_takes_a_file_or_a_recipe(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    save_resolved(check_recipe(small(tiny_folder, data)), file)
    run = train(file, tmp_path, overrides=["stages.0.max_steps=1"])
    assert run.stage_metrics()["1-target"]["steps"] == 1
    assert train(load_recipe(file, ["stages.0.max_steps=1"]), tmp_path).folder == run.folder
