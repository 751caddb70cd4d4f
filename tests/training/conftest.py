"""A whole run on the tiny model, made once: its recipe, its data, the run, and its export."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import calrec_lite.training.stage as stage_module
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.export.bundle import export_run
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from tests.conftest import ring_domains

STEPS = 6  # too few to learn much: that training helps is shown on real weights in tests/real


def values(tiny_folder: Path, data: Path, **base) -> dict:
    """A recipe of two domains and two stages, as plain data."""
    return {
        "name": "tiny",
        "base": {
            "model": str(tiny_folder),
            "dtype": "float32",
            "load_in_4bit": False,
            "lora": {"r": 4},
            **base,
            "license": "mit",
        },
        "domains": ring_domains(data),
        "text": {"max_items": 6},
        "stages": [
            {"name": "joint", "domains": ["other", "shop"], "max_steps": STEPS},
            {"name": "target", "domains": ["shop"], "max_steps": STEPS},
        ],
        "optim": {"batch_size": 4, "micro_batch_size": 2, "save_every": 2, "log_every": 2, "learning_rate": 5e-3},
        "recommend": {"strategy": "beam", "beams": 15},
        "evaluate": {"users": 20, "bootstrap": 200},
    }


def train_until_merging(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were killed when the adapter is trained and its merged weights are not begun."""

    def killed(*arguments: object, **options: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "merge_adapter", killed)
        with pytest.raises(KeyboardInterrupt):
            train_run(run)


@pytest.fixture(scope="session")
def trained(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.start(check_recipe(values(tiny_folder, data)), tmp_path_factory.mktemp("runs"))
    train_run(run)
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="session")
def exported(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What was measured, and the folder that was exported afterwards."""
    results = evaluate_run(trained)
    return results, export_run(trained, tmp_path_factory.mktemp("exported") / "export")
