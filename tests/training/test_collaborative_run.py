"""A model trained with a user's own transitions in the prior: its lists, its export, and the same from Python."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from calrec_lite import CALRecConfig, CALRecTrainer, Recommender
from calrec_lite.errors import InputError
from calrec_lite.export.bundle import export_run
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.measure.cases import build_cases
from calrec_lite.method.rows import Rows, training_rows
from calrec_lite.recipe import Loss, Recommend, Text
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from tests.conftest import item_names
from tests.training.conftest import values

OBJECTIVE = Loss(collaborative=0.5)


@pytest.fixture(scope="module")
def run(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = values(tiny_folder, data) | {"loss": {"collaborative": 0.5}}
    recipe["stages"] = [{"name": "target", "domains": ["shop"], "max_steps": 2}]
    made = Run.start(check_recipe(recipe), tmp_path_factory.mktemp("runs"))
    train_run(made)
    return made


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path))


def test_the_validation_loss_is_that_of_the_lists(run: Run) -> None:
    """What is held out was not counted, so nothing is left out of the counts for it."""
    made = open_recommender(run, run.final())
    cases = build_cases(run.domain("shop"), "validation", None, 0)
    prompts = [run.encoder.prompt([made.catalogue.tokens[i] for i in history]) for history in cases.histories]
    logp = made.strategies.logprobs(prompts, cases.histories)
    np.testing.assert_allclose(np.exp(logp).sum(1), 1, atol=1e-4)
    nats = -logp[np.arange(len(logp)), cases.targets].mean()
    facts = json.loads(run.stages[-1].metrics.read_text())
    assert facts["valid_nats_after"] == pytest.approx(nats, abs=1e-3)
    assert facts["valid_nats_merged"] == pytest.approx(nats, abs=1e-3)


def test_all_ways_to_score_agree_and_an_export_scores_as_its_run_does(
    run: Run, tmp_path: Path, own_cache: None
) -> None:
    folder = export_run(run, tmp_path / "export")
    assert json.loads((folder / "calrec.json").read_text())["collaborative"] == 0.5
    ids, history = run.domain("shop").catalogue.ids, [3, 4, 5]
    names, known = [[ids[i] for i in history]], [np.array(history)]
    options = run.recipe.recommend.model_copy(update={"exclude_seen": False, "beams": 30, "rerank": 30})
    of_run = open_recommender(run, run.final(), options=options)
    prompt = [run.encoder.prompt([of_run.catalogue.tokens[i] for i in history])]
    logp = of_run.strategies.logprobs(prompt, known)[0]
    wanted = dict(zip(ids, logp.tolist(), strict=True))
    rerank = options.model_copy(update={"strategy": "rerank"})
    for made in (of_run, open_recommender(run, run.final(), options=rerank)):
        found = {r.item: r.score for r in made.recommend(names, 30)[0]}
        assert found == pytest.approx(wanted, abs=1e-3)
    for strategy in ("beam", "rerank"):
        found = {
            r.item: r.score
            for r in Recommender.from_pretrained(folder, strategy=strategy, dtype="float32").recommend(names, 27)[0]
        }
        assert found == pytest.approx({item: wanted[item] for item in found}, abs=1e-3)
        assert len(found) == 27
    stranger = of_run.strategies.logprobs(prompt, [np.array([20, 21, 22])])[0]
    assert abs(stranger - logp).max() > 0.1  # the same prompt, another prior
    (folder / "transitions.parquet").unlink()
    with pytest.raises(InputError, match="transitions.parquet: not there, and the model was trained with it"):
        Recommender.from_pretrained(folder)


def test_from_python_to_lists_and_back_from_disk(tiny_folder: Path, tmp_path: Path, own_cache: None) -> None:
    items = [{"item": f"id{i}", "title": name} for i, name in enumerate(item_names(30))]
    histories = [{"items": [f"id{(u + t) % 30}" for t in range(3 + u % 6)]} for u in range(24)]
    beam = Recommend(strategy="beam", beams=30)
    options: dict = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}
    config = CALRecConfig(str(tmp_path / "out"), objective=OBJECTIVE, text=Text(max_items=6), recommend=beam, **options)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    trainer = CALRecTrainer(model, config, histories, histories[:5], items, peft_config=LoraConfig(r=4))
    trainer.train()
    assert trainer.evaluate()["eval_nats_per_item"] > 0
    recommender = trainer.recommender()
    lists = recommender.recommend([["id3", "id4"]], k=10)[0]
    again = Recommender.from_pretrained(recommender.save_pretrained(tmp_path / "model"), device="cpu", dtype="float32")
    assert again.catalogue.collaborative is not None
    found = again.recommend([["id3", "id4"]], k=10)[0]
    assert [i.item for i in found] == [i.item for i in lists]
    assert [i.score for i in found] == pytest.approx([i.score for i in lists], abs=1e-3)


def test_rows_whose_catalogue_has_no_transitions_are_refused(
    tiny_folder: Path, tmp_path: Path, domain, catalogue, encoder
) -> None:
    rows = Rows([training_rows(domain, catalogue, encoder, OBJECTIVE)], encoder)
    config = CALRecConfig(str(tmp_path), objective=OBJECTIVE, use_cpu=True)
    with pytest.raises(InputError, match="objective.collaborative: these rows' catalogue has no transitions"):
        CALRecTrainer(str(tiny_folder), config, rows)
