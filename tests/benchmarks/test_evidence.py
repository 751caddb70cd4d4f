"""The evidence benchmark's grid, and its ratios from the summary of an ablation."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import evidence
import evidence_sasrec
import readme

from calrec_lite.ablation.grid import plan
from calrec_lite.ablation.run import ablate
from calrec_lite.evaluate.store import read_metrics
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.measure.cases import build_cases
from calrec_lite.measure.metrics import ndcg_at, ranks_from_lists
from calrec_lite.recipe.file import check_recipe
from calrec_lite.recommend import Recommender
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
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
    def metrics(ndcg: float, recall: float = 0.1) -> dict:
        return {"ndcg@10": {"value": ndcg}, "recall@1": {"value": recall}}

    both = ("joint", "target")
    rows = {
        ("full", *both): metrics(0.12, 0.06),
        ("full", "joint"): metrics(0.05),
        ("full", "target"): metrics(0.1),
        ("no_contrast", *both): metrics(0.08),
        ("softmax_vocabulary", *both): metrics(0.06),
    }
    base = {"transitions": metrics(0.08), "sasrec": metrics(0.06, 0.04)}
    rerank = {("full", *both): metrics(0.16), ("full", "target"): metrics(0.2), ("no_contrast", *both): metrics(0.04)}
    mixed = metrics(0.24, 0.08)
    values, by = evidence.ratios(rows, rerank, mixed, base)
    assert {key: round(value, 3) for key, value in values.items()} == {
        "ndcg_vs_transitions": 3.0,
        "ndcg_vs_sasrec": 4.0,
        "recall1_vs_transitions": 0.8,
        "recall1_vs_sasrec": 2.0,
        "rerank_ndcg_vs_transitions": 2.0,
        "rerank_ndcg_vs_sasrec": 2.667,
        "rerank_recall1_vs_transitions": 1.0,
        "rerank_recall1_vs_sasrec": 2.5,
        "beam_ndcg_vs_transitions": 1.5,
        "beam_ndcg_vs_sasrec": 2.0,
        "beam_recall1_vs_transitions": 0.6,
        "beam_recall1_vs_sasrec": 1.5,
        "two_stage_vs_stage2_ndcg": 1.2,
        "two_stage_vs_stage1_ndcg": 2.4,
        "contrastive_vs_none_ndcg": 1.5,
        "catalogue_vs_vocabulary_ndcg": 2.0,
        "rerank_two_stage_vs_stage2_ndcg": 0.8,
        "rerank_contrastive_vs_none_ndcg": 4.0,
    }
    alone = {evidence.FINAL: rows[evidence.FINAL]}
    assert by["ndcg_vs_sasrec"] == "rerank with transitions"
    assert by["beam_recall1_vs_sasrec"] == by["two_stage_vs_stage2_ndcg"] == "beam"
    assert by["rerank_two_stage_vs_stage2_ndcg"] == "rerank"
    only_final, _ = evidence.ratios(alone, alone, mixed, base)
    assert all(key.endswith(("_vs_transitions", "_vs_sasrec")) for key in only_final)


def test_the_file_on_a_tiny_model(
    tiny_folder: Path, encoder_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells, lists by rerank, every comparison, and the page's tables from the file."""
    recipe = check_recipe(
        {
            "name": "tiny",
            "base": {"model": str(tiny_folder), "dtype": "float32", "load_in_4bit": False},
            "domains": ring_domains(data),
            "text": {"max_items": 6},
            "stages": [
                {"name": "joint", "domains": ["shop", "other"], "max_steps": 1},
                {"name": "target", "domains": ["shop"], "max_steps": 1},
            ],
            "recommend": {"strategy": "beam"},
            "evaluate": {
                "baselines": ["transitions", "sasrec"],
                "bootstrap": 50,
                "sasrec": {"epochs": 2},
                "minilm": {"model": str(encoder_folder), "latest": [1, 2]},
            },
            "ablate": {
                "stages": [[], ["target"]],
                "variants": {"no_contrast": {"loss.alpha": 0.0, "loss.beta": 0.0}},
                "crossed": [],
                "steps": 4,
            },
        }
    )
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    options = argparse.Namespace(runs=tmp_path / "runs", target="scientific")
    evidence.write(recipe, ablate(recipe, options.runs), options)
    found = json.loads((tmp_path / "benchmarks" / "results" / "evidence_scientific.json").read_text())
    assert found["command"] == "python benchmarks/evidence.py --target scientific --steps 4"
    cell = tmp_path / "runs" / "tiny-ablation" / "full.joint.target.seed0"
    measured = read_metrics(cell / "evaluation")["systems"]
    ndcg = {name: of["ndcg@10"]["value"] for name, of in measured.items()}
    for name in ("rerank", "with_transitions"):
        assert measured[name] == found["rerank"][name]["metrics"]
    assert found["rerank"]["rerank"]["transitions"] == 0
    best = max(tried["ndcg10"] for tried in found["rerank"]["validation"])
    assert found["rerank"]["with_transitions"]["ndcg10"] == best
    assert found["rerank_minus_beam"]["ndcg@10"]["difference"] == pytest.approx(ndcg["rerank"] - ndcg["final"])
    sasrec = found["baselines"]["sasrec"]["metrics"]["ndcg@10"]["value"]
    for lists, system in evidence.LISTS.items():
        beside = found["final_minus_baselines"][lists]["sasrec"]["ndcg@10"]
        assert beside["difference"] == pytest.approx(ndcg[system] - sasrec)
    assert found["ratios"]["ndcg_vs_sasrec"] == pytest.approx(ndcg["with_transitions"] / sasrec)
    by_cell = {(row["variant"], *row["stages"]): row for row in found["rerank_by_cell"]}
    assert set(by_cell) == {("full",), evidence.FINAL, ("full", "target"), ("no_contrast", "joint", "target")}
    for key, row in by_cell.items():
        less = row["rerank"]["metrics"]["ndcg@10"]["value"]
        more = row["rerank"]["final_minus"]
        assert (more is None) == (key == evidence.FINAL)
        assert more is None or more["ndcg@10"]["difference"] == pytest.approx(ndcg["rerank"] - less)
    assert set(found["baselines"]) == {"transitions", "sasrec"}  # the untouched base's lists by rerank are none
    train_run(Run.open(cell))  # the merged weights are gone
    tuned = cell_recommender(cell, found["rerank"]["with_transitions"])
    cases = build_cases(Run.open(cell).domain("shop"), "test", None, 0)
    again = ranks_from_lists(tuned.rank(cases.histories, 10, True), cases.targets)
    assert ndcg["with_transitions"] == pytest.approx(float(ndcg_at(again, 10).mean()))  # as a user would get them
    control = found["minilm_with_transitions"]
    less = ndcg["with_transitions"] - control["metrics"]["ndcg@10"]["value"]
    assert control["final_minus"]["ndcg@10"]["difference"] == pytest.approx(less)
    assert control["metrics"]["ndcg@10"]["value"] > 0.5  # users go round a ring: transitions know it
    facts = Run.open(cell).stage_metrics()
    assert found["validation_nats"][cell.name] == {name: own["valid_nats_after"] for name, own in facts.items()}
    assert found["validation_nats"]["untouched"] == {}
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert f"`ndcg_vs_sasrec` (rerank with transitions): {ndcg['with_transitions'] / sasrec:.3g}" in readme.evidence()
    assert f"{ndcg['with_transitions']:.4f}" in readme.evidence_systems()
    measured_anew(found, tmp_path)


