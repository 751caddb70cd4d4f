"""Baselines measured before training: on all users, and taken by the evaluation that comes later."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from calrec_lite.errors import InputError
from calrec_lite.evaluate.beforehand import (
    chosen_baselines,
    kept_baseline,
    measure_baselines,
)
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.evaluate.source import Measurable, recipe_of_domain
from calrec_lite.evaluate.tables import lead
from calrec_lite.measure.cases import build_cases
from calrec_lite.recipe import Recipe
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run

NAMES = ["popularity", "bm25_last", "transitions"]


def recipe(two_stages: dict[str, Any], **changes: Any) -> Recipe:
    evaluate = {"users": 20, "bootstrap": 100, "base": False, "baselines": NAMES, **changes.pop("evaluate", {})}
    return check_recipe({**two_stages, "evaluate": evaluate, **changes})


def without_speed(results: dict[str, Any]) -> dict[str, Any]:
    return {key: results[key] for key in ("domain", "protocol", "systems", "slices", "users")}


def test_an_evaluation_takes_them_and_gives_what_it_would_have_measured(
    two_stages: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = recipe(two_stages, evaluate={"duplicates": "expected"})
    alone, run = Run(asked, tmp_path / "alone"), Run(asked, tmp_path / "run")
    measured = evaluate_run(alone, trained=False)
    results = measure_baselines(run.folder, run.domain("shop"), asked, chosen_baselines(asked, False))
    assert results["protocol"]["users"] == 40  # all, not the 20 of the recipe
    assert list(results["systems"]) == NAMES
    capsys.readouterr()
    taken = evaluate_run(run, trained=False)
    said = capsys.readouterr().out
    assert [f"{name}: as `calrec-lite baselines` measured it" in said for name in NAMES] == [True] * 3
    assert without_speed(taken) == without_speed(measured)
    measure_baselines(run.folder, run.domain("shop"), asked, NAMES)
    assert capsys.readouterr().out.count("measured already") == 3


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"recommend": {"strategy": "beam", "exclude_seen": False}},
        {"evaluate": {"split": "validation"}},
        {"recommend": {"strategy": "beam", "k": 12, "beams": 12}},
        {"domains": "fewer"},
    ],
    ids=["seed", "seen", "split", "length", "data"],
)
def test_what_was_measured_otherwise_is_measured_again(
    change: dict[str, Any], two_stages: dict[str, Any], tmp_path: Path
) -> None:
    asked = recipe(two_stages)
    run = Run(asked, tmp_path)
    domain = run.domain("shop")
    measure_baselines(run.folder, domain, asked, ["popularity"])
    cases = build_cases(domain, "test", 20, 0)
    assert kept_baseline("popularity", run.folder, domain, asked, cases)
    assert kept_baseline("transitions", run.folder, domain, asked, cases) is None
    if change.get("domains"):
        shop = {**two_stages["domains"]["shop"], "max_users": 30}
        other = Run(recipe({**two_stages, "domains": {**two_stages["domains"], "shop": shop}}), tmp_path / "other")
        domain, now = other.domain("shop"), other.recipe
        cases = build_cases(domain, "test", 20, 0)
    else:
        now = recipe(two_stages, **change)
        cases = build_cases(domain, now.evaluate.split, 20, now.seed)
    assert kept_baseline("popularity", run.folder, domain, now, cases) is None
    again = measure_baselines(run.folder, domain, now, ["popularity"])  # what is of no use any more is replaced
    assert again["protocol"]["seed"] == now.seed
    assert kept_baseline("popularity", run.folder, domain, now, cases)


def test_settings_of_a_baseline_belong_to_it(two_stages: dict[str, Any], encoder_folder: Path, tmp_path: Path) -> None:
    minilm = {"model": str(encoder_folder), "valid_users": 20}
    asked = recipe(two_stages, evaluate={"baselines": ["minilm"], "minilm": minilm})
    run = Run(asked, tmp_path)
    domain = run.domain("shop")
    assert chosen_baselines(asked, False) == [*NAMES, "minilm"]
    measure_baselines(run.folder, domain, asked, ["popularity", "minilm"])
    changed = recipe(two_stages, evaluate={"baselines": ["minilm"], "minilm": {**minilm, "latest": [2]}})
    cases = build_cases(domain, "test", 20, 0)
    assert kept_baseline("minilm", run.folder, domain, asked, cases)
    assert kept_baseline("minilm", run.folder, domain, changed, cases) is None
    assert kept_baseline("popularity", run.folder, domain, changed, cases)


def test_one_that_cannot_be_had_is_left_out_unless_the_recipe_names_it(
    two_stages: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = {"minilm": {"model": str(tmp_path / "no-encoder")}}
    asked = recipe(two_stages, evaluate=nowhere)
    run = Run(asked, tmp_path / "run")
    assert {"minilm", "sasrec", "counts_fast"} <= set(chosen_baselines(asked, True))
    results = measure_baselines(run.folder, run.domain("shop"), asked, ["popularity", "minilm"])
    assert list(results["systems"]) == ["popularity"]
    assert "minilm: left out: evaluate.minilm.model" in capsys.readouterr().out
    named = recipe(two_stages, evaluate={**nowhere, "baselines": ["minilm"]})
    with pytest.raises(InputError, match="no-encoder"):
        measure_baselines(run.folder, run.domain("shop"), named, ["minilm"])


def test_baselines_of_seen_items_where_repeats_are_allowed_alone(two_stages: dict[str, Any]) -> None:
    asked = recipe(two_stages, evaluate={"baselines": ["last_item", "personal_popularity"]})
    assert chosen_baselines(asked, False) == NAMES
    asked = recipe(two_stages, recommend={"strategy": "beam", "exclude_seen": False})
    every = ["popularity", "last_item", "personal_popularity", "bm25_last", "transitions"]
    assert chosen_baselines(asked, False) == every


def test_a_prepared_domain_alone_is_enough(two_stages: dict[str, Any], tmp_path: Path) -> None:
    run = Run(recipe(two_stages, evaluate={"users": 2000, "bootstrap": 2000}), tmp_path / "run")
    domain = run.domain("shop")
    alone = shutil.copytree(run.folder / "domains" / "shop", tmp_path / "shop")
    results = measure_baselines(alone, domain, recipe_of_domain(alone), NAMES)
    assert json.loads((alone / "baselines" / "metrics.json").read_text())["systems"] == results["systems"]
    assert without_speed(results) == without_speed(evaluate_run(run, trained=False))
    with pytest.raises(InputError, match=r"domain\.json"):
        recipe_of_domain(tmp_path)
    assert Measurable.open(str(alone), [], tmp_path).place == alone
    opened = Measurable.open(str(run.folder / "domains" / "shop"), [], tmp_path)
    assert (opened.place, opened.recipe.name) == (run.folder, "shop")  # prepared in a run that holds no recipe yet
    started = Run.start(run.recipe, tmp_path / "started")
    started.prepare("shop")
    for source in (started.folder, started.folder / "domains" / "shop"):
        opened = Measurable.open(str(source), [], tmp_path)
        assert (opened.place, opened.recipe) == (started.folder, run.recipe)
    with pytest.raises(InputError, match="--set: for a recipe file"):
        Measurable.open(str(alone), ["seed=1"], tmp_path)
    with pytest.raises(InputError, match="no run here"):
        Measurable.open(str(tmp_path), [], tmp_path)


def test_the_lead_over_popularity() -> None:
    def results(**values: tuple[float, float, float]) -> dict[str, Any]:
        metric = {n: dict(zip(("low", "value", "high"), v)) for n, v in values.items()}
        return {"systems": {n: {"ndcg@10": m} for n, m in metric.items()}}

    popular = (0.1, 0.2, 0.3)
    assert "2.50 times popularity: histories tell" in lead(results(popularity=popular, other=(0.4, 0.5, 0.6)))
    assert "not told apart" in lead(results(popularity=popular, other=(0.2, 0.4, 0.6)))
    assert "popularity is best" in lead(results(popularity=popular, other=(0.1, 0.1, 0.1)))
    assert "best with" in lead(results(popularity=(0, 0, 0), other=(0, 0.1, 0.2)))
