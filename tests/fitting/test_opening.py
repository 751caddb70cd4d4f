"""What is fitted to a run's model: made once, kept beside the stage, made anew where it has to be."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import calrec_lite.evaluate.evaluate_run as evaluate_module
import calrec_lite.fitting.opening as opening_module
from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines.fast import by_parts
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.export.bundle import export_run
from calrec_lite.fitting.opening import is_fitted, open_recommender, refit
from calrec_lite.package.save import copy_model
from calrec_lite.recipe.file import check_recipe
from calrec_lite.recommend.fusion import Fusion
from calrec_lite.recommend.readings import PARTS
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from tests.fitting.conftest import FITTED_FILES, ITEMS, fused_values, write_ring

Copied = Callable[..., Run]
READINGS = ("fast", "vectors", "text", "beam")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copied(fused_run: Run, tmp_path: Path) -> Copied:
    """A copy of the run that may be damaged, perhaps with other keys in its sections: `copied(fused={...})`."""

    def copy(**sections: Mapping[str, object]) -> Run:
        folder = tmp_path / "runs" / "tiny"
        if not folder.is_dir():
            shutil.copytree(fused_run.folder, folder)
        recipe = fused_run.recipe
        changes = {name: getattr(recipe, name).model_copy(update=keys) for name, keys in sections.items()}
        return Run(recipe.model_copy(update=changes), folder)

    return copy


def opened(run: Run) -> Fusion:
    """What the lists of the run's last stage are made of."""
    fusion = open_recommender(run, run.final()).strategies.fusion
    assert fusion is not None
    return fusion


def place(run: Run) -> Path:
    return run.folder / "fitted" / "1-target"


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def written(run: Run) -> dict:
    return json.loads((place(run) / "weights.json").read_text())


def assert_same(one: Fusion, other: Fusion) -> None:
    assert one.fast == other.fast
    assert one.fused == other.fused
    assert torch.equal(one.readings.text, other.readings.text)
    assert torch.equal(one.readings.whitening[0].matrix, other.readings.whitening[0].matrix)
    other_state = other.readings.tower.state_dict()
    assert all(torch.equal(value, other_state[name]) for name, value in one.readings.tower.state_dict().items())


def test_training_leaves_what_lists_need(fused_run: Run) -> None:
    assert {path.name for path in (fused_run.folder / "fitted").iterdir()} == {"1-target"}
    assert set(times(place(fused_run))) == {*FITTED_FILES, "fitted_to.json", "manifest.json"}
    weights = written(fused_run)
    assert set(weights["fast"]) == {*PARTS} - {"repeats"}  # seen items are masked
    assert set(weights["fused"]) == {*weights["fast"], "likelihood"}
    assert weights["fast_fit"]["users"] == 70
    assert 10 <= weights["fused_fit"]["users"] <= 60
    for name, weight in weights["fused"].items():
        low, high = weights["fused_fit"]["intervals"][name]
        assert low < weight < high
    assert len(weights["tower"]["epochs"]) == 2
    identity = json.loads((place(fused_run) / "fitted_to.json").read_text())
    assert identity["domain"] == fused_run.domain("shop").fingerprint
    assert pq.read_table(place(fused_run) / "items.parquet").num_rows == ITEMS


