"""What is planned is what training then does."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.rows import Rows, training_rows
from calrec_lite.model.base import add_adapter, load_model
from calrec_lite.model.skeleton import parameters, resting_bytes, skeleton
from calrec_lite.planning import weighing
from calrec_lite.planning.plan import plan
from calrec_lite.planning.sizes import count_rows, in_gb, in_time, stage_size
from calrec_lite.recipe import Base, Recipe
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.text.encoding import Encoder
from calrec_lite.training import vocabulary
from calrec_lite.training.sampler import StepSampler
from calrec_lite.training.stage import stage_rows
from tests.training.conftest import values


def lines(run: Run, probe: bool = False) -> dict[str, list[str]]:
    """The plan by the words that its lines begin with."""
    found: dict[str, list[str]] = {}
    for line in plan(run, probe):
        word, _, rest = line.partition(" ")
        found.setdefault(word, []).append(rest.strip())
    return found


@pytest.fixture
def recipe(tiny_folder: Path, data: Path) -> Recipe:
    return check_recipe(values(tiny_folder, data))


@pytest.mark.parametrize("windows", ["last", "all"])
@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("max_items", [2, 3, 6, 20])
def test_rows_are_counted_without_a_tokenizer(
    windows: str,
    targets: str,
    max_items: int,
    recipe: Recipe,
    domain: Domain,
    catalogue: EncodedCatalogue,
    encoder: Any,
) -> None:
    text = recipe.text.model_copy(update={"windows": windows, "max_items": max_items})
    loss = recipe.loss.model_copy(update={"targets": targets})
    rows = training_rows(domain, catalogue, Encoder(encoder.tokenizer, text), loss)
    changed = recipe.model_copy(update={"text": text, "loss": loss})
    assert count_rows(domain, changed) == len(rows.start)
    stage = recipe.stages[1].model_copy(update={"max_steps": None, "epochs": 2.0})
    size = stage_size(stage, {"shop": domain}, changed)
    assert size.steps == 2 * len(StepSampler(Rows([rows], encoder), recipe.optim.batch_size, 0))


def test_it_says_what_training_then_does(recipe: Recipe, tmp_path: Path, trained: Run) -> None:
    run = Run(recipe, tmp_path / "tiny")
    said = lines(run)
    assert not run.folder.exists()
    assert [line.partition(":")[0] for line in said["data"]] == ["shop", "other"]
    info = trained.domain("shop").info["statistics"]
    assert f"{info['users']} users, {info['items']} items, {info['events']} events" in said["data"][0]
    assert "6 steps" in said["stage"][0]
    assert "128" not in said["stage"][0]
    log = [entry for entry in trained.log_entries() if "tokens_per_second" in entry]
    tokens = {
        line.split(":")[0]: int(re.findall(r"about ([\d,]+)", line)[0].replace(",", "")) for line in said["tokens"]
    }
    for name, stage in (("joint", "1-joint"), ("target", "2-target")):
        entries = [e for e in log if e["stage"] == stage]
        seconds = [entries[0]["seconds"], *(b["seconds"] - a["seconds"] for a, b in pairwise(entries))]
        counted = sum(e["tokens_per_second"] * s for e, s in zip(entries, seconds)) / 6
        assert tokens[name] == pytest.approx(counted, rel=0.15)
    assert "96,128 weights in float32" in said["base"][0]
    assert "at most" in said["memory"][0]
    assert "--probe" in said["time"][0]
    assert "free" in said["disk"][0]


def test_a_probe_measures_and_leaves_nothing(recipe: Recipe, tmp_path: Path) -> None:
    run = Run(recipe, tmp_path / "tiny")
    run.prepare("shop")
    before = sorted(tmp_path.rglob("*"))
    said = lines(run, probe=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert "in the trial, 2 rows at once" in said["memory"][0]
    assert re.match(r"joint: \d+ s, [\d.]+ seconds a step, and \d+ s of validation", said["time"][0])
    assert "in all" in said["time"][-1]


def test_what_a_gpu_spares_of_the_vocabulary_is_counted(
    recipe: Recipe, tmp_path: Path, trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, told that it is trimmed: the plan's weights are less by what the trainer frees."""
    monkeypatch.setattr(weighing, "in_gb", lambda count: f"{count:.0f}")

    def resting() -> int:
        (said,) = lines(Run(recipe, tmp_path / "tiny"))["memory"]
        return int(re.findall(r"most: (\d+) for weights", said)[0])

    whole = resting()
    monkeypatch.setattr(vocabulary, "trims", lambda device: True)
    model = add_adapter(load_model(trained.base, recipe.base), recipe.base)
    spared = []
    for stage in recipe.stages:
        rows = stage_rows(trained, stage, [trained.domain(name) for name in stage.domains])
        spared.append(vocabulary.Vocabulary(model, rows, recipe.loss, torch.device("cpu")).spared_bytes)
    assert resting() == whole - min(spared) < whole


