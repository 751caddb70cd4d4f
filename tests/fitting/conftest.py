"""A whole run on the tiny model whose lists are fused: its recipe, its data, the run, and its export."""

from pathlib import Path

import numpy as np
import pytest

from calrec_lite.export.bundle import export_run
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from tests.conftest import item_names
from tests.training.conftest import values

ITEMS = 30
FITTED_FILES = {"weights.json", "items.parquet", "tower.safetensors"}


def write_ring(folder: Path, users: int) -> Path:
    """The folder with shop.csv: users who go round a ring of items."""
    rng = np.random.default_rng(0)
    names = item_names(ITEMS)
    lines = ["user,item,time,title"]
    for user in range(users):
        start = rng.integers(ITEMS)
        steps = range(rng.integers(4, 12))
        lines += [f"{user},{(start + t) % ITEMS},{t},{names[(start + t) % ITEMS]}" for t in steps]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shop.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def fused_values(tiny_folder: Path, data: Path) -> dict:
    """A recipe of one domain and one stage whose lists are fused, as plain data."""
    recipe = values(tiny_folder, data)
    del recipe["domains"]["other"]
    recipe["stages"] = [{"name": "target", "domains": ["shop"], "max_steps": 2}]
    recipe["recommend"] = {"strategy": "fused", "rerank": 12, "beams": 15}
    recipe["fused"] = {"tower": {"dim": 16, "epochs": 2}, "likelihood_users": 60}
    recipe["evaluate"] = {"users": 20, "bootstrap": 50, "baselines": ["popularity"]}
    return recipe


@pytest.fixture(scope="session")
def ring_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough users for weights to be fitted."""
    return write_ring(tmp_path_factory.mktemp("ring"), users=70)


@pytest.fixture(scope="session")
def fused_run(tiny_folder: Path, ring_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.start(check_recipe(fused_values(tiny_folder, ring_data)), tmp_path_factory.mktemp("fused_runs"))
    with pytest.MonkeyPatch.context() as patch:  # a tiny model's vectors push no real one's out of the user's cache
        patch.setenv("CALREC_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        train_run(run)
    return run


@pytest.fixture(scope="session")
def fused_export(fused_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(fused_run, tmp_path_factory.mktemp("fused_exported") / "export")
