"""An ablation on the tiny model: shared stages once, resumed after a kill, seeds, and the table."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import calrec_lite.ablation.run as ablation_module
import calrec_lite.training.stage as stage_module
from calrec_lite.ablation.grid import finished, plan
from calrec_lite.ablation.run import ablate
from calrec_lite.ablation.table import ablation_table
from calrec_lite.errors import InputError
from calrec_lite.evaluate.compare import Evaluation as Evaluation
from calrec_lite.evaluate.compare import compare
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.measure.metrics import ndcg_at, paired_bootstrap
from calrec_lite.page.report import write_report
from calrec_lite.recipe import Recipe, resolved
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.clock import Clock
from calrec_lite.training.stage import train_run

GRID = {
    "stages": [[], ["joint"], ["joint", "target"]],
    "variants": {"no_contrast": {"loss.alpha": 0.0, "loss.beta": 0.0}, "carried": {"stages.*.handover": "continue"}},
    "crossed": [],
    "seeds": [0, 1],
}
FULL = "full.joint.target"


def recipe(two_stages: dict[str, Any], **grid: Any) -> Recipe:
    return check_recipe({**two_stages, "ablate": {**GRID, **grid}})


@pytest.fixture(scope="module")
def ablated(two_stages: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and results."""
    root = tmp_path_factory.mktemp("runs")
    return root / "tiny-ablation", ablate(recipe(two_stages), root)


def test_every_cell_has_its_row(ablated: Any) -> None:
    folder, results = ablated
    rows = {(row["variant"], *row["stages"]): row for row in results["rows"]}
    assert set(rows) == {
        ("full",),
        ("full", "joint"),
        ("full", "joint", "target"),
        ("no_contrast", "joint", "target"),
        ("carried", "joint", "target"),
    }
    assert results["cells"] == {"finished": 9, "planned": 9}
    assert [s["steps"] for s in rows["full", "joint", "target"]["seeds"].values()] == [6, 6]
    assert [s["steps"] for s in rows["full", "joint"]["seeds"].values()] == [4, 4]
    assert rows["full", "joint", "target"]["minus_full"] is None
    assert set(results["baselines"]) == {"popularity"}
    assert json.loads((folder / "ablation.json").read_text()) == results


def test_a_row_is_the_mean_over_seeds_and_its_difference_paired_by_user(ablated: Any) -> None:
    folder, results = ablated
    ranks = {
        (variant, seed): Evaluation.open(folder / f"{variant}.joint.target.seed{seed}" / "evaluation").ranks("final")[1]
        for variant in ("full", "no_contrast")
        for seed in (0, 1)
    }
    row = next(r for r in results["rows"] if r["variant"] == "no_contrast")
    own, full = (np.stack([ranks[variant, seed] for seed in (0, 1)]) for variant in ("no_contrast", "full"))
    assert row["metrics"]["ndcg@10"]["value"] == pytest.approx(ndcg_at(own, 10).mean())
    expected = ndcg_at(own, 10).mean() - ndcg_at(full, 10).mean()
    assert row["minus_full"]["ndcg@10"]["difference"] == pytest.approx(expected)
    assert row["minus_full"] == paired_bootstrap(full, own, 200, 0)
    assert (ranks["full", 0] != ranks["full", 1]).any()  # the seeds did train differently
    assert compare(folder / f"{FULL}.seed0" / "evaluation", folder / f"{FULL}.seed1" / "evaluation")["comparisons"]


