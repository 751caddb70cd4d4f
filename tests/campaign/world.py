"""What the campaign breaks: a tiny base, its data, a trained and measured run, its exports. Made once for each state of
the code."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from numpy.random import default_rng

if TYPE_CHECKING:
    from calrec_lite.run import Run

ROOT = Path(__file__).parents[2]
TITLES = [
    f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in "pen tea book box pot mat cup jar".split()
]


@dataclass(frozen=True)
class World:
    """Where things lie. Nothing below `folder` is ever changed: what is broken is a copy."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def table(self) -> Path:
        return self.folder / "data" / "shop.csv"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def values(self) -> dict[str, Any]:
        """What the recipe says."""
        return dict(yaml.safe_load(self.recipe.read_text(encoding="utf-8")))


def build(parent: Path, trained: bool = True) -> World:
    """The world for the code as it is: the one made before, or a new one in `parent`.

    Args:
        trained: with the run and the export, which take half a minute.
    """
    digest = hashlib.sha256()
    for file in sorted(f for folder in ("calrec_lite", "tests/campaign") for f in (ROOT / folder).rglob("*.py")):
        digest.update(file.read_bytes())
    world = World(parent / f"world-{digest.hexdigest()[:12]}")
    os.environ["CALREC_LITE_CACHE"] = str(world.folder / "cache")
    for name, make in (("raw", _make_raw), ("trained", _train))[: 2 if trained else 1]:
        whole = world.folder / f"{name} is whole"
        if not whole.is_file():
            make(world)
            whole.touch()
    return world


def _make_raw(world: World) -> None:
    """Users who go round a ring of items. Imports no torch: the short slice in `make test` needs no more than this."""
    shutil.rmtree(world.folder, ignore_errors=True)
    world.table.parent.mkdir(parents=True)
    random = default_rng(0)
    lines = ["user,item,time,title"]
    for user in range(70):
        start = int(random.integers(len(TITLES)))
        items = [(start + step) % len(TITLES) for step in range(int(random.integers(4, 12)))]
        lines += [f"u{user},i{item},{1_600_000_000 + t},{TITLES[item]}" for t, item in enumerate(items)]
    world.table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    domain = {"interactions": str(world.table), "columns": {"time": "time"}, "fields": {"Title": "title"}}
    values = {
        "name": "tiny",
        "base": {"model": str(world.base), "dtype": "float32", "load_in_4bit": False, "lora": {"r": 4}},
        "domains": {"shop": domain},
        "text": {"max_items": 6},
        "stages": [{"name": "target", "domains": ["shop"], "max_steps": 2}],
        "optim": {"batch_size": 4, "micro_batch_size": 2, "save_every": 1, "learning_rate": 5e-3},
        "recommend": {"rerank": 12, "beams": 15, "samples": 4},
        "fused": {"tower": {"dim": 16, "epochs": 2}, "likelihood_users": 60},
        "evaluate": {"users": 20, "bootstrap": 50, "baselines": ["popularity"]},
    }
    world.recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    _run(world).prepare("shop")


def _train(world: World) -> None:
    from calrec_lite.evaluate.evaluate_run import evaluate_run
    from calrec_lite.export.bundle import export_run
    from calrec_lite.training.stage import train_run
    from tests.conftest import save_tiny

    for folder in (world.base, world.export):
        shutil.rmtree(folder, ignore_errors=True)
    world.base.mkdir()
    save_tiny(world.base)
    run = _run(world)
    train_run(run)
    evaluate_run(run)
    export_run(run, world.export)


def _run(world: World) -> "Run":
    from calrec_lite.recipe.file import load_recipe
    from calrec_lite.run import Run

    return Run.start(load_recipe(world.recipe), world.folder / "runs")
