"""An evaluation's lists made in parts: the figures, and the bytes of every user's list, of one process."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import calrec_lite.evaluate.shards as shards
from calrec_lite.cli import group
from calrec_lite.errors import InputError
from calrec_lite.evaluate.evaluate_run import evaluate_run, make_lists
from calrec_lite.recommend.shards import Shard
from calrec_lite.run import Run


def said(words: list[str]) -> str:
    result = CliRunner().invoke(group, words)
    if result.exception:
        raise result.exception
    return result.output


def test_parts_measured_together_are_one_evaluation(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BLOCK", 6)  # 20 users are four blocks
    one, parts = (shutil.copytree(trained.folder, tmp_path / name) for name in ("one", "parts"))
    whole = evaluate_run(Run.open(one))
    kept = parts / "evaluation.shards"
    assert str(kept) in said(["evaluate", str(parts), "--shard", "2/3"])
    files = {path: path.stat().st_mtime_ns for path in kept.rglob("*.npz")}
    assert {path.parent.name for path in files} == {"base", "final", "stage1"}  # baselines are measured at the end
    make_lists(Run.open(parts), parts / "evaluation", Shard(1, 3))
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.npz")} == files  # done already
    with pytest.raises(InputError, match="of another number of parts"):
        make_lists(Run.open(parts), parts / "evaluation", Shard(0, 2))
    make_lists(Run.open(parts), parts / "evaluation", Shard(0, 3))
    with pytest.raises(InputError, match="part 3/3 is not done; make it by --shard 3/3"):
        said(["merge-lists", str(kept)])
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    said(["evaluate", str(parts)])  # as torchrun starts it
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert "final" in said(["merge-lists", str(kept)])
    assert not kept.exists()
    merged = json.loads((parts / "evaluation" / "metrics.json").read_text())
    assert merged.keys() == whole.keys()
    for key in ("systems", "slices", "users", "protocol", "domain", "recommend", "fitted"):
        assert merged[key] == json.loads(json.dumps(whole[key])), key
    assert merged["users_per_second"].keys() == whole["users_per_second"].keys()
    name = "evaluation/rankings.parquet"
    assert (parts / name).read_bytes() == (one / name).read_bytes()


def test_lists_of_what_has_changed_since_are_not_measured(trained: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(trained.folder, tmp_path / "run"))
    options = run.recipe.evaluate.model_copy(update={"users": 5, "baselines": [], "base": False, "every_stage": False})
    fewer = Run(run.recipe.model_copy(update={"evaluate": options}), run.folder)
    kept = make_lists(fewer, run.folder / "evaluation-test-5", Shard(0, 1))
    recommend = fewer.recipe.recommend.model_copy(update={"beams": 12})
    other = Run(fewer.recipe.model_copy(update={"recommend": recommend}), run.folder)
    with pytest.raises(InputError, match="of what has changed since"):
        evaluate_run(other, folder=run.folder / "evaluation-test-5", merging=True)
    assert "final" in said(["merge-lists", str(kept)])  # by the options that its parts were made with
    assert json.loads((run.folder / "evaluation-test-5" / "metrics.json").read_text())["users"] == {"final": 5}
    with pytest.raises(InputError, match="no folder of lists"):
        said(["merge-lists", str(run.folder)])
