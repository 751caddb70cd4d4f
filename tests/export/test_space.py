"""A Space of the tiny model: the folder, its page's lists, and the page itself where Gradio is installed."""

import ast
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from calrec_lite.cli import group
from calrec_lite.errors import InputError
from calrec_lite.export import space as space_module
from calrec_lite.export.space import UNUSED, _requirements, export_space
from calrec_lite.package.space import is_space
from calrec_lite.recommend import Recommender
from calrec_lite.run import Run
from calrec_lite.serve import space_page
from calrec_lite.serve.lists import Lists
from calrec_lite.serve.space_page import Page, open_page

HISTORY = ["3", "4", "5"]  # ids of the ring's items


@pytest.fixture(scope="module")
def space(fused_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_space(fused_run, tmp_path_factory.mktemp("space") / "space")


@pytest.fixture(scope="module")
def page(space: Path) -> Page:
    return Page(Lists.open(space / "model"))


def rows(made: list) -> list[list]:
    return [[one.title, round(one.score, 4), one.why] for one in made]


def test_the_folder_is_a_space(space: Path, fused_run: Run) -> None:
    assert is_space(space)
    assert {f.name for f in space.iterdir()} == {"README.md", "app.py", "requirements.txt", "calrec_lite", "model"}
    text = (space / "README.md").read_text(encoding="utf-8")
    card = yaml.safe_load(text.split("---\n")[1])
    assert (card["sdk"], card["app_file"], card["title"]) == ("gradio", "app.py", fused_run.recipe.name)
    assert card["license"] == "mit", "that of the weights in it"
    assert "models" not in card, "this base is a folder of this machine"
    assert str(fused_run.folder.parent) not in text
    ast.parse((space / "app.py").read_text(encoding="utf-8"))
    needed = {Requirement(line).name for line in (space / "requirements.txt").read_text().splitlines()}
    assert {"torch", "transformers", "pydantic"} <= needed
    assert not needed & {*UNUSED, "calrec-lite", "gradio", "pytest"}
    assert (space / "calrec_lite" / "LICENSE").is_file()
    assert (space / "model" / "model.safetensors").samefile(fused_run.final() / "model.safetensors")


def test_packages_are_those_of_the_source_not_of_the_day_it_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2.9"])  # as an editable install of long ago
    named = {Requirement(line).name for line in _requirements()}
    if sys.version_info >= (3, 11):
        assert {"torch", "transformers", "pydantic", "rich"} <= named
    monkeypatch.setattr(space_module, "SOURCE", Path("/nowhere"))  # as a wheel: no pyproject.toml beside the package
    assert _requirements() == ["torch>=2.9"]


def test_its_own_source_makes_the_lists_without_what_is_left_out(space: Path, fused_export: Path) -> None:
    """In a process of its own, where the folder's source is imported and a package that is not named cannot be."""
    left_out = [name.replace("-", "_") for name in UNUSED]
    code = f"""
import json, sys
class Absent:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in {left_out}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import calrec_lite
from calrec_lite.serve.lists import Lists
from calrec_lite.serve.space_page import Page
assert calrec_lite.__file__.startswith({str(space)!r}), calrec_lite.__file__
lists = Lists.open({str(space / "model")!r})
lists.warm()
page = Page(lists)
print(json.dumps([page.recommend({HISTORY}, strategy, 5) for strategy in lists.strategies]))
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=space, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    recommender = Recommender.from_pretrained(fused_export)
    expected = [
        rows(recommender.recommend([HISTORY], 5, strategy=strategy)[0]) for strategy in ("fused", "fast", "beam")
    ]
    assert json.loads(said.stdout) == expected


def test_a_search_of_a_small_catalogue_gives_the_browser_all(page: Page) -> None:
    items = {item for _, item in page.choices("", [])}
    assert items == set(page.lists.recommender.ids)
    assert len(page.choices("", HISTORY)) == len(items), "what is chosen is there once"


def test_a_search_of_a_large_catalogue_keeps_what_is_chosen(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space_page, "OFFERED", 10)
    monkeypatch.setattr(space_page, "FOUND", 3)
    page = Page(Lists.open(space / "model", ["fast"]))
    assert page.is_large
    found = page.choices("pen", HISTORY)
    assert [item for _, item in found[-3:]] == HISTORY
    assert len(found) == 6
    assert all("pen" in title for title, _ in found[:3])


def test_items_of_one_title_are_told_apart(space: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(space / "model", tmp_path / "model"))
    with (folder / "catalogue.jsonl").open("a", encoding="utf-8") as file:  # its title is the id of another
        for item in ("a", "b"):
            file.write(json.dumps({"id": item, "fields": {"Title": "3", "Brand": item}, "count": 0}) + "\n")
    info = json.loads((folder / "calrec.json").read_text(encoding="utf-8"))
    info["labels"] = ["Title", "Brand"]
    info["recommend"]["strategy"] = "beam"
    (folder / "calrec.json").write_text(json.dumps(info), encoding="utf-8")
    page = Page(Lists.open(folder))
    assert {("3 (a)", "a"), ("3 (b)", "b")} <= set(page.choices("3", []))
    third = page.lists.recommender.catalogue.titles[page.lists.recommender.ids.index("3")]
    assert third not in {title for title, _, _ in page.recommend(["3"], "beam", 30)}, "seen: the id counts, not a title"


@pytest.mark.parametrize(
    ("history", "strategy", "k", "said"),
    [(["nobody"], "fused", 5, "no item"), ([], "sample", 5, "here are fused"), ([], "fast", 0, "k: from 1")],
)
def test_what_a_program_asks_wrongly_is_said(page: Page, history: list[str], strategy: str, k: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        page.recommend(history, strategy, k)


def test_a_space_of_a_model_on_the_hub_holds_none(fused_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(fused_run.folder), "--space", "--model", "me/mine"]
    group(command, standalone_mode=False)
    folder = fused_run.folder / "space"
    assert capsys.readouterr().out.endswith(f"-> {folder}\n")
    assert not (folder / "model").exists()
    card = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert (card["models"], card["license"]) == (["me/mine"], "apache-2.0")
    assert "open_page('me/mine', 'tiny')" in (folder / "app.py").read_text(encoding="utf-8").replace('"', "'")
    (folder / "old.txt").touch()
    group(command, standalone_mode=False)
    assert not (folder / "old.txt").exists(), "an earlier one is replaced"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--space", "--adapter"], "--space goes without"),
        (["--model", "me/mine"], "--model with --space"),
        (["--space", "--model", "mine"], "OWNER/NAME"),
    ],
)
def test_options_that_do_not_go_together(fused_run: Run, options: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        group(["export", str(fused_run.folder), *options], standalone_mode=False)


def test_another_folder_is_not_replaced(fused_run: Run, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("mine")
    with pytest.raises(InputError, match="no Space of calrec-lite"):
        export_space(fused_run, tmp_path)
    assert (tmp_path / "app.py").read_text() == "mine"


def test_the_page_answers_programs_as_a_recommender_does(page: Page, space: Path) -> None:
    """With Gradio's own client, over HTTP. Gradio is no part of the extra `test`: it wants older pillow and tomlkit."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    from gradio_client import Client

    made = open_page(space / "model", "tiny")
    _, address, _ = made.launch(prevent_thread_lock=True, quiet=True)
    try:
        answer = Client(address, verbose=False).predict(HISTORY, "fast", 7, api_name="/recommend")
    finally:
        made.close()
    assert answer == page.recommend(HISTORY, "fast", 7)
