"""The evidence benchmark's grid, and its ratios from the summary of an ablation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import evidence

from calrec_lite.evaluate.results import read_metrics
from calrec_lite.evaluate.systems import evaluate_run
from calrec_lite.recipe_file import check_recipe
from calrec_lite.train.cells import plan
from calrec_lite.train.run import Run
from calrec_lite.train.stage import train_run
from tests.conftest import ring_domains


def test_the_grid_holds_the_papers_claims_and_every_cell_has_the_same_budget() -> None:
    recipe = check_recipe(evidence.recipe_values(Path("data"), "scientific", {"steps": 600}, 2000))
    cells = {cell.name.rpartition(".")[0] or cell.name: cell for cell in plan(recipe)}
    assert set(cells) == {
        "untouched",
        *(f"full.{stages}" for stages in ("joint", "target", "joint.target")),
        "no_contrast.joint.target",
        "softmax_vocabulary.joint.target",
    }
    trained = [cell for cell in cells.values() if cell.stages]
    assert {sum(stage.max_steps or 0 for stage in cell.recipe.stages) for cell in trained} == {600}
    assert all(cell.recipe.target == "scientific" for cell in cells.values())
    assert cells["untouched"].recipe.evaluate.baselines == evidence.BASELINES


def test_on_office_the_final_recipe_is_run_as_it_is_on_scientific() -> None:
    budget = {"steps": 600}
    cells = [plan(check_recipe(evidence.recipe_values(Path("data"), t, budget, 2000))) for t in evidence.TARGETS]
    of_scientific, of_office = ({cell.name: cell.recipe for cell in found} for found in cells)
    assert set(of_office) == {"untouched", "full.joint.target.seed0"}
    for name, recipe in of_office.items():
        for room in ("base", "text", "loss", "optim", "recommend"):
            assert getattr(recipe, room) == getattr(of_scientific[name], room)


def test_ratios() -> None:
    def row(variant: str, stages: list[str], ndcg: float, recall: float = 0.1) -> dict:
        return {"variant": variant, "stages": stages, "metrics": metrics(ndcg, recall)}

    def metrics(ndcg: float, recall: float = 0.1) -> dict:
        return {"ndcg@10": {"value": ndcg}, "recall@1": {"value": recall}}

    both = ["joint", "target"]
    results = {
        "rows": [
            row("full", [], 0.01),
            row("full", both, 0.12, 0.06),
            row("full", ["joint"], 0.05),
            row("full", ["target"], 0.1),
            row("no_contrast", both, 0.08),
            row("no_contrast", ["target"], 0.5),
            row("softmax_vocabulary", both, 0.06),
        ],
        "baselines": {"transitions": {"metrics": metrics(0.08)}, "sasrec": {"metrics": metrics(0.06, 0.04)}},
    }
    assert {key: round(value, 3) for key, value in evidence.ratios(results).items()} == {
        "ndcg_vs_transitions": 1.5,
        "ndcg_vs_sasrec": 2.0,
        "recall1_vs_sasrec": 1.5,
        "two_stage_vs_stage2_ndcg": 1.2,
        "contrastive_vs_none_ndcg": 1.5,
        "catalogue_vs_vocabulary_ndcg": 2.0,
    }
    del results["rows"][2:]
    assert set(evidence.ratios(results)) == {"ndcg_vs_transitions", "ndcg_vs_sasrec", "recall1_vs_sasrec"}


def test_the_final_models_lists_by_rerank_are_measured_beside_its_own(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    values = {
        "name": "tiny",
        "base": {"model": str(tiny_folder), "dtype": "float32", "load_in_4bit": False},
        "domains": ring_domains(data),
        "text": {"max_items": 6},
        "stages": [{"name": "target", "domains": ["shop"], "max_steps": 3}],
        "evaluate": {"baselines": ["popularity"], "bootstrap": 50},
    }
    run = Run.start(check_recipe(values), tmp_path)
    train_run(run)
    evaluate_run(run)
    found = evidence.reranked(run.folder, users=20)
    assert found["fusion"] in [tried["fusion"] for tried in found["validation"]]
    measured = read_metrics(run.evaluation)["systems"]
    assert set(measured) == {"popularity", "base", "final", "rerank"}
    assert measured["rerank"] == found["metrics"]
    assert measured["rerank"] != measured["final"]
    assert evidence.reranked(run.folder, users=20) == found  # once
