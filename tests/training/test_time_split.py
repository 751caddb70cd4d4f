"""A run whose target is held out by time: from the raw file to the table and to a refused second start."""

from pathlib import Path

import numpy as np
import pytest

from calrec_lite.errors import InputError
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.evaluate.tables import table
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from tests.conftest import item_names

DAY = 86400


def test_a_run_by_time(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    names, draw = item_names(20), np.random.default_rng(0)
    lines = ["user,item,time,title"]
    for user in range(40):
        start = draw.integers(20)
        lines += [f"{user},{(start + day) % 20},{day * DAY},{names[(start + day) % 20]}" for day in range(10)]
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n")
    values = {
        "name": "by-time",
        "base": {"model": str(tiny_folder), "dtype": "float32", "load_in_4bit": False, "lora": {"r": 4}},
        "domains": {
            "shop": {
                "interactions": str(tmp_path / "shop.csv"),
                "fields": {"Title": "title"},
                "columns": {"time": "time"},
                "holdout": {"by": "time", "valid_from": "1970-01-06", "test_from": "1970-01-08"},
            }
        },
        "text": {"max_items": 6},
        "stages": [{"name": "target", "domains": ["shop"], "max_steps": 2}],
        "optim": {"batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3},
        "recommend": {"strategy": "beam", "beams": 12},
        "evaluate": {
            "bootstrap": 50,
            "base": False,
            "mrr_cut": 5,
            "duplicates": "expected",
            "baselines": ["popularity", "sasrec"],
            "sasrec": {"hidden": 8, "epochs": 2},
        },
    }
    run = Run.start(check_recipe(values), tmp_path / "runs")
    train_run(run)
    domain = run.domain("shop")
    assert domain.train_counts().sum() == 40 * 5
    assert run.stage_metrics()["1-target"]["valid_nats_after"] > 0
    results = evaluate_run(Run.open(run.folder))
    assert set(results["systems"]) == {"popularity", "sasrec", "final"}
    assert results["protocol"]["holdout"] == "global time split (validation from 1970-01-06, test from 1970-01-08)"
    assert results["protocol"]["tied_share"] == 0
    assert results["slices"]["final"]["history: 5-9"]["users"] == 40  # seven days before each target
    caption = table(results).splitlines()[-1]
    for said in ("global time split", "random order, expected credit", "MRR cut at 5", "0.0% of targets tied in time"):
        assert said in caption
    values["domains"]["shop"]["holdout"] = {"by": "leave_one_out"}  # type: ignore[index]
    with pytest.raises(InputError, match=r"another recipe \(it differs in domains\)"):
        Run.start(check_recipe(values), tmp_path / "runs")