def measured_anew(found: dict, root: Path) -> None:
    """Another SASRec changes what is said of it, unpaired, and nothing else; the earlier one stays, paired."""
    old = found["baselines"]["sasrec"]["metrics"]
    half = {metric: {key: value / 2 for key, value in of.items()} for metric, of in old.items()}
    measured = {key: found[key] for key in ("date", "hardware", "versions")} | {"command": "python anew.py"}
    changed = evidence_sasrec.with_sasrec(found, half, measured)
    for name, value in found["ratios"].items():
        assert changed["ratios"][name] == pytest.approx(value * (2 if name.endswith("_vs_sasrec") else 1))
    for lists in evidence.LISTS:
        beside, before = changed["final_minus_baselines"][lists], found["final_minus_baselines"][lists]
        assert beside["transitions"] == before["transitions"]
        assert beside["earlier sasrec"] == before["sasrec"]
        more = before["sasrec"]["ndcg@10"]["difference"] + old["ndcg@10"]["value"] / 2
        assert beside["sasrec"]["ndcg@10"]["difference"] == pytest.approx(more)
        assert beside["sasrec"]["ndcg@10"]["low"] < more < beside["sasrec"]["ndcg@10"]["high"]
    again = evidence_sasrec.with_sasrec(changed, old, measured)
    assert again["baselines"]["earlier sasrec"] == found["baselines"]["sasrec"]
    assert again["ratios"] == pytest.approx(found["ratios"])
    (root / "benchmarks" / "results" / "evidence_scientific.json").write_text(json.dumps(changed))
    assert "sasrec, not paired" in readme.evidence()
    assert "sasrec: `python anew.py`" in readme.evidence_systems()


def test_an_unpaired_difference() -> None:
    own, other = ({"ndcg@10": {"value": v, "low": v - 0.0196, "high": v + 0.0196}} for v in (0.1, 0.05))
    found = evidence_sasrec.unpaired(own, other)["ndcg@10"]
    # Two standard errors of .01 make one of .01414.
    assert found["low"] == pytest.approx(0.05 - 1.96 * 0.01414, abs=1e-5)
    assert found["high"] == pytest.approx(0.05 + 1.96 * 0.01414, abs=1e-5)
    assert found["p"] == pytest.approx(2 * norm.sf(0.05 / 0.01414), rel=1e-2)


def cell_recommender(folder: Path, chosen: dict) -> Recommender:
    run = Run.open(folder)
    weights = {"rerank": evidence.CANDIDATES} | {key: chosen[key] for key in ("fusion", "transitions")}
    options = run.recipe.recommend.model_copy(update={"strategy": "rerank", **weights})
    return open_recommender(Run(run.recipe.model_copy(update={"recommend": options}), folder), run.final())
