"""Broken models, exports and runs."""

import json
import os
import shutil
from pathlib import Path

import yaml
from numpy.random import Generator

from tests.campaign.case import Case, Judge
from tests.campaign.odd import broken_bytes, broken_value, one
from tests.campaign.world import World


def model_case(world: World, folder: Path, random: Generator) -> Case:
    source = world.export if random.random() < 0.75 else world.base
    copy = _linked(source, folder / "model")
    judge, done = None, ""
    if random.random() < 0.25:
        done = _broken_weights(random, copy / "model.safetensors")
        judge = _never(f"{done}, and nothing was said")
    else:
        done = _broken_file(random, one(random, sorted(f for f in copy.rglob("*") if f.is_file())))
    if source == world.base:
        if random.random() < 0.5:
            adapter = world.run / "1-target" / "adapter"
            return Case(["merge", str(copy), str(adapter), str(folder / "merged")], f"a base: {done}", judge)
        recipe = folder / "recipe.yaml"
        values = world.values()
        values["base"]["model"] = str(copy)
        recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
        return Case(["train", str(recipe), "--runs", str(folder / "runs")], f"a base: {done}", judge)
    strategy = one(random, ["fast", "fused", "beam", "sample", "dense", "rerank"])
    if strategy == "fast":  # does not look at the LLM
        judge = None
    return Case(["recommend", str(copy), "red pen", "--strategy", strategy], f"an export: {done}", judge)


def run_case(world: World, folder: Path, random: Generator) -> Case:
    copy = _linked(world.run, folder / "runs" / "tiny")
    file = one(random, sorted(f for f in copy.rglob("*") if f.is_file()))
    done = f"{file.relative_to(copy)}: {_broken_file(random, file)}"
    commands = [
        ["evaluate", str(copy), "--users", "5"],
        ["report", str(copy), "--no-reasons"],
        ["compare", str(copy), str(world.run)],
        ["export", str(copy), "--to", str(folder / "export")],
        ["export", str(copy), "--to", str(folder / "export"), "--adapter"],
        ["tune", str(copy), "--users", "20"],
        ["train", str(world.recipe), "--runs", str(copy.parent)],
        ["prepare", str(world.recipe), "--runs", str(copy.parent)],
    ]
    return Case(one(random, commands), f"a run: {done}")


def _never(problem: str) -> Judge:
    return lambda out: problem


def _linked(source: Path, to: Path) -> Path:
    """A copy whose files are hard links: none but a log is ever written into."""
    return Path(
        shutil.copytree(
            source, to, copy_function=lambda a, b: (shutil.copy2 if "log" in Path(a).name else os.link)(a, b)
        )
    )


def _broken_file(random: Generator, file: Path) -> str:
    """Break one file of a folder, as what it is; returns what was done."""
    if random.random() < 0.06:
        file.unlink()
        return f"{file.name} removed"
    content, done = file.read_bytes(), "bytes"
    try:
        if file.suffix != ".json" or random.random() < 0.2:
            raise ValueError
        content, done = json.dumps(broken_value(random, json.loads(content))).encode(), "a value"
    except ValueError:
        content = broken_bytes(random, content)
    file.unlink()
    file.write_bytes(content)
    return f"{file.name}: {done}"


def _broken_weights(random: Generator, file: Path) -> str:
    """Weights that are not all there, or no numbers."""
    from safetensors.numpy import load_file, save_file

    content = file.read_bytes()
    tensors = load_file(file)
    name = one(random, sorted(tensors))
    file.unlink()
    kind = int(random.integers(5))
    if kind == 0:
        file.write_bytes(content[: len(content) // 2])
        return "half of the weights"
    if kind == 1:
        tensors[f"{name}x"] = tensors.pop(name)
    elif kind == 2:
        del tensors[name]
    elif kind == 3:
        tensors[name] = tensors[name] * float("nan")
    else:
        tensors[name] = tensors[name][:-1]
    save_file(tensors, file, {"format": "pt"})
    return f"{name} {('', 'renamed', 'taken out', 'no numbers', 'of another shape')[kind]}"
