"""Exports whose lists are fused: what is in them, that they recommend as their run does, what may be changed."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from calrec_lite.cli import main
from calrec_lite.errors import InputError
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.export.bundle import export_adapter, export_run
from calrec_lite.export.card import render_card
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.measure.cases import build_cases
from calrec_lite.package.hub import choose_files
from calrec_lite.recommend import Recommender
from calrec_lite.recommend.fusion import Fusion
from calrec_lite.recommend.readings import PARTS
from calrec_lite.run import Run
from tests.fitting.conftest import FITTED_FILES, ITEMS

STRATEGIES = ("fast", "fused")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def changed(fused_export: Path, tmp_path: Path) -> Path:
    """A copy of the export that may be changed."""
    return shutil.copytree(fused_export, tmp_path / "changed")


def opened(folder: Path, strategy: str | None = None) -> Recommender:
    return Recommender.from_pretrained(folder, strategy=strategy, dtype="float32")


def of_run(run: Run, strategy: str, **options: object) -> Recommender:
    return open_recommender(
        run, run.final(), options=run.recipe.recommend.model_copy(update={"strategy": strategy, **options})
    )


def fusion_of(recommender: Recommender) -> Fusion:
    assert recommender.strategies.fusion is not None
    return recommender.strategies.fusion


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def some_histories(recommender: Recommender) -> list[list[str]]:
    ids = recommender.ids
    return [ids[:3], [ids[7]], [ids[20], "something the shop never sold", ids[4]], ["nothing it sold"], []]


def test_the_folder_has_what_lists_need(fused_run: Run, fused_export: Path) -> None:
    ours, theirs = fused_run.folder / "fitted" / "1-target", fused_export / "fitted"
    assert {path.name for path in theirs.iterdir()} == FITTED_FILES
    for name in FITTED_FILES:
        assert (theirs / name).read_bytes() == (ours / name).read_bytes()
    assert (fused_export / "transitions.parquet").is_file()
    assert json.loads((fused_export / "calrec.json").read_text())["recommend"]["strategy"] == "fused"
    assert opened(fused_export).options.strategy == "fused"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_export_recommends_as_its_run_does(fused_run: Run, fused_export: Path, strategy: str) -> None:
    ours, theirs = of_run(fused_run, strategy), opened(fused_export, strategy)
    cases = build_cases(fused_run.domain("shop"), "test", None, 0)
    assert np.array_equal(theirs.rank(cases.histories, 10, True), ours.rank(cases.histories, 10, True))
    wanted, found = (r.recommend(some_histories(ours), k=10) for r in (ours, theirs))
    assert [[i.item for i in own] for own in found] == [[i.item for i in own] for own in wanted]
    for one, other in zip(found, wanted):
        assert [i.score for i in one] == pytest.approx([i.score for i in other], abs=1e-4)


def test_fast_needs_no_llm(fused_export: Path, changed: Path) -> None:
    fast = opened(changed, "fast")
    assert fast.strategies.model is None
    assert opened(fused_export).strategies.model is not None
    (changed / "model.safetensors").unlink()
    again = opened(changed, "fast")
    assert again.recommend(some_histories(fast), k=10) == fast.recommend(some_histories(fast), k=10)
    with pytest.raises(InputError):
        opened(changed, "fused")


def with_likelihood(folder: Path) -> None:
    """Give it a weight: that of a random model, as it was fitted, may be 0."""
    weights = json.loads((folder / "fitted" / "weights.json").read_text())
    edit(folder / "fitted" / "weights.json", fused={**weights["fused"], "likelihood": 1.0})


def test_the_likelihood_orders_the_best_by_fast(fused_run: Run, changed: Path) -> None:
    """Those are 12 by the recipe, so that both strategies have the same 12; a longer list is made of more."""
    with_likelihood(changed)
    cases = build_cases(fused_run.domain("shop"), "test", None, 0)
    fast, fused = (opened(changed, strategy).rank(cases.histories, 12, True) for strategy in STRATEGIES)
    assert np.array_equal(np.sort(fast, 1), np.sort(fused, 1))
    assert not np.array_equal(fast, fused)
    longer = opened(changed, "fused").rank(cases.histories, 15, True)  # than recommend.rerank
    assert all(len(set(row) - {-1}) == 15 for row in longer.tolist())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reasons_sum_to_the_score(fused_export: Path, strategy: str) -> None:
    recommender = opened(fused_export, strategy)
    every = {*PARTS} - {"repeats"} | ({"likelihood"} if strategy == "fused" else set())
    unread = {"popularity"} | every - {*PARTS}
    for history, own in zip(some_histories(recommender), recommender.recommend(some_histories(recommender), k=10)):
        for item in own:
            shares = dict(re.findall(r"(\w+) (-?\d+\.\d\d)(?:, |$)", item.why))
            assert set(shares) == (every if set(history) & set(recommender.ids) else unread)
            assert sum(map(float, shares.values())) == pytest.approx(item.score, abs=0.005 * len(shares) + 1e-6)
        assert [i.score for i in own] == sorted((i.score for i in own), reverse=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_filter_is_exact(fused_export: Path, strategy: str) -> None:
    recommender = opened(fused_export, strategy)
    ids = recommender.ids
    histories = some_histories(recommender)
    plain = [[i.item for i in own] for own in recommender.recommend(histories, k=10)]
    assert all(len(set(own)) == 10 and set(own) <= set(ids) for own in plain)
    assert all(not set(own) & set(history) for own, history in zip(plain, histories))
    denied = [*plain[0][:2], *plain[4][:3]]
    for own in recommender.recommend(histories, k=10, deny=denied):
        assert len(own) == 10
        assert not {i.item for i in own} & set(denied)
    few = [ids[1], ids[12], ids[20], ids[21]]
    allowed = [{i.item for i in own} for own in recommender.recommend(histories, k=10, allow=few, deny=[ids[21]])]
    assert allowed == [{ids[12], ids[20]}, set(few[:3]), {ids[1], ids[12]}, set(few[:3]), set(few[:3])]
    limited = recommender.recommend(histories, k=3, candidates=[few, None, [ids[20]], [ids[29]], None])
    assert {i.item for i in limited[0]} == set(few[1:])
    assert [i.item for i in limited[1]] == plain[1][:3]
    assert limited[2] == []  # it is in the history
    assert [i.item for i in limited[3]] == [ids[29]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_was_seen_is_recommended_where_options_say_so(changed: Path, strategy: str) -> None:
    options = json.loads((changed / "calrec.json").read_text())["recommend"]
    edit(changed / "calrec.json", recommend={**options, "exclude_seen": False})
    recommender = opened(changed, strategy)
    history = recommender.ids[:3]
    for own in recommender.recommend([history, []], k=ITEMS):
        assert {i.item for i in own} == set(recommender.ids)
    assert len(opened(changed, strategy).recommend([history], k=ITEMS + 5)[0]) == ITEMS


def test_after_an_unknown_history_popularity_decides(changed: Path) -> None:
    """Whatever sign its weight has after a known one, where the tower knows of it too."""
    weights = json.loads((changed / "fitted" / "weights.json").read_text())
    edit(changed / "fitted" / "weights.json", fast={**weights["fast"], "tower": 0.1, "popularity": -2.0})
    recommender = opened(changed, "fast")
    bought = dict(zip(recommender.ids, fusion_of(recommender).readings.counts.tolist()))
    most = sorted(bought.values(), reverse=True)
    for k in (5, ITEMS):
        for own in recommender.recommend([[], ["something the shop never sold"]], k=k):
            assert [bought[i.item] for i in own] == most[:k]
    assert most[0] > most[-1]


def test_an_unknown_title_is_read_by_the_likelihood(changed: Path) -> None:
    with_likelihood(changed)
    fast, fused = (
        [[(i.item, i.score) for i in own] for own in opened(changed, s).recommend([["red steel lamp"], []], k=12)]
        for s in STRATEGIES
    )
    assert fast[0] == fast[1]
    assert fused[0] != fused[1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_new_item_has_the_vector_of_its_text(fused_export: Path, changed: Path, strategy: str) -> None:
    """An item under a new id is what the catalogue lacks of the export: but for its purchases it is as before."""
    lines = [json.loads(line) for line in (changed / "catalogue.jsonl").read_text().splitlines()]
    moved = lines.pop(4)
    lines.insert(0, {"id": "new", "fields": moved["fields"]})
    (changed / "catalogue.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before, after = opened(fused_export, strategy), opened(changed, strategy)
    assert after.strategies.model is not None
    old, new = fusion_of(before).readings, fusion_of(after).readings
    assert torch.allclose(new.text[0], old.text[4], atol=2e-3)  # kept in 16 bits
    assert torch.equal(new.text[1:], old.text[[i for i in range(ITEMS) if i != 4]])
    assert not new.tower.memory[0].any()
    assert old.tower.memory[4].any()
    assert torch.allclose(new.tower.text[0], old.tower.text[4], atol=4e-3)
    titles = after.catalogue.titles
    own = after.recommend([[titles[2], titles[3]], []], k=ITEMS)
    assert all("new" in {i.item for i in one} for one in own)
    assert own[1][-1].item == "new" or strategy == "fused"  # never bought, so the least popular
    (only,) = after.recommend([[titles[2]]], allow=["new"])[0]
    shares = dict(re.findall(r"(\w+) (-?\d+\.\d\d)", only.why))
    weight = (fusion_of(after).fused or {}) if strategy == "fused" else fusion_of(after).fast
    text = float(new.text[0] @ new.text[2])
    assert float(shares["text"]) == pytest.approx(weight["text"] * text, abs=0.006)


def test_an_item_taken_out_and_another_order_change_no_score(fused_export: Path, changed: Path) -> None:
    lines = (changed / "catalogue.jsonl").read_text().splitlines()
    gone = json.loads(lines[9])["id"]
    (changed / "catalogue.jsonl").write_text("".join(line + "\n" for n, line in enumerate(lines) if n != 9))
    fewer, whole = opened(changed, "fast"), opened(fused_export, "fast")
    assert fewer.strategies.model is None
    history = whole.ids[3:6]
    shares = [
        {i.item: re.findall(r"(?:text|transitions) (-?\d+\.\d\d)", i.why) for i in r.recommend([history], k=ITEMS)[0]}
        for r in (fewer, whole)
    ]
    assert shares[1].pop(gone)
    assert shares[0] == shares[1]
    (changed / "catalogue.jsonl").write_text("".join(line + "\n" for line in lines[::-1]))
    turned = opened(changed, "fast").recommend([history], k=ITEMS)[0]
    scores = {i.item: i.score for i in whole.recommend([history], k=ITEMS)[0]}
    assert {i.item: i.score for i in turned} == pytest.approx(scores, abs=1e-4)


def test_save_pretrained_takes_it_along(fused_export: Path, tmp_path: Path) -> None:
    fast = opened(fused_export, "fast")
    folder = fast.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (folder / "fitted").iterdir()} == FITTED_FILES
    again = opened(folder)
    assert again.options.strategy == "fast"
    assert again.recommend(some_histories(fast), k=10) == fast.recommend(some_histories(fast), k=10)
    assert (folder / "model.safetensors").is_file()
    wanted, found = (opened(f, "fused").recommend(some_histories(fast), k=10) for f in (fused_export, folder))
    assert found == wanted


def test_all_of_it_is_sent_to_the_hub(fused_export: Path, changed: Path) -> None:
    names = {f"fitted/{name}" for name in FITTED_FILES}
    upload = choose_files(fused_export)
    assert names <= set(upload.sizes)
    assert upload.left_out == []
    (changed / "fitted" / "tower.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="tower.safetensors: .*; export again"):
        choose_files(changed)
    (changed / "fitted" / "tower.safetensors").unlink()
    shutil.copy(fused_export / "fitted" / "tower.safetensors", changed / "fitted")
    (changed / "model.safetensors").unlink()  # the tower's file is no model's
    with pytest.raises(InputError, match=r"is no export: lacks \*.safetensors"):
        choose_files(changed)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_export_of_other_lists_says_what_it_lacks(fused_run: Run, tmp_path: Path, strategy: str) -> None:
    beam = fused_run.recipe.recommend.model_copy(update={"strategy": "beam"})
    folder = export_run(Run(fused_run.recipe.model_copy(update={"recommend": beam}), fused_run.folder), tmp_path / "e")
    assert not (folder / "fitted").exists()
    with pytest.raises(InputError, match="fitted: no fitted weights there, which `strategy: fused` and `fast` need"):
        opened(folder, strategy)
    assert opened(folder).recommend([[]], k=3)[0]


def test_an_export_lacks_nothing_that_its_strategy_needs(fused_run: Run, tmp_path: Path) -> None:
    """A run that was trained with other lists in its recipe, then with `fast`, is exported for `fused`."""
    folder = shutil.copytree(fused_run.folder, tmp_path / "run")
    shutil.rmtree(folder / "fitted")

    def exported(**options: object) -> Path:
        options = fused_run.recipe.recommend.model_copy(update=options)
        return export_run(Run(fused_run.recipe.model_copy(update={"recommend": options}), folder), tmp_path / "export")

    assert opened(exported(strategy="fast")).recommend([[]], k=3)[0]
    with pytest.raises(InputError, match="weights for `strategy: fast` alone"):
        opened(tmp_path / "export", "fused")
    assert opened(exported(strategy="fused")).recommend([[]], k=3)[0]
    before = (tmp_path / "export" / "fitted" / "weights.json").read_bytes()
    exported(strategy="fused", rerank=20)  # fitted to another number of candidates
    assert (tmp_path / "export" / "fitted" / "weights.json").read_bytes() != before


def test_a_card_shows_no_evaluation_by_other_weights(fused_run: Run, tmp_path: Path) -> None:
    """`tune` writes weights into the run, and the evaluation is still of those before."""
    folder = shutil.copytree(fused_run.folder, tmp_path / "run", copy_function=shutil.copy2)
    readings = fused_run.recipe.evaluate.model_copy(update={"readings": ["beam"], "base": False})
    run = Run(fused_run.recipe.model_copy(update={"evaluate": readings}), folder)
    results = evaluate_run(run)
    assert "model-index" in render_card(run)
    card = (export_adapter(run, tmp_path / "adapter") / "README.md").read_text()  # without what lists are fused of
    assert "From this folder alone lists are made by `beam`: they are row `final_beam`." in card
    (model,) = yaml.safe_load(card.split("---\n")[1])["model-index"]
    assert model["results"][0]["metrics"][0]["value"] == round(results["systems"]["final_beam"]["recall@1"]["value"], 4)
    edit(folder / "fitted" / "1-target" / "weights.json", fast={"popularity": 1.0})
    card = render_card(run)
    assert "the weights of the lists were fitted anew): run `calrec-lite evaluate` and export again." in card
    assert "model-index" not in card
    evaluate_run(run)
    assert "model-index" in render_card(run)


def test_an_export_without_its_catalogue_has_nothing_of_its_items(fused_run: Run, tmp_path: Path) -> None:
    options = fused_run.recipe.export.model_copy(update={"catalogue": False})
    run = Run(fused_run.recipe.model_copy(update={"export": options}), fused_run.folder)
    folder = export_run(run, tmp_path / "export")
    assert not {"fitted", "transitions.parquet", "catalogue.jsonl"} & {path.name for path in folder.iterdir()}


def recommend(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["calrec-lite", "recommend", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


DAMAGES = [
    ("fused", {"fused": None}, "weights for `strategy: fast` alone; choose that, or export again"),
    ("fused", {"fused": {"tower": 1.0}}, "not the weights of readings"),
    ("fused", {"fused": {}}, "not the weights of readings"),
    ("fast", {"fast": None}, "not the weights of readings"),
    ("fast", {"fast": {}}, "not the weights of readings"),
    ("fast", {"fast": {"likelihood": 1.0}}, "not the weights of readings"),
    ("fast", {"fast": {"taste": 1.0}}, "not the weights of readings"),
    ("fast", {"fast": {"text": "much"}}, "not the weights of readings"),
    ("fast", {"fast": {"text": [1.0]}}, "not the weights of readings"),
    ("fast", {"fast": {"text": float("inf")}}, "not the weights of readings"),
    ("fast", {"fast": {"text": 1e308}}, "not the weights of readings"),
]


@pytest.mark.parametrize(("strategy", "values", "says"), DAMAGES, ids=str)
def test_wrong_weights_are_one_line_and_exit_2(
    changed: Path, strategy: str, values: dict, says: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    edit(changed / "fitted" / "weights.json", **values)
    assert recommend([str(changed), "a title", "--strategy", strategy], monkeypatch) == 2
    error = capsys.readouterr().err
    (line,) = (line for line in error.splitlines() if "weights.json" in line)
    assert says in line
    assert "Traceback" not in error


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", sorted(FITTED_FILES))
@pytest.mark.parametrize("damage", ["missing", "cut off", "empty", "a folder"])
def test_damaged_files_are_named(changed: Path, name: str, strategy: str, damage: str) -> None:
    file = changed / "fitted" / name
    half = file.read_bytes()[: file.stat().st_size // 2]
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes(half if damage == "cut off" else b"")
    with pytest.raises(InputError, match="export"):
        opened(changed, strategy)


def test_fast_where_only_fast_was_fitted(changed: Path) -> None:
    edit(changed / "fitted" / "weights.json", fused=None)
    assert len(opened(changed, "fast").recommend([[]], k=5)[0]) == 5


@pytest.mark.parametrize("change", ["no number", "endless layers"])
def test_numbers_of_fitted_readings_that_are_none_are_refused(changed: Path, change: str) -> None:
    file = changed / "fitted" / "tower.safetensors"
    with safe_open(file, "pt") as stored:
        settings, state = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    if change == "no number":
        state["norm.weight"][0] = float("nan")
    else:
        settings["settings"] = json.dumps({**json.loads(settings["settings"]), "layers": 10**9})
    save_file(state, file, settings)
    (changed / "manifest.json").unlink()  # else it is refused for being another file
    with pytest.raises(InputError, match="not readable as fitted readings"):
        Recommender.from_pretrained(changed, strategy="fast")


def test_counts_of_an_export_that_are_none_are_refused(changed: Path) -> None:
    table = pq.read_table(changed / "transitions.parquet")
    counts = pa.array([float("nan")] * len(table), table["weight"].type)
    pq.write_table(
        table.set_column(table.column_names.index("weight"), table.schema.field("weight"), counts),
        changed / "transitions.parquet",
    )
    (changed / "manifest.json").unlink()
    with pytest.raises(InputError, match="holds counts that are none"):
        Recommender.from_pretrained(changed, strategy="fast")
