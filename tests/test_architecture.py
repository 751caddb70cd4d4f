"""The rooms and the directions in which they may import, as docs/architecture.md says; and the house rules on size."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "calrec_lite"
MODULES = sorted(PACKAGE.rglob("*.py"))


def allowed() -> dict[str, set[str]]:
    """Room -> rooms it may import, from the table in docs/architecture.md."""
    rows = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        cells = [c.strip() for c in line.strip("| ").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            rows[cells[0].strip("`")] = {c.strip(" `") for c in cells[2].split(",") if c.strip(" `-")}
    return rows


def room(module: Path) -> str:
    part = module.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imports(module: Path) -> set[str]:
    """Names of all modules imported anywhere in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_go_only_where_the_page_says(module: Path) -> None:
    rooms = allowed()
    own = room(module)
    if own in ("__init__", "__main__"):
        return
    assert own in rooms, f"docs/architecture.md does not know the room `{own}`"
    for name in imports(module):
        if name.startswith("calrec_lite."):
            other = name.split(".")[1]
            assert other == own or other in rooms[own], f"{own} may not import {other}"


def test_rooms_without_torch_import_none() -> None:
    """What reads recipes, data and texts starts at once; so does `import calrec_lite`, whose face is lazy."""
    light = ("errors", "files", "sources", "claim", "threads", "ram", "recipe", "data", "text", "run")
    names = [
        f"calrec_lite.{'.'.join(m.relative_to(PACKAGE).with_suffix('').parts)}" for m in MODULES if room(m) in light
    ]
    code = f"import sys, {', '.join(names)}; print(sorted({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_every_room_of_the_page_is_there() -> None:
    assert set(allowed()) == {room(m) for m in MODULES} - {"__init__", "__main__"}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_modules_are_short_and_say_what_they_are(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert module.stem not in ("utils", "helpers", "misc", "common")
