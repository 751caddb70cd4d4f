"""README and docs hold what the results hold, and the commands and recipes they show are real."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from calrec_lite.cli import group
from calrec_lite.recipe.file import builtin_folder, load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_tables_are_generated_from_the_results() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_is_listed_and_exists() -> None:
    listed = set(re.findall(r"^\| `calrec-lite ([\w-]+)", COMMANDS, re.MULTILINE))
    assert listed == set(group.commands)


def test_the_recipe_that_is_explained_is_valid(tmp_path: Path) -> None:
    block = next(b for b in re.findall(r"```yaml\n(.*?)```", DATA, re.DOTALL) if "name: mine" in b)
    (tmp_path / "mine.yaml").write_text(block)
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.target == "shop"


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_built_in_recipes_are_valid() -> None:
    assert load_recipe("demo").name == "demo"
    assert (builtin_folder() / "calrec.yaml").is_file()
