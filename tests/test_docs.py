"""The pages build as a site without a dead link; the notebooks are what their text forms say and run to their end."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tests.conftest import item_names, save_tiny

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ("quickstart", "colab")
COMMAND = "!calrec-lite "
SMALL = {"max_items": 5, "max_history_tokens": 256, "max_item_tokens": 32}


def test_the_site_builds_and_no_link_is_dead(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_what_its_text_form_says(name: str) -> None:
    """Mended by `jupytext --to ipynb docs/NAME.py`."""
    text, notebook = (jupytext.read(ROOT / "docs" / f"{name}.{kind}") for kind in ("py", "ipynb"))
    assert _cells(notebook) == _cells(text)
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_to_its_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "base")
    base = {"base": {"model": str(tmp_path / "base"), "load_in_4bit": False}, "text": SMALL}
    (tmp_path / "tiny.yaml").write_text(json.dumps(base))  # JSON is YAML
    _write_films(tmp_path)
    given = {"base": str(tmp_path / "tiny.yaml"), "steps": 2, "model_users": 4}
    if name == "colab":
        columns = {"user": "user_id", "item": "item_id", "time": "timestamp"}
        fields = {"Title": "movie_title"}
        shop = {"interactions": "ml-100k.inter", "items": "ml-100k.item", "reader": "movielens", "fields": fields}
        domains = {domain: shop | {"columns": columns} for domain in ("movies", "groceries")}
        (tmp_path / "data.yaml").write_text(json.dumps({"domains": domains}))
        given |= {"package": "", "data": str(tmp_path / "data.yaml")}
    notebook = nbformat.read(ROOT / "docs" / f"{name}.ipynb", as_version=4)
    chosen = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    chosen.source += "".join(f"\n{key} = {value!r}" for key, value in given.items())
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    NotebookClient(_run_here(notebook), timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert list(tmp_path.glob("runs/*/export/calrec.json"))
    assert list(tmp_path.glob("runs/*/evaluation/metrics.json"))


def _cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str, list[str]]]:
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def _run_here(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Commands as they are called in the kernel, which has the libraries loaded; a notebook's last one by the shell.

    The shell says nothing of a command that fails: it is followed by a look at its exit code.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = [line for cell in code for line in cell.source.splitlines() if line.startswith(COMMAND)][-1]
    for cell in code:
        cell.source = "\n".join(_called(line, by_shell=line == last) for line in cell.source.splitlines())
    code[0].source = f"from calrec_lite.cli import group\n{code[0].source}"
    return notebook


def _called(line: str, by_shell: bool) -> str:
    if line.startswith(COMMAND) and not by_shell:
        return f"group({shlex.split(line.removeprefix(COMMAND))!r}, standalone_mode=False)"
    if line.lstrip().startswith("!"):
        indent = line[: len(line) - len(line.lstrip())]
        return f"{line}\n{indent}assert _exit_code == 0, {line!r}"
    return line


def _write_films(folder: Path) -> None:
    """Files of the shape of MovieLens-100K's in RecBole's wheel."""
    random = np.random.default_rng(0)
    names = item_names(40)
    items = [f"{n}\t{name}\t{1970 + n}\tDrama" for n, name in enumerate(names)]
    head = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    (folder / "ml-100k.item").write_text("\n".join([head, *items, ""]))
    events = [
        f"{user}\t{item}\t{random.integers(1, 6)}\t{880000000 + 60 * n}"
        for user in range(60)
        for n, item in enumerate(random.choice(len(names), 9, replace=False))
    ]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / "ml-100k.inter").write_text("\n".join([head, *events, ""]))
