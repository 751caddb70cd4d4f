"""Settings after training: --set on evaluate, export and recommend, for that call alone; a known user's list."""

import json
import shutil
from pathlib import Path

import pytest

from calrec_lite.evaluate.store import read_metrics
from calrec_lite.run import Run
from tests.conftest import run


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(fused_run: Run, tmp_path: Path) -> Path:
    return shutil.copytree(fused_run.folder, tmp_path / "tiny", copy_function=shutil.copy2)


def test_other_settings_are_measured_in_a_folder_of_their_own_and_exported_with_them(
    folder: Path, monkeypatch, capsys
) -> None:
    small = ["--set", "evaluate.base=false", "--set", "evaluate.readings=[]"]
    fast = ["--set", "recommend.strategy=fast", "--set", "recommend.exclude_seen=false", *small]
    before = {path.name: path.read_bytes() for path in (folder / "fitted" / "1-target").iterdir()}
    recipe = (folder / "recipe.yaml").read_bytes()
    assert run(["evaluate", str(folder), *fast], monkeypatch) == 0
    (measured,) = folder.glob("evaluation-*")
    assert f"-> {measured / 'metrics.json'}" in capsys.readouterr().out
    assert read_metrics(measured)["recommend"]["strategy"] == "fast"
    assert not (folder / "evaluation").exists()
    assert {path.name: path.read_bytes() for path in (folder / "fitted" / "1-target").iterdir()} == before
    assert (folder / "recipe.yaml").read_bytes() == recipe
    export = folder / "export"
    assert run(["export", str(folder), *fast], monkeypatch) == 0
    assert json.loads((export / "calrec.json").read_text())["recommend"]["strategy"] == "fast"
    value = read_metrics(measured)["systems"]["final"]["recall@1"]["value"]
    assert "model-index" in (export / "README.md").read_text()
    assert f"| {value:.4f} [" in (export / "README.md").read_text()
    for other in ([], [*fast, "--set", "recommend.exclude_seen=true"], [*fast, "--set", "evaluate.mrr_cut=5"]):
        assert run(["export", str(folder), *other], monkeypatch) == 0
        assert "model-index" not in (export / "README.md").read_text()
    assert (folder / "recipe.yaml").read_bytes() == recipe


def test_settings_of_one_list(fused_export: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    title = json.loads((fused_export / "catalogue.jsonl").read_text().splitlines()[0])["fields"]["Title"]
    before = (fused_export / "calrec.json").read_bytes()
    command = ["recommend", str(fused_export), title, "--set", "recommend.strategy=fast"]
    assert run([*command, "--set", "recommend.k=4", "--set", "recommend.exclude_seen=false"], monkeypatch) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert all(len(row) == 6 for row in rows)
    assert (fused_export / "calrec.json").read_bytes() == before
    Path("u.jsonl").write_text(json.dumps({"history": [title]}) + "\n")
    bulk = ["recommend", str(fused_export), "--users", "u.jsonl", "--strategy", "fast"]
    assert run([*bulk, "--out", "o.jsonl", "--set", "recommend.k=3"], monkeypatch) == 0
    assert len(json.loads(Path("o.jsonl").read_text())["items"]) == 3
    assert json.loads(Path("o.jsonl").read_text())["items"][0].keys() == {"title", "item", "score", "why"}


@pytest.mark.parametrize(
    ("command", "setting", "says"),
    [
        ("recommend", "recommend.beam=3", "recommend.beam: unknown key; did you mean `beams`?"),
        ("recommend", "recommend.strategy=guess", "recommend.strategy: input should be 'fused'"),
        ("recommend", "evaluate.users=3", "of what is trained already only recommend.* can be set here"),
        ("recommend", "k=3", "(write --set recommend.k=20)"),
        ("evaluate", "loss.alpha=3", "of what is trained already only recommend.* and evaluate.* can be set here"),
        ("evaluate", "recommend.k=0", "recommend.k: input should be greater than or equal to 1 (got 0)"),
        ("export", "evaluate.domain=nowhere", "evaluate.domain: no domain `nowhere`"),
        ("export", "recommend", "write it as key.sub=value"),
    ],
)
def test_what_cannot_be_set(command: str, setting: str, says: str, fused_export, folder, monkeypatch, capsys) -> None:
    what = [str(fused_export), "a title"] if command == "recommend" else [str(folder)]
    assert run([command, *what, "--set", setting], monkeypatch) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert says in error


def test_the_list_of_a_known_user(folder: Path, fused_export: Path, monkeypatch, capsys) -> None:
    by_run = ["recommend", str(folder), "--user", "3", "--strategy", "fast", "-k", "3"]
    assert run(by_run, monkeypatch) == 0
    said = capsys.readouterr()
    length = len(Run.open(folder).domain("shop").sequences.of(Run.open(folder).domain("shop").user("3")))
    assert f"a history of {length} items, the latest: " in said.err
    by_export = ["recommend", str(fused_export), "--user", "3", "--strategy", "fast", "-k", "3"]
    assert run([*by_export, "--domain", str(folder / "domains" / "shop")], monkeypatch) == 0
    assert capsys.readouterr().out == said.out
    for wrong, says in (
        ([*by_export], "an export holds no histories"),
        ([*by_export[:3], "nobody", "--domain", str(folder / "domains" / "shop")], "no user 'nobody'"),
        ([*by_export[:2], "a title", "--domain", str(folder)], "--domain is for --user ID"),
        ([*by_run, "a title"], "give titles (oldest first), --user ID, or --users FILE"),
        ([*by_run[:2], "--users", "u.jsonl", "--out", "o.jsonl"], "is a run; for files of users export it"),
    ):
        assert run(wrong, monkeypatch) == 2
        assert says in capsys.readouterr().err
