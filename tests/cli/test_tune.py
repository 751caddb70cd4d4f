"""`calrec-lite tune` on a run whose lists are fused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from calrec_lite.evaluate.tune import FUSION, TRANSITIONS, Tried, _at_the_end, _few
from calrec_lite.run import Run
from tests.conftest import run
from tests.fitting.conftest import FITTED_FILES


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(fused_run: Run, tmp_path: Path) -> Path:
    return shutil.copytree(fused_run.folder, tmp_path / "tiny")


def fitted(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "fitted" / "1-target").iterdir()}


def with_strategy(folder: Path, strategy: str) -> None:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["recommend"]["strategy"] = strategy
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.mark.parametrize("strategy", ["fused", "fast"])
def test_weights_are_fitted_anew_shown_and_written(folder: Path, strategy: str, monkeypatch, capsys) -> None:
    with_strategy(folder, strategy)
    before = fitted(folder)
    assert run(["tune", str(folder), "--users", "55"], monkeypatch) == 0
    assert "write them into the run by --apply" in capsys.readouterr().out
    assert fitted(folder) == before
    assert run(["tune", str(folder), "--users", "55", "--apply"], monkeypatch) == 0
    said = capsys.readouterr().out
    after = fitted(folder)
    assert {name for name in after if after[name] != before[name]} == {"weights.json"}
    weights = json.loads(after["weights.json"])
    kept = json.loads(before["weights.json"])["fused"]
    assert (weights["fused"] == kept) == (strategy == "fast")  # weights that were not asked for stay
    rows = re.findall(r"^\| (\w+) +\| +(-?[\d.]+) \| +\[(-?[\d.]+), (-?[\d.]+)\] \|$", said, re.MULTILINE)
    assert {name: value for name, value, *_ in rows} == {n: f"{w:.3f}" for n, w in weights[strategy].items()}
    for name, _, low, high in rows:
        interval = weights[f"{strategy}_fit"]["intervals"][name]
        assert [low, high] == [f"{end:.3f}" for end in interval]
    assert f"{weights[f'{strategy}_fit']['users']} validation users" in said
    won = r"N@10 is ([\d.]+) \[[\d.]+, [\d.]+\], [+-][\d.]+ \[[^]]+\] p=\S+ against the weights in the run over 55"
    (ndcg,) = re.findall(won, said)
    assert ndcg == f"{weights['fast_fit']['valid_ndcg']:.4f}"
    assert "warning: by 5" in said  # of the 55 users, those whose next item is a candidate
    assert said.rstrip().endswith(f"next: calrec-lite evaluate {folder}")
    assert run(["export", str(folder), "--to", str(folder / "export")], monkeypatch) == 0
    for name in FITTED_FILES:
        assert (folder / "export" / "fitted" / name).read_bytes() == after[name]


def test_too_few_users_are_one_line_and_exit_2(folder: Path, monkeypatch, capsys) -> None:
    before = fitted(folder)
    assert run(["tune", str(folder), "--users", "5"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "weights of fused lists" in error
    assert "Traceback" not in error
    assert fitted(folder) == before


def test_an_untrained_run_has_nothing_to_be_tuned(folder: Path, monkeypatch, capsys) -> None:
    shutil.rmtree(folder / "1-target")
    assert run(["tune", str(folder)], monkeypatch) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_with_another_strategy_nothing_is_changed(folder: Path, monkeypatch, capsys) -> None:
    with_strategy(folder, "beam")
    before = fitted(folder)
    assert run(["tune", str(folder), "--users", "12"], monkeypatch) == 0
    said = capsys.readouterr().out
    assert "--set recommend.strategy=rerank --set recommend.fusion=" in said
    assert max(map(len, said.split("\n\n")[0].splitlines())) <= 80
    assert re.search(r"Best: N@10 [\d.]+ \[[\d.]+, [\d.]+\], \+[\d.]+ \[.*\] p=\S+ against no weights", said)
    assert "warning: by 12 users" in said
    assert fitted(folder) == before
    assert run(["tune", str(folder), "--users", "12", "--apply"], monkeypatch) == 0
    options = yaml.safe_load((folder / "recipe.yaml").read_text())["recommend"]
    assert options["strategy"] == "rerank"
    assert f"--set recommend.fusion={options['fusion']:g} " in said
    assert f"--set recommend.transitions={options['transitions']:g}\n" in said
    assert run(["tune", str(folder), "--users", "12"], monkeypatch) == 0  # they are those of the run now
    assert "+0.0000 [+0.0000, +0.0000] p=1 against the weights in the run" in capsys.readouterr().out


def test_the_end_of_the_grid_and_few_users_are_warned_of() -> None:
    (line,) = _at_the_end(Tried(FUSION[-1], 0.0, 0.1, 0.1))
    assert "200 is the largest recommend.fusion that was tried" in line
    assert "--set recommend.fusion=400" in line
    assert len(_at_the_end(Tried(FUSION[-1], TRANSITIONS[-1], 0.1, 0.1))) == 2
    assert _at_the_end(Tried(0.0, 0.0, 0.1, 0.1)) == []
    assert [len(_few(users)) for users in (199, 200)] == [1, 0]