def test_stages_that_are_done_and_runs_of_others(trained: Run, tiny_folder: Path, data: Path) -> None:
    said = lines(trained)
    assert said == {"data": said["data"], "stage": ["1-joint: done already", "2-target: done already"]}
    assert len(said["data"]) == 1
    other = values(tiny_folder, data)
    other["loss"] = {"tau": 0.3}
    said = lines(Run(check_recipe(other), trained.folder))
    assert "holds a run that differs in loss" in said["WARNING:"][0]
    assert "6 steps" in said["stage"][0]


def test_what_is_not_here_is_said_or_refused(recipe: Recipe, tmp_path: Path) -> None:
    base = recipe.base.model_copy(update={"model": "nobody/nothing"})
    said = lines(Run(recipe.model_copy(update={"base": base}), tmp_path / "tiny"))
    assert "nobody/nothing is not here yet" in said["base"][0]
    assert said.keys() == {"data", "stage", "base"}
    gone = {name: spec.model_copy(update={"interactions": "gone.csv"}) for name, spec in recipe.domains.items()}
    with pytest.raises(InputError, match=r"gone\.csv: no such file"):
        lines(Run(recipe.model_copy(update={"domains": gone}), tmp_path / "tiny"))


def test_minutes_are_what_they_are(recipe: Recipe, tmp_path: Path) -> None:
    stages = [recipe.stages[1].model_copy(update={"max_steps": None, "minutes": 2.0})]
    said = lines(Run(recipe.model_copy(update={"stages": stages}), tmp_path / "tiny"), probe=True)
    assert "2 minutes; " in said["stage"][0]
    assert re.match(r"target: about [\d,]+ steps, ", said["time"][0])


@pytest.mark.parametrize("quantised", [False, True])
def test_the_skeleton_is_the_model(quantised: bool, tiny_folder: Path) -> None:
    base = Base(model=str(tiny_folder), dtype="float32", load_in_4bit=quantised)
    bones = skeleton(tiny_folder, base, "float32")
    real = add_adapter(load_model(tiny_folder, base, quantised=False), base)
    assert parameters(bones) == parameters(real)
    assert all(p.is_meta for p in bones.parameters())
    linear = sum(m.weight.numel() for n, m in real.named_modules() if n.endswith("base_layer"))
    frozen, trained = parameters(real)
    expected = 4 * (frozen - linear) + (0.56 if quantised else 4) * linear + 16 * trained
    assert resting_bytes(bones, base, "adamw_torch") == pytest.approx(expected, abs=1)
    assert resting_bytes(bones, base, "adamw_8bit") == pytest.approx(expected - 6 * trained, abs=1)
    assert next(bones.parameters()).dtype is torch.float32


def test_numbers_are_told_as_people_do() -> None:
    assert [in_gb(n) for n in (1, 2.5e6, 2.34e9, 1.6e10)] == ["1 MB", "3 MB", "2.3 GB", "16 GB"]
    assert [in_time(s) for s in (0.1, 61, 600, 9000)] == ["1 s", "61 s", "10 minutes", "2.5 hours"]
