"""Broken recipes and --set."""

import json
import re
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from numpy.random import Generator

from tests.campaign.case import Case, Judge
from tests.campaign.odd import SNIPPETS, VALUES, broken_bytes, broken_lines, broken_value, one, places
from tests.campaign.world import World


def recipe_case(world: World, folder: Path, random: Generator) -> Case:
    values = world.values()
    text = yaml.safe_dump(values, sort_keys=False)
    file = folder / "recipe.yaml"
    judge, content, done = None, b"", "its bytes"
    kind = int(random.integers(5))
    if kind == 0:
        content = broken_bytes(random, text.encode())
    elif kind in (1, 2):
        for _ in range(int(random.integers(1, 3))):
            text = broken_lines(random, text)
        content, done = text.encode("utf-8", "surrogatepass"), "its lines"
    elif kind == 3:
        changed = broken_value(random, values)
        content, done = (
            yaml.safe_dump(changed, allow_unicode=bool(random.integers(2))).encode("utf-8", "surrogatepass"),
            "a value",
        )
    else:
        flow = yaml.safe_dump(values, sort_keys=bool(random.integers(2)), default_flow_style=True, width=40)
        content, done = one(random, [flow, "# é\n" + text, json.dumps(values), "\ufeff" + text]).encode(), "nothing"
        judge = _same_recipe(values)
    file.write_bytes(content)
    if random.random() < 0.1:  # reached by another file
        (folder / "above.yaml").write_text(
            f"extends: {one(random, ['recipe.yaml', '[recipe.yaml]', './recipe.yaml'])}\n"
        )
        judge, file = None, folder / "above.yaml"
    return Case([*_reading(random, file, folder, judge)], f"a recipe: {done}", judge, [file], kind == 4)


def set_case(world: World, folder: Path, random: Generator) -> Case:
    values = world.values()
    resolved = _resolved(values)
    path = one(random, [path for path in places(resolved) if path])
    key = ".".join(map(str, path))
    if random.random() < 0.15:
        key = one(
            random,
            [
                f"{key}.x",
                f"{key}.0",
                key[:-1],
                "stages.².epochs",
                "stages.9.epochs",
                "",
                ".",
                f"{key}.",
                "é",
                key.upper(),
            ],
        )
    value = one(random, VALUES)
    if random.random() < 0.3:  # what may well be right
        now: Any = reduce(getitem, path, resolved)
        value = one(random, [now, now * 2, now + 1, now / 2]) if isinstance(now, int | float) else now
    text = one(random, SNIPPETS) if random.random() < 0.3 else value if isinstance(value, str) else json.dumps(value)
    override = f"{key}={text}" if random.random() < 0.97 else one(random, [key, "=", "", f"={text}"])
    if "\0" in override:  # no argument of a process can hold one
        override = override.replace("\0", "\\0")
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    judge = _says_number(key, text) if override == f"{key}={text}" else None
    command = _reading(random, file, folder, judge)
    return Case([*command, f"--set={override}"], f"--set {override[:60]}", judge, [file])


def _reading(random: Generator, file: Path, folder: Path, judge: Judge | None) -> list[str]:
    """A command that reads a recipe; the one that prints it where somebody judges that."""
    if judge or random.random() < 0.7:
        return ["train", str(file), "--dry-run", "--full"]
    if random.random() < 0.5:
        return ["ablate", str(file), "--dry-run"]
    return ["prepare", str(file), "--runs", str(folder / "runs")]


def _resolved(values: Any) -> Any:
    from calrec_lite.recipe import resolved
    from calrec_lite.recipe.file import check_recipe

    return resolved(check_recipe(values))


def _same_recipe(values: Any) -> Judge:
    def judge(out: str) -> str | None:
        return None if _resolved(yaml.safe_load(out)) == _resolved(values) else "another recipe than was written"

    return judge


def _says_number(key: str, text: str) -> Judge | None:
    """A number that is accepted must be the one its digits say."""
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
        return None

    def judge(out: str) -> str | None:
        value = yaml.safe_load(out)
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        right = value is None or isinstance(value, bool) or str(value) == text or float(value) == float(text)
        return None if right else f"{text} was read as {value!r}"

    return judge