def test_all_cells_are_of_the_number_type_of_the_first(
    two_stages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they leave it open; another machine, or a close race in the probe, changes nothing between cells."""
    open_ = {**two_stages, "base": {**two_stages["base"], "dtype": "auto"}}
    grid = recipe(open_, steps=4, seeds=[], variants={"asked": {"base.dtype": "float32"}})
    for factor, cells in ((0.5, ["untouched"]), (20.0, [])):
        monkeypatch.setattr("calrec_lite.model.device.half_time", lambda half, hidden, inner, own=factor: own)
        ablate(grid, tmp_path, cells)
    types = {file.parent.name: json.loads(file.read_text())["dtype"]["dtype"] for file in tmp_path.rglob("run.json")}
    assert types.pop("asked.joint.target.seed0") == "float32"
    assert len(types) == 3
    assert set(types.values()) == {"bfloat16"}


def test_cells_measure_models_and_baselines_on_the_same_users(two_stages: dict[str, Any]) -> None:
    measured = {**two_stages["evaluate"], "users": 15, "model_users": 10}
    cells = [cell.recipe.evaluate for cell in plan(recipe({**two_stages, "evaluate": measured}))]
    assert {(own.users, own.model_users) for own in cells} == {(10, None)}


def test_shared_stages_are_trained_once(ablated: Any) -> None:
    folder, _ = ablated
    for seed in (0, 1):
        adapters = [
            load_file(folder / f"{cell}.seed{seed}" / "1-joint" / "adapter" / "adapter_model.safetensors")
            for cell in (FULL, "full.joint", "carried.joint.target")
        ]
        assert all(torch.equal(adapters[0][k], other[k]) for other in adapters[1:] for k in adapters[0])
        for cell in ("full.joint", "carried.joint.target"):
            states = json.loads((folder / f"{cell}.seed{seed}" / "run.json").read_text())["stages"]
            assert states["1-joint"]["trained_in"] == f"{FULL}.seed{seed}"
            run = Run.open(folder / f"{cell}.seed{seed}")
            logged = [e["step"] for e in run.log_entries() if e["stage"] == "1-joint" and "loss" in e]
            assert logged == [2, 4]
    states = json.loads((folder / "no_contrast.joint.target.seed0" / "run.json").read_text())["stages"]
    assert "trained_in" not in states["1-joint"]
    facts = Run.open(folder / "carried.joint.target.seed0").stage_metrics()
    assert facts["1-joint"]["valid_nats_handed_on"] == facts["2-target"]["valid_nats_before"]


def test_weights_are_removed_and_come_back_the_same(ablated: Any, two_stages: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = ablated
    assert not list(folder.rglob("model*.safetensors"))
    assert not list(folder.rglob("checkpoints"))
    assert len({p.resolve() for p in folder.glob("*/domains")}) == 1
    never_ablated = Run.start(Run.open(folder / f"{FULL}.seed0").recipe, tmp_path)
    train_run(never_ablated)
    again = Run.open(folder / f"{FULL}.seed0")
    train_run(again)
    one, two = (load_file(run.final() / "model.safetensors") for run in (never_ablated, again))
    assert all(torch.equal(one[k], two[k]) for k in one)
    ablate(recipe(two_stages), folder.parent)
    assert not list(folder.rglob("model*.safetensors"))


def test_finished_cells_are_kept_and_a_killed_one_goes_on(
    ablated: Any,
    two_stages: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed before the evaluation of the third cell: its stages are not trained again, nor are the two before it."""
    grid = recipe(two_stages, seeds=[0], variants={})
    measure = ablation_module.evaluate_run
    order: list[str] = []

    def killed(run: Run, trained: bool = True) -> dict[str, Any]:
        order.append(run.recipe.name)
        if len(order) == 3:
            raise KeyboardInterrupt
        return measure(run, trained)

    with monkeypatch.context() as patch:
        patch.setattr(ablation_module, "evaluate_run", killed)
        with pytest.raises(KeyboardInterrupt):
            ablate(grid, tmp_path)
    folder = tmp_path / "tiny-ablation"
    partial = json.loads((folder / "ablation.json").read_text())
    assert partial["cells"] == {"finished": 2, "planned": 3}
    assert "1 of 3 cells are not finished yet" in (folder / "ablation.md").read_text()
    kept = {p: p.stat().st_mtime_ns for name in order[:2] for p in (folder / name).rglob("*") if p.is_file()}
    capsys.readouterr()
    results = ablate(grid, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    said = capsys.readouterr().out
    assert f"{order[1]}: done already" in said
    assert f"{order[2]}\nstage 1-joint: done already" in said
    # It ends where an ablation that was never stopped ends.
    whole = ablated[1]
    for row, other in zip(results["rows"], whole["rows"]):
        assert row["seeds"]["0"]["metrics"] == other["seeds"]["0"]["metrics"]
        assert row["seeds"]["0"]["valid_nats"] == other["seeds"]["0"]["valid_nats"]


def test_cells_run_by_name_make_the_same_table(two_stages: dict[str, Any], tmp_path: Path) -> None:
    """As when several processes share a GPU: each runs some of the cells, the last one finds the others done."""
    grid = recipe(two_stages, seeds=[0], variants={}, stages=[[], ["joint", "target"]])
    first = ablate(grid, tmp_path / "apart", [f"{FULL}.seed0"])
    assert first["cells"] == {"finished": 1, "planned": 2}
    apart = ablate(grid, tmp_path / "apart", ["untouched"])
    together = ablate(grid, tmp_path / "together")
    assert [row["metrics"] for row in apart["rows"]] == [row["metrics"] for row in together["rows"]]
    assert apart["baselines"] == together["baselines"]
    with pytest.raises(InputError, match="no cell full.target; there are: untouched, full.joint.target.seed0"):
        ablate(grid, tmp_path / "apart", ["full.target"])


def test_a_cell_is_a_run_that_can_be_reported_on(ablated: Any) -> None:
    folder, _ = ablated
    trained = write_report(Run.open(folder / "carried.joint.target.seed1")).read_text(encoding="utf-8")
    assert "Stage 2-target" in trained
    assert "No baseline was measured" in trained
    untouched = write_report(Run.open(folder / "untouched"), reasons=False).read_text(encoding="utf-8")
    assert "Nothing was trained" in untouched
    assert "The strongest baseline" in untouched


def test_another_protocol_measures_again_without_training(
    ablated: Any, two_stages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = ablated
    evaluate = {**two_stages["evaluate"], "users": 15}
    results = ablate(recipe({**two_stages, "evaluate": evaluate}), folder.parent)
    assert (before["protocol"]["users"], results["protocol"]["users"]) == (20, 15)
    said = capsys.readouterr().out
    assert "rows of" not in said  # what a stage says when it trains
    with pytest.raises(InputError, match="another recipe"):
        ablate(recipe({**two_stages, "loss": {"tau": 0.1}}), folder.parent)


def test_a_stage_of_another_recipe_is_not_borrowed(two_stages: dict[str, Any], tmp_path: Path) -> None:
    """One of two cells that share a stage is removed after the recipe has changed: the other one's stage is not its."""
    grid = {"seeds": [0], "stages": [["joint"], ["joint", "target"]], "variants": {}, "steps": None, "minutes": None}
    ablate(recipe(two_stages, **grid), tmp_path)
    folder = tmp_path / "tiny-ablation"
    cooler = recipe({**two_stages, "loss": {**two_stages.get("loss", {}), "tau": 0.2}}, **grid)
    with pytest.raises(InputError, match="another recipe"):
        ablate(cooler, tmp_path)
    shutil.rmtree(folder / f"{FULL}.seed0")
    ablate(cooler, tmp_path, [f"{FULL}.seed0"])
    alone = Run.start(Run.open(folder / f"{FULL}.seed0").recipe, tmp_path / "alone")
    train_run(alone)
    one, two = (
        load_file(run.stages[0].adapter / "adapter_model.safetensors")
        for run in (Run.open(folder / f"{FULL}.seed0"), alone)
    )
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_data_that_changed_between_cells_is_an_error(two_stages: dict[str, Any], tmp_path: Path) -> None:
    """Of a domain that is trained on and not measured, too."""
    grid = recipe(two_stages, seeds=[0], stages=[["joint"], ["joint", "target"]], variants={})
    ablate(grid, tmp_path)
    folder = tmp_path / "tiny-ablation"
    file = folder / "full.joint.seed0" / "cell.json"
    facts = json.loads(file.read_text())
    assert set(facts["data"]) == {"shop", "other"}
    facts["data"]["other"] = "0" * 64
    file.write_text(json.dumps(facts))
    with pytest.raises(InputError, match="the data of `other` has changed"):
        ablate(grid, tmp_path)


def test_sources_that_changed_since_all_was_measured_are_an_error(
    two_stages: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = tmp_path / "data"
    values = json.loads(json.dumps(two_stages))
    sources.mkdir()
    for domain in values["domains"].values():
        domain["interactions"] = str(shutil.copy(domain["interactions"], sources))
    grid = recipe(values, seeds=[0], stages=[[]], variants={})
    ablate(grid, tmp_path)
    events = Path(values["domains"]["shop"]["interactions"])
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="the data of `shop` has changed"):
        ablate(grid, tmp_path)
    events.write_text("".join(lines))
    ablate(grid, tmp_path)
    assert "done already" in capsys.readouterr().out


def test_a_cell_measured_on_other_users_since_is_an_error(two_stages: dict[str, Any], tmp_path: Path) -> None:
    grid = recipe(two_stages, seeds=[0], stages=[[], ["joint"]], variants={})
    ablate(grid, tmp_path)
    run = Run.open(tmp_path / "tiny-ablation" / "untouched")
    run.recipe = run.recipe.model_copy(update={"evaluate": run.recipe.evaluate.model_copy(update={"users": 15})})
    evaluate_run(run, trained=False)
    with pytest.raises(InputError, match=r"different protocols \(users: 15 and 20\)"):
        ablate(grid, tmp_path)


def test_half_prepared_data_of_another_process_stays(tmp_path: Path) -> None:
    for name in ("domains/.shop.1.tmp", "cell/1-joint/merged", "cell/1-joint/.adapter.1.tmp"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cell" / "domains").symlink_to(Path("..") / "domains", target_is_directory=True)
    ablation_module.remove_weights(tmp_path / "cell")
    assert (tmp_path / "domains" / ".shop.1.tmp").is_dir()
    assert not list((tmp_path / "cell" / "1-joint").iterdir())


def test_the_table(ablated: Any) -> None:
    _, results = ablated
    text = ablation_table(results)
    lines = text.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        *("stages", "change", "R@1", "R@10", "N@10", "MRR@10", "N@10 minus full", "steps", "minutes")
    ]
    assert len([line for line in lines if line.startswith("|")]) == 2 + 5 + 1
    assert "loss.alpha = 0.0, loss.beta = 0.0" in text
    assert "(popularity)" in text
    assert "each stage is as long as the recipe says" in text
    assert "Mean of 2 seeds of training; intervals are over users, not over seeds" in text
    assert "not finished yet" not in text


def test_minutes_are_a_budget_too(two_stages: dict[str, Any], tmp_path: Path) -> None:
    grid = {"stages": [["target"]], "variants": {}, "seeds": [], "minutes": 0.04}
    results = ablate(recipe(two_stages, **grid), tmp_path)
    assert [row["stages"] for row in results["rows"]] == [["joint", "target"], ["target"]]
    for row in results["rows"]:
        (facts,) = row["seeds"].values()
        assert 2.4 <= facts["train_seconds"] < 8  # the last step of each stage is finished, on a busy machine too
        assert facts["steps"] > 2
    assert "had 0.04 minutes of training in all" in ablation_table(results)
    rates = [
        e["learning_rate"]
        for e in Run.open(tmp_path / "tiny-ablation" / "full.target.seed0").log_entries()
        if "learning_rate" in e
    ]
    assert rates[-1] < max(rates)


def test_a_stage_by_the_clock_goes_on_after_a_kill(
    two_stages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at its second checkpoint, then between training and merging: the time goes on, and none is added."""
    stage = {"name": "target", "domains": ["shop"], "minutes": 0.05}
    optim = {**two_stages["optim"], "save_every": 1, "log_every": 1}
    run = Run.start(check_recipe({**two_stages, "stages": [stage], "optim": optim}), tmp_path)
    saved: list[float] = []

    def killed(*arguments: object, **options: object) -> int:
        raise KeyboardInterrupt

    def second(self: Clock, *arguments: object, **options: object) -> None:
        saved.append(self.seconds)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Clock, "on_save", second)
        with pytest.raises(KeyboardInterrupt):
            train_run(run)
    assert 0 < saved[1] < 3
    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "merge_adapter", killed)
        with pytest.raises(KeyboardInterrupt):
            train_run(Run.open(run.folder))
    adapter = load_file(run.stages[0].adapter / "adapter_model.safetensors")
    times = [entry["seconds"] for entry in run.log_entries() if "seconds" in entry]
    assert times == sorted(times)
    assert times[2] > saved[1]  # the second start did not begin at 0
    train_run(Run.open(run.folder))
    after = load_file(run.stages[0].adapter / "adapter_model.safetensors")
    assert all(torch.equal(adapter[k], after[k]) for k in adapter)
    facts = run.stage_metrics()["1-target"]
    assert facts["train_seconds"] == pytest.approx(times[-1], abs=0.1)
    assert times[-2] < 3 <= times[-1]
    assert facts["steps"] == len(times)


def test_a_cell_measured_before_a_key_was_there_is_finished_still(two_stages: dict[str, Any], tmp_path: Path) -> None:
    """And one that was measured in a type, where the recipe now leaves the type open."""
    name = f"{FULL}.seed0"
    measured = resolved(next(cell for cell in plan(recipe(two_stages)) if cell.name == name).recipe)
    del measured["evaluate"]["model_users"]
    (tmp_path / name).mkdir()
    (tmp_path / name / "cell.json").write_text(json.dumps({"recipe": measured}))
    for base, loss, expected in (("auto", {}, True), ("bfloat16", {}, False), ("auto", {"tau": 0.4}, False)):
        changed = {**two_stages, "base": {**two_stages["base"], "dtype": base}, "loss": loss}
        cell = next(cell for cell in plan(recipe(changed)) if cell.name == name)
        assert finished(cell, tmp_path) == expected
