"""What a trained run gives: its evaluation, its export, its lists."""

import json
import re
import shutil
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from calrec_lite.cli import main
from calrec_lite.errors import InputError
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.evaluate.settings import evaluation_folder
from calrec_lite.evaluate.tune import FUSION, tune_fusion
from calrec_lite.export.bundle import export_adapter, export_run
from calrec_lite.export.card import render_card
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.measure.cases import build_cases
from calrec_lite.measure.metrics import ndcg_at, ranks_from_lists
from calrec_lite.model.merge import merge_adapter
from calrec_lite.package.save import _without_places
from calrec_lite.page.report import write_report
from calrec_lite.recipe import resolved
from calrec_lite.recipe.file import check_recipe
from calrec_lite.recommend import Recommender
from calrec_lite.run import Run
from calrec_lite.stored import MANIFEST
from calrec_lite.text.template import Template
from calrec_lite.training.stage import train_run
from tests.training.conftest import values, weights

ROOT = Path(__file__).parents[2]


def test_evaluation_export_and_recommend(trained: Run, exported: tuple[dict, Path]) -> None:
    results, folder = exported
    systems = {"popularity", "bm25_last", "transitions", "base", "stage1", "final"}
    assert set(results["systems"]) == systems
    for metrics in results["systems"].values():
        assert set(metrics) == {"recall@1", "recall@10", "ndcg@10", "mrr"}
        assert all(m["low"] <= m["value"] <= m["high"] for m in metrics.values())
    recommender = Recommender.from_pretrained(folder)
    titles = recommender.catalogue.titles
    lists = recommender.recommend([titles[:3], ["something nobody has heard of"], []], k=10)
    for own in lists:
        assert len({item.title for item in own}) == 10
        assert {item.title for item in own} <= set(titles)
    assert not {item.title for item in lists[0]} & set(titles[:3])
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert not plain.generation_config.do_sample
    with pytest.raises(InputError, match="no earlier export"):
        export_run(trained, trained.folder)


