"""The recommending benchmark on the tiny model: every row makes whole lists, and the equal lists are equal."""

import sys
from pathlib import Path

import numpy as np
import pytest

from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from tests.conftest import item_names

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import recommend as benchmark
from recommend_tables import ROWS, table


@pytest.fixture(scope="module")
def bench(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> "benchmark.Bench":
    folder = tmp_path_factory.mktemp("recommend")
    rng = np.random.default_rng(0)
    names = item_names(40)
    starts = rng.integers(40, size=60)
    rows = [f"{u},{(s + t) % 40},{t},{names[(s + t) % 40]}" for u, s in enumerate(starts) for t in range(6)]
    (folder / "events.csv").write_text("\n".join(["user,item,time,title", *rows]) + "\n")
    values = benchmark.recipe_values(folder, 1)
    domain = {"interactions": str(folder / "events.csv"), "fields": {"Title": "title"}, "columns": {"time": "time"}}
    values |= {"base": {"model": str(tiny_folder), "load_in_4bit": False}, "domains": {"scientific": domain}}
    run = Run.start(check_recipe(values), folder)
    train_run(run)
    return benchmark.Bench(run, 25, "float32")


def test_every_row_makes_whole_lists_and_a_part_that_was_measured_is_kept(
    bench: "benchmark.Bench", tmp_path: Path
) -> None:
    rows = benchmark.measure_rows(bench, 1.0, tmp_path)
    assert list(rows) == list(ROWS)
    assert all(facts["valid_share"] == facts["distinct_share"] == 1 for facts in rows.values())
    assert benchmark.measure_rows(bench, 1.0, tmp_path) == rows
    assert set(benchmark.ratios(rows)) >= {"C_vs_A_users", "D_vs_B_users", "E_vs_A_users"}
    same = {name: facts["ndcg@10"]["value"] for name, facts in rows.items()}
    assert same["B"] == same["D strict"]
    assert len(table({"rows": rows}).splitlines()) == 2 + len(rows)


def test_equal_lists(bench: "benchmark.Bench") -> None:
    equal = benchmark.measure_equal(bench, 10)
    assert equal["lists_of_20_identical_up_to_ties"] == 1
    assert equal["lists_of_10_identical"] == 1
    assert equal["largest_score_difference"] < 1e-3