def test_nothing_is_fitted_twice(fused_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(place(fused_run))
    train_run(Run.open(fused_run.folder))
    opened(fused_run)
    assert times(place(fused_run)) == before
    assert "fitting" not in capsys.readouterr().out


def test_just_fitted_is_the_same_as_opened_later(copied: Copied) -> None:
    run = copied()
    shutil.rmtree(place(run))
    assert_same(opened(run), opened(run))


@pytest.mark.parametrize("name", [*sorted(FITTED_FILES), "fitted_to.json"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_what_is_damaged_is_fitted_anew_and_is_the_same(fused_run: Run, copied: Copied, name: str, damage: str) -> None:
    run = copied()
    file = place(run) / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert not is_fitted(run, run.final())
    assert_same(opened(run), opened(fused_run))
    assert is_fitted(run, run.final())
    assert set(times(place(run))) == {*FITTED_FILES, "fitted_to.json", "manifest.json"}
    assert {path.name for path in place(run).parent.iterdir()} == {"1-target"}


@pytest.mark.parametrize(
    "changed",
    [
        {"fused": {"users": 60}},
        {"recommend": {"rerank": 20}},
        {"recommend": {"exclude_seen": False}},
        {"recommend": {"score": "vocabulary"}},
    ],
    ids=str,
)
def test_another_recipe_is_fitted_anew(fused_run: Run, copied: Copied, changed: dict) -> None:
    run = copied(**changed)
    assert not is_fitted(run, run.final())
    fusion = opened(run)
    assert fusion.facts["fused_fit"] != opened(fused_run).facts["fused_fit"]
    before = times(place(run))
    opened(copied(**changed))
    assert times(place(run)) == before
    opened(copied())
    assert times(place(run)) != before


def test_another_tower_is_trained_anew(fused_run: Run, copied: Copied) -> None:
    run = copied(fused={"tower": fused_run.recipe.fused.tower.model_copy(update={"dim": 8})})
    assert opened(run).readings.tower.memory.shape == (ITEMS, 8)
    assert written(run)["fast"] != written(fused_run)["fast"]


def test_what_an_earlier_version_fitted_of_fewer_parts_is_fitted_anew(copied: Copied) -> None:
    run = copied()
    identity = json.loads((place(run) / "fitted_to.json").read_text())
    for earlier in ({**identity, "parts": identity["parts"][:-1]}, {k: v for k, v in identity.items() if k != "parts"}):
        (place(run) / "fitted_to.json").write_text(json.dumps(earlier))
        assert not is_fitted(run, run.final())
        opened(run)
        assert is_fitted(run, run.final())


def test_keys_that_decide_nothing_of_it_leave_it_alone(copied: Copied) -> None:
    run = copied(recommend={"k": 5, "beams": 7, "strategy": "fast"}, evaluate={"users": 5})
    before = times(place(run))
    opened(run)
    assert times(place(run)) == before


def test_other_weights_of_the_model_are_fitted_anew(copied: Copied, tiny_folder: Path) -> None:
    run = copied()
    before = times(place(run))
    merged = run.final()
    (merged / "model.safetensors").unlink()
    copy_model(tiny_folder, merged)
    run.stages[-1].record()  # else they would be damage
    opened(run)
    assert times(place(run)) != before


def test_killed_half_way_nothing_half_written_is_left(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both where nothing lay and where something older lies, which stays."""

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    run = copied()
    shutil.rmtree(place(run))
    with monkeypatch.context() as patch:
        patch.setattr(opening_module, "write_json", killed)  # of the last file
        with pytest.raises(KeyboardInterrupt):
            opened(run)
    assert not list(place(run).parent.iterdir())
    opened(run)
    older, other = times(place(run)), copied(fused={"users": 60})
    with monkeypatch.context() as patch:
        patch.setattr(Fusion, "save_weights", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(other)
    assert times(place(run)) == older
    assert {path.name for path in place(run).parent.iterdir()} == {"1-target"}
    opened(run)
    assert times(place(run)) == older


def test_fast_takes_what_was_fitted_for_fused_but_not_the_other_way(fused_run: Run, copied: Copied) -> None:
    fast = copied(recommend={"strategy": "fast"})
    before = times(place(fast))
    fusion = opened(fast)
    assert times(place(fast)) == before
    assert_same(fusion, opened(fused_run))
    shutil.rmtree(place(fast))
    assert opened(fast).fused is None
    assert written(fast)["fused"] is None
    assert written(fast)["fast"] == written(fused_run)["fast"]
    fused = copied()
    assert not is_fitted(fused, fused.final())
    assert_same(opened(fused), fusion)


def test_weights_fitted_anew_are_written_and_used(fused_run: Run, copied: Copied, tmp_path: Path) -> None:
    run = copied()
    before = times(place(run))
    old, fusion = refit(run, 55)
    assert times(place(run)) == before  # `tune --apply` writes them
    assert_same(opened(run), old)
    fusion.save_weights(place(run))
    assert fusion.facts["fast_fit"]["users"] == 55
    assert fusion.fast != opened(fused_run).fast
    after = times(place(run))
    assert {name for name in after if after[name] != before[name]} == {"weights.json"}
    assert_same(opened(run), fusion)
    assert written(run)["tower"] == written(fused_run)["tower"]
    exported = export_run(run, tmp_path / "export")
    for name in FITTED_FILES:
        assert (exported / "fitted" / name).read_bytes() == (place(run) / name).read_bytes()
    assert times(place(run)) == after


def test_weights_of_too_few_users_are_refused_and_the_old_ones_stay(copied: Copied) -> None:
    run = copied()
    before = (place(run) / "weights.json").read_bytes()
    with pytest.raises(InputError, match="validation users"):
        refit(run, 5)
    assert (place(run) / "weights.json").read_bytes() == before


def test_an_evaluation_uses_the_weights_that_are_there(copied: Copied) -> None:
    """By popularity alone every list goes from the most to the least bought item."""
    run = copied(evaluate={"base": False, "readings": []})
    only = {"popularity": 1.0}
    replace(opened(run), fast=only, fused={**only, "likelihood": 0.0}).save_weights(place(run))
    assert set(evaluate_run(run)["systems"]) == {"popularity", "final"}
    domain = run.domain("shop")
    bought = dict(zip(domain.catalogue.ids, domain.train_counts().tolist()))
    rows = pq.read_table(run.evaluation / "rankings.parquet").to_pylist()
    lists = [row["list"] for row in rows if row["system"] == "final"]
    assert len(lists) == 20
    for own in lists:
        counts = [bought[item] for item in own]
        assert counts == sorted(counts, reverse=True)


def test_every_system_and_each_reading_is_measured(copied: Copied) -> None:
    run = copied()
    systems = evaluate_run(run)["systems"]
    assert set(systems) == {
        "popularity",
        *(f"{m}{r}" for m in ("base", "final") for r in ("", *map("_{}".format, READINGS))),
    }
    assert {path.name for path in (run.folder / "fitted").iterdir()} == {"1-target", "base"}
    rows = pq.read_table(run.evaluation / "rankings.parquet").to_pylist()
    lists = {name: {row["user"]: row["list"] for row in rows if row["system"] == name} for name in systems}
    fusion, domain = opened(run), run.domain("shop")
    places = {item: n for n, item in enumerate(domain.catalogue.ids)}
    users = {name: u for u, name in enumerate(domain.sequences.users)}
    vectors = by_parts(fusion, domain, run.recipe, run.recipe.training_seed, ("tower", "recent", "text")).fusion
    for system, made in (("final_fast", fusion), ("final_vectors", vectors)):
        for user, own in lists[system].items():
            history = domain.sequences.items[slice(*domain.sequences.offsets[users[user] :][:2])][:-1]
            allowed = np.ones((1, ITEMS), np.bool_)
            allowed[0, history] = False
            assert [places[item] for item in own] == made.best([history], allowed, 10)[0].tolist()
    # A likelihood of a random model may have no weight: `base` and `final` are then by `fast`.
    assert len({json.dumps(own) for own in lists.values()}) >= len(systems) - 2, "two systems made the same lists"
    assert systems["final_fast"]["ndcg@10"]["value"] > systems["popularity"]["ndcg@10"]["value"]


def test_only_lists_by_the_llm_are_of_fewer_users_and_load_it(copied: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []
    load_model = opening_module.load_model

    def counting(folder: Path, *rest: Any) -> Any:
        loads.append(folder)
        return load_model(folder, *rest)

    monkeypatch.setattr(opening_module, "load_model", counting)
    run = copied(evaluate={"users": None, "model_users": 20})
    evaluate_run(run)
    rows = pq.read_table(run.evaluation / "rankings.parquet").to_pylist()
    users = Counter(row["system"] for row in rows)
    few = {f"{model}{reading}" for model in ("base", "final") for reading in ("", "_beam")}
    assert {name for name, count in users.items() if count == 20} == few
    assert len(set(users.values())) == 2
    assert len(loads) == len(few)


def test_what_is_the_recipes_own_way_is_not_measured_again(copied: Copied) -> None:
    run = copied(recommend={"strategy": "fast"}, evaluate={"readings": ["fast", "text"]})
    before = times(place(run))
    assert set(evaluate_run(run)["systems"]) == {"popularity", "base", "base_text", "final", "final_text"}
    assert times(place(run)) == before
    untrained = evaluate_run(run, trained=False, folder=run.folder / "before")
    assert set(untrained["systems"]) == {"popularity", "base", "base_text"}
    other = copied(recommend={"strategy": "beam"}, evaluate={"users": 3})
    assert set(evaluate_run(other)["systems"]) == {"popularity", "base", "final"}


def test_weights_fitted_between_two_halves_of_an_evaluation_begin_it_anew(
    copied: Copied, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(evaluate={"base": False, "readings": ["fast"]})

    def stopped(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    for fitted_between, again in ((False, False), (True, True)):
        with monkeypatch.context() as patch:
            patch.setattr(evaluate_module, "_one_reading", stopped)  # after `final`
            with pytest.raises(KeyboardInterrupt):
                evaluate_run(run)
        if fitted_between:
            refit(run, 55)[1].save_weights(place(run))
        capsys.readouterr()
        evaluate_run(run)
        assert ("final: measured already" not in capsys.readouterr().out) == again


@pytest.mark.parametrize("strategy", ["fused", "fast"])
def test_too_few_users_are_refused_before_any_training(tiny_folder: Path, tmp_path: Path, strategy: str) -> None:
    recipe = fused_values(tiny_folder, write_ring(tmp_path / "data", users=49))
    recipe["recommend"]["strategy"] = strategy
    run = Run.start(check_recipe(recipe), tmp_path)
    with pytest.raises(InputError, match="49 users have a validation case, and .* need 50: set recommend.strategy to"):
        train_run(run)
    assert not run.stages[0].folder.exists()
    assert not run.log.exists()


def test_what_was_fitted_goes_with_a_start_that_trained_nothing(copied: Copied) -> None:
    """Texts and the likelihood may be others by the next recipe, which none of the identities tells."""
    run = copied()
    shutil.rmtree(run.stages[0].folder)
    Run.start(run.recipe.model_copy(update={"seed": 9}), run.folder.parent)
    assert not (run.folder / "fitted").exists()


def test_what_was_fitted_and_changed_since_is_not_used(copied: Copied) -> None:
    run = copied()
    assert is_fitted(run, run.final())
    file = place(run) / "tower.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert not is_fitted(run, run.final())
    opened(run)
    assert is_fitted(run, run.final())