def test_weights_take_no_room_twice(trained: Run, exported: tuple[dict, Path]) -> None:
    """They are linked; what the export writes anew is not."""
    ours, theirs = trained.final(), exported[1]
    assert (ours / "model.safetensors").samefile(theirs / "model.safetensors")
    assert not (ours / "config.json").samefile(theirs / "config.json")
    assert not (ours / "generation_config.json").samefile(theirs / "generation_config.json")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_of_an_export_that_changed_is_named(exported: tuple[dict, Path], tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(exported[1], tmp_path / "export", copy_function=shutil.copy)  # a download: later times
    Recommender.from_pretrained(folder)
    for edited in ("calrec.json", "catalogue.jsonl", "README.md"):
        with (folder / edited).open("a") as file:
            file.write("\n")
    saved = Recommender.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    for place in (folder, saved):
        content = bytearray((place / name).read_bytes())
        content[-9] ^= 1
        (place / name).unlink()  # it may be a link
        (place / name).write_bytes(content)
        with pytest.raises(
            InputError, match=f"{place / name}: its content is not what was written; export or download"
        ):
            Recommender.from_pretrained(place)
    (folder / MANIFEST).unlink()
    if name == "model.safetensors":
        Recommender.from_pretrained(folder)


def test_an_export_scores_items_as_its_run_does(trained: Run, exported: tuple[dict, Path]) -> None:
    """Scale and prior of the catalogue softmax travel with it."""
    of_run = open_recommender(trained, trained.final())
    of_export = Recommender.from_pretrained(exported[1], dtype="float32")  # as the run was trained
    assert of_run.catalogue.logit_scale == trained.recipe.loss.logit_scale != 1
    history = [of_run.catalogue.titles[:3]]
    wanted, found = (r.recommend(history, k=10)[0] for r in (of_run, of_export))
    assert [i.title for i in found] == [i.title for i in wanted]
    assert [i.score for i in found] == pytest.approx([i.score for i in wanted], abs=1e-4)


def test_an_export_with_transitions_recommends_as_its_run_does(trained: Run, tmp_path: Path) -> None:
    options = trained.recipe.recommend.model_copy(update={"strategy": "rerank", "rerank": 5, "transitions": 2.0})
    run = Run(trained.recipe.model_copy(update={"recommend": options}), trained.folder)
    folder = export_run(run, tmp_path / "export")
    of_run, of_export = open_recommender(run, run.final()), Recommender.from_pretrained(folder, dtype="float32")
    history = [of_run.catalogue.titles[4:7]]
    wanted, found = (r.recommend(history, k=5)[0] for r in (of_run, of_export))
    assert [i.title for i in found] == [i.title for i in wanted]
    assert [i.score for i in found] == pytest.approx([i.score for i in wanted], abs=1e-4)
    assert all("log transitions" in i.why for i in found)
    (folder / "transitions.parquet").unlink()
    assert Recommender.from_pretrained(folder, strategy="beam").recommend(history, k=5)[0]
    with pytest.raises(InputError, match="transitions.parquet: not there, and `recommend` in"):
        Recommender.from_pretrained(folder)


def test_an_export_from_before_the_scale_is_scored_as_it_was_trained(
    exported: tuple[dict, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported[1], tmp_path / "old")
    said = json.loads((folder / "calrec.json").read_text())
    del said["logit_scale"]
    (folder / "calrec.json").write_text(json.dumps(said))
    assert Recommender.from_pretrained(folder).catalogue.logit_scale == 1


def test_the_card_says_what_is_on_disk(trained: Run, exported: tuple[dict, Path], tiny_folder: Path) -> None:
    results, folder = exported
    empty, front, body = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert not empty
    assert metadata["license"] == "mit"
    assert metadata["library_name"] == "transformers"
    assert "base_model" not in metadata, "a folder of this machine is no Hub id"
    (model,) = metadata["model-index"]
    (measured,) = model["results"]
    final = json.loads((trained.evaluation / "metrics.json").read_text())["systems"]["final"]
    assert {m["type"]: m["value"] for m in measured["metrics"]} == {k: round(m["value"], 4) for k, m in final.items()}
    fingerprint = trained.domain("shop").fingerprint
    assert fingerprint[:12] in measured["dataset"]["name"]
    assert f"`{fingerprint}`" in body
    assert f"`{trained.domain('other').fingerprint}`" in body
    assert "Licence of the base: mit." in body
    assert f"finetuned from `{tiny_folder.name}`" in body
    for system, metrics in results["systems"].items():
        (row,) = (line for line in body.splitlines() if line.startswith(f"| {system} "))
        assert f"{metrics['ndcg@10']['value']:.4f} [{metrics['ndcg@10']['low']:.4f}" in row
    for stage, facts in trained.stage_metrics().items():
        (row,) = (line for line in body.splitlines() if line.startswith(f"| {stage} "))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        nats = [f"{facts[f'valid_nats_{when}']:.3f}" for when in ("before", "after", "merged")]
        assert cells[1:5] == [str(facts["steps"]), *nats]
        parity = facts["parity"]
        shares = [f"{parity['top1_agreement']:.4f}", f"{parity['mean_difference']:.4f}"]
        assert cells[-3:] == [*shares, f"{parity['max_difference']:.3f}"]


def test_an_export_holds_no_path_of_this_machine(trained: Run, exported: tuple[dict, Path], tiny_folder: Path) -> None:
    _, folder = exported
    files = [f for f in folder.rglob("*") if f.is_file() and f.suffix != ".safetensors"]
    assert len(files) > 8
    for file in files:
        text = file.read_text(encoding="utf-8")
        for path in (trained.folder, tiny_folder, Path(tempfile.gettempdir()), Path.home()):
            assert str(path) not in text, file.name
    card = (folder / "README.md").read_text()
    assert not re.search(r"(?<![\w:/])/\w", card), "an absolute path"
    assert "interactions: shop.csv\n" in card


def test_places_that_others_wrote_down_are_taken_out(trained: Run, tmp_path: Path) -> None:
    """What transformers 4 kept in a base's files, another encoder's folder, another base of an ablation."""
    (tmp_path / "config.json").write_text('{"_name_or_path": "/home/alice/llama", "model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"name_or_path": "/home/alice", "tokenizer_file": "/home/x.json"}')
    _without_places(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "llama"}
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {}
    plain = resolved(trained.recipe)
    plain["evaluate"]["minilm"]["model"] = "/home/alice/MiniLM"
    plain["ablate"] |= {"variants": {"other": {"base.model": "/home/alice/other", "loss.tau": 0.1}}, "crossed": []}
    card = render_card(Run(check_recipe(plain), trained.folder))
    assert "alice" not in card
    assert "base.model: other" in card


def test_texts_of_others_are_no_markup_on_a_card(trained: Run) -> None:
    """A base's name, a licence, wording and labels: in code that they cannot close, and cut where they are long."""
    values = resolved(trained.recipe)
    values["base"] |= {"model": "/nowhere/a`<b>``[me](x)", "license": "<img src=x> `[me](http://x)"}
    values["text"]["first"] = f"``` <b> {'x' * 1500}"
    values["domains"]["shop"]["fields"] = {"Title": "title", "````": "title", "y" * 300: "title"}
    card = render_card(Run(check_recipe(values), trained.folder))
    body, fence, recipe = card.partition("`````yaml\n")
    assert fence
    assert recipe.count("`````") == 1
    assert recipe.endswith("\n`````\n")
    assert yaml.safe_load(recipe.removesuffix("`````\n"))["text"]["first"] == f"``` <b> {'x' * 192}..."
    assert "y" * 201 not in card
    assert "finetuned from ``` a`<b>``[me](x) ``` by" in body
    assert "Licence of the base: `` <img src=x> `[me](http://x) ``." in body


def test_a_card_shows_no_evaluation_of_other_data(trained: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    run = Run.open(folder)
    assert "model-index" in render_card(run)
    file = folder / "evaluation" / "metrics.json"
    results = json.loads(file.read_text())
    file.write_text(json.dumps({**results, "domain": {"name": "other", "fingerprint": "0" * 64}}))
    assert "Not evaluated yet" in render_card(run)
    assert "model-index" not in render_card(run)
    file.write_text("{")
    assert "Not evaluated yet" in render_card(run)


def test_a_card_shows_no_evaluation_of_other_lists(trained: Run, exported: tuple[dict, Path], tmp_path: Path) -> None:
    """What `tune` advises is taken over by `train --set`, and the evaluation is still of the lists before."""

    def with_lists(folder: Path = trained.folder, **options: object) -> Run:
        changed = trained.recipe.recommend.model_copy(update=options)
        return Run(trained.recipe.model_copy(update={"recommend": changed}), folder)

    tuned = with_lists(strategy="rerank", fusion=5.0)
    card = render_card(tuned)
    assert "recommend.strategy: beam, now rerank; recommend.fusion: 0.0, now 5.0): run `calrec-lite evaluate`" in card
    assert "model-index" not in card
    assert "| final " not in card
    assert "model-index" in render_card(with_lists(k=3))  # how long a list is shown changes none
    copied = shutil.copytree(trained.folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("export*"))
    write_report(with_lists(copied, beams=16), reasons=False)
    page = (copied / "evaluation" / "report.html").read_text()
    assert "have changed since</b> (recommend.beams: 15, now 16)" in page
    evaluate_run(with_lists(copied, strategy="rerank", fusion=5.0))
    assert "model-index" in render_card(with_lists(copied, strategy="rerank", fusion=5.0))


def test_a_card_without_a_catalogue_does_not_tell_to_use_one(trained: Run) -> None:
    options = trained.recipe.export.model_copy(update={"catalogue": False})
    card = render_card(Run(trained.recipe.model_copy(update={"export": options}), trained.folder))
    assert "from_pretrained" not in card
    assert "The catalogue is not part of this export" in card


def test_an_export_never_replaces_the_folder_one_is_in(trained: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for to in (Path("."), tmp_path):
        with pytest.raises(InputError, match="is or holds the folder you are in"):
            export_run(trained, to)


def test_sentence_transformers_opens_an_export(trained: Run, exported: tuple[dict, Path]) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the test extra has it")
    _, folder = exported
    opened = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    recommender = Recommender.from_pretrained(folder, dtype="float32")
    template = Template(trained.recipe.text, tuple(trained.domain("shop").catalogue.labels))
    texts = [template.item(fields) for fields in trained.domain("shop").catalogue.fields[:12]]
    encoder, towers = trained.encoder, recommender.strategies.towers
    tokens = encoder.items(texts)
    rows = [np.concatenate([encoder.start, t]) for t in tokens] + [encoder.prompt(tokens[:n]) for n in (0, 1, 5)]
    with torch.no_grad():
        ours = [towers.vectors(torch.from_numpy(r)[None], torch.tensor([len(r)]))[0].numpy() for r in rows]
    prompts = [template.prompt(texts[:n]) for n in (0, 1, 5)]
    theirs = [*opened.encode_document(texts), *opened.encode_query(prompts)]
    assert min(float(a @ b) for a, b in zip(ours, theirs, strict=True)) >= 0.9999
    assert np.linalg.norm(theirs, axis=1) == pytest.approx(1, abs=1e-4)


def test_exporting_md_is_true(
    trained: Run, exported: tuple[dict, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python runs as it stands, and its table names every file of an export but those of the tokenizer."""
    pytest.importorskip("sentence_transformers", reason="the test extra has it")
    _, folder = exported
    page = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "export").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert names["items"][0].startswith("Title: ")
    assert isinstance(names["text"], str)
    assert names["scores"].shape == (len(trained.domain("shop").catalogue),)
    recommender = Recommender.from_pretrained(folder)
    prompt = trained.encoder.prompt(trained.encoder.items(names["items"][:3]))
    with torch.no_grad():
        towers = recommender.strategies.towers
        ours = towers.vectors(torch.from_numpy(prompt)[None], torch.tensor([len(prompt)]))[0].numpy()
    assert float(ours @ names["user"]) >= 0.9999
    patterns = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))
    listed = {pattern.rstrip("/") for pattern in patterns}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    found = {path.name for path in folder.iterdir()} - tokenizer
    assert not [name for name in found if not any(fnmatchcase(name, pattern) for pattern in listed)]


def test_an_adapter_alone_is_exported_only_where_others_have_its_base(
    trained: Run, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="handover: continue"):
        export_adapter(trained, tmp_path / "adapter")
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    (base / "LICENSE.md").write_text("terms of the base")
    recipe = values(base, data)
    recipe["stages"] = recipe["stages"][1:]
    run = Run.start(check_recipe(recipe), tmp_path)
    train_run(run)
    folder = export_adapter(run, tmp_path / "adapter")
    assert not list(folder.glob("model*.safetensors"))
    assert (folder / "LICENSE.md").read_text() == "terms of the base"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.name
    card = (folder / "README.md").read_text()
    assert "Recommender" not in card
    assert str(base) not in card
    merge_adapter(base, folder, tmp_path / "merged", progress=False)
    one, two = weights(tmp_path / "merged"), weights(run.final())
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_an_adapter_names_the_hub_id_and_revision_of_its_base(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    """The base lies where the Hub's cache has it, as after a download."""
    commit = "0123456789012345678901234567890123456789"
    cache = tmp_path / "hub" / "models--maker--base"
    shutil.copytree(tiny_folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = trained.recipe.base.model_copy(update={"model": "maker/base", "revision": commit})
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    run = Run(trained.recipe.model_copy(update={"base": base, "stages": trained.recipe.stages[:1]}), folder)
    exported = export_adapter(run, tmp_path / "adapter")
    config = LoraConfig.from_pretrained(str(exported))
    assert (config.base_model_name_or_path, config.revision) == ("maker/base", commit)
    assert yaml.safe_load((exported / "README.md").read_text().split("---\n")[1])["base_model"] == "maker/base"


def test_sampling_gives_lists_of_distinct_items_too(trained: Run) -> None:
    options = trained.recipe.recommend.model_copy(update={"strategy": "sample", "samples": 8, "temperature": 1.0})
    sampling = Run(trained.recipe.model_copy(update={"recommend": options}), trained.folder)
    recommender = open_recommender(sampling, trained.final())
    histories = [np.array([0, 1, 2], np.int32), np.array([4], np.int32)]
    lists = recommender.rank(histories, 10, exclude_seen=True)
    for history, own in zip(histories, lists):
        assert len(set(own.tolist()) - {-1}) == 10
        assert not set(own.tolist()) & set(history.tolist())
    assert (lists == recommender.rank(histories, 10, exclude_seen=True)).all()


def test_fusion_is_tuned_on_validation_users_as_the_lists_are_made(
    trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recommender = open_recommender(trained, trained.final())
    cases = build_cases(trained.domain("shop"), "validation", 15, 0)
    tried = {t.fusion: t for t in tune_fusion(recommender, cases, exclude_seen=True)}
    assert set(tried) == set(FUSION)
    options = trained.recipe.recommend.model_copy(update={"strategy": "rerank", "fusion": 5.0})
    fused = Recommender(
        recommender.strategies.towers,
        recommender.encoder,
        recommender.catalogue,
        recommender.ids,
        options,
        trained.recipe.seed,
    )
    ranks = ranks_from_lists(fused.rank(cases.histories, 10, True), cases.targets)
    assert tried[5.0].ndcg10 == pytest.approx(float(ndcg_at(ranks, 10).mean()))
    monkeypatch.setattr(sys, "argv", ["calrec-lite", "tune", str(trained.folder), "--users", "15"])
    main()
    assert "15 validation users" in capsys.readouterr().out


def test_an_evaluation_of_fewer_model_users_does_not_replace_one_of_more(
    trained: Run, exported: tuple[dict, Path]
) -> None:
    results, _ = exported
    assert results["protocol"]["users"] == 20
    for users, model_users, replaces in ((20, None, True), (20, 20, True), (None, 30, True), (20, 10, False)):
        options = trained.recipe.evaluate.model_copy(update={"users": users, "model_users": model_users})
        asked = Run(trained.recipe.model_copy(update={"evaluate": options}), trained.folder)
        assert (evaluation_folder(asked) == trained.evaluation) == replaces
