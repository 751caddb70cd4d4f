"""SASRec: that it learns, from the training part only, once; and what the library is asked and answers."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines import sasrec
from calrec_lite.evaluate.baselines.counting import PopularityBaseline
from calrec_lite.evaluate.baselines.sasrec import SASRecBaseline, fit, make_network, scores
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.evaluate.protocol import Protocol, evaluate_system
from calrec_lite.measure.cases import build_cases
from calrec_lite.recipe import SASRecSettings as Options
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from tests.conftest import ring_domains

ITEMS = 25
SMALL = Options(hidden=16, max_len=8, dropout=0.0, learning_rate=0.01, batch_size=32, epochs=2, patience=20)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "baselines"


def ring(users: int, seed: int = 0) -> list[list[int]]:
    """Every user goes round a ring of items in steps of one or of two, so two items are needed to know the next."""
    draw = np.random.default_rng(seed)
    return [
        [(start + n * step) % ITEMS for n in range(length)]
        for start, step, length in zip(
            draw.integers(ITEMS, size=users), draw.integers(1, 3, users), draw.integers(5, 12, users)
        )
    ]


@pytest.mark.parametrize("negatives", [None, 16])
def test_it_learns_what_two_items_tell(make_domain: Any, negatives: int | None) -> None:
    domain = make_domain(ring(300), ITEMS)
    ranker = SASRecBaseline(
        domain,
        0,
        SMALL.model_copy(update={"hidden": 32, "batch_size": 128, "epochs": 20, "negatives": negatives}),
        True,
    )
    cases, protocol = build_cases(domain, "test", None, 0), Protocol(bootstrap=5)
    assert evaluate_system(ranker, cases, protocol).metrics["recall@1"]["value"] > 0.9
    assert evaluate_system(PopularityBaseline(domain, 0), cases, protocol).metrics["recall@1"]["value"] < 0.2
    assert ranker.trained["valid_ndcg"] == max(epoch["ndcg"] for epoch in ranker.trained["epochs"])


def test_a_history_is_scored_by_its_latest_items_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = make_network(ITEMS, SMALL.model_copy(update={"dropout": 0.5}))
    histories = [np.array(items, dtype=np.int32) for items in ([3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 5, 6])]
    together = scores(network, histories)
    assert together.shape == (3, ITEMS)
    for history, alone in zip(histories, together, strict=True):
        torch.testing.assert_close(scores(network, [history])[0], alone)
    torch.testing.assert_close(scores(network, [histories[1][-8:]])[0], together[1])  # no more than max_len is read
    torch.nn.init.ones_(network.item_emb.weight.data[ITEMS])  # the padding
    torch.testing.assert_close(scores(network, histories), together)
    monkeypatch.setattr(sasrec, "CELLS", 1)  # one user at a time
    torch.testing.assert_close(scores(network, histories), together)


@pytest.mark.parametrize("negatives", [None, 3])
def test_a_row_is_what_came_before_its_target(make_domain: Any, negatives: int | None) -> None:
    domain = make_domain([*ring(30), [0, 1, 2]], ITEMS)  # of the last user one item is left, which tells nothing
    options = SMALL.model_copy(update={"negatives": negatives, "max_len": 4, "batch_size": 31})
    network, random = make_network(ITEMS, options), np.random.RandomState(0)
    told = [domain.train_items(u).tolist() for u in range(30)]
    wanted = sorted((items[max(0, t - 4) : t], items[t]) for items in told for t in range(1, len(items)))
    assert len(wanted) % options.batch_size > 1  # a step of one row the library leaves out
    orders = []
    for _ in range(2):
        found = []
        for rows, items in sasrec._steps(network, sasrec._events(domain), options, random):
            assert len(items) == len(rows) + (negatives or 0)
            assert 2 <= len(rows) <= options.batch_size
            for row, target in zip(rows.tolist(), items.tolist()):  # negatives come after the targets
                history = [item for item in row if item != ITEMS]
                assert row == [ITEMS] * (4 - len(history)) + history
                found.append((history, target))
        assert sorted(found) == wanted
        orders.append(found)
    assert orders[0] != orders[1]


def test_the_loss_is_over_all_items_or_over_those_drawn_but_the_target() -> None:
    torch.manual_seed(0)
    network = make_network(ITEMS, SMALL)
    torch.nn.init.normal_(network.item_emb.weight)
    histories = [np.array(items, dtype=np.int32) for items in ([3, 4], [7], [5, 6, 9])]
    rows = torch.tensor([[ITEMS] * (8 - len(h)) + h.tolist() for h in histories])
    logits = scores(network, histories)  # (3, N)
    targets = torch.tensor([5, 9, 5])
    torch.testing.assert_close(sasrec._softmax_loss(network, rows, targets), F.cross_entropy(logits, targets))
    by_hand = [
        np.log(sum(np.exp(row[i]) for i in (target, *(i for i in (0, 5, 20) if i != target)))) - row[target]
        for row, target in zip(logits.tolist(), targets.tolist())
    ]
    sampled = sasrec._softmax_loss(network, rows, torch.tensor([5, 9, 5, 0, 5, 20]))
    assert float(sampled.detach()) == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_only_the_training_part_is_learnt(make_domain: Any) -> None:
    sequences = ring(40)
    one = SMALL.model_copy(update={"epochs": 1})
    held_out = [[*items[:-2], (items[-2] + 7) % ITEMS, (items[-1] + 5) % ITEMS] for items in sequences]
    trained = [[items[0], items[2], *items[2:]] for items in sequences]
    first, second, third = (fit(make_domain(s, ITEMS), 0, one, True)[0] for s in (sequences, held_out, trained))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=0)
    assert any(not torch.equal(third[name], weight) for name, weight in first.items())  # so the test can fail


def test_it_is_trained_once(make_domain: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = make_domain(ring(30), ITEMS)
    histories = [np.array([1, 2, 3], dtype=np.int32)]
    lists = SASRecBaseline(domain, 0, SMALL, True).rank(histories, 10, True)
    assert len(list(own_cache.iterdir())) == 1

    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(sasrec, "fit", never)
        np.testing.assert_array_equal(SASRecBaseline(domain, 0, SMALL, True).rank(histories, 10, True), lists)
        for other in (
            (make_domain(ring(30), ITEMS, "e" * 64), 0, SMALL, True),
            (domain, 1, SMALL, True),
            (domain, 0, SMALL.model_copy(update={"hidden": 32}), True),
            (domain, 0, SMALL, False),
        ):
            with pytest.raises(AssertionError, match="trained again"):
                SASRecBaseline(*other)
    assert len(list(own_cache.iterdir())) == 1  # what failed left nothing behind


def test_it_stops_when_validation_no_longer_improves(make_domain: Any) -> None:
    domain = make_domain(ring(30), ITEMS)
    _, epochs = fit(domain, 0, SMALL.model_copy(update={"epochs": 200, "patience": 2}), True)
    best = max(range(len(epochs)), key=lambda n: epochs[n].ndcg)
    assert len(epochs) == best + 3 < 200


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_lists_keep_the_rankers_promise(make_domain: Any, exclude_seen: bool) -> None:
    domain = make_domain(ring(30), ITEMS)
    ranker = SASRecBaseline(domain, 0, SMALL, exclude_seen)
    cases = build_cases(domain, "test", None, 0)
    lists = evaluate_system(ranker, cases, Protocol(exclude_seen=exclude_seen, bootstrap=5)).lists
    assert (lists >= 0).all()
    nobody = [np.empty(0, dtype=np.int32)]
    np.testing.assert_array_equal(ranker.rank(nobody, 5, True), PopularityBaseline(domain, 0).rank(nobody, 5, True))


def test_what_cannot_be_trained_is_refused(make_domain: Any) -> None:
    with pytest.raises(InputError, match="domain `toys`: fewer than two items that SASRec"):
        SASRecBaseline(make_domain([[0, 1, 2, 0]], 3), 0, SMALL, True)  # one item to predict, where a step needs two
    with pytest.raises(ValueError, match="hidden = 16 must be a multiple of heads = 3"):
        Options(hidden=16, heads=3)


def test_without_the_library_it_says_what_to_install(
    make_domain: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cornac", None)
    with pytest.raises(InputError, match=r"sasrec needs the extra \(.*\): pip install 'calrec-lite\[sasrec\]'"):
        SASRecBaseline(make_domain(ring(30), ITEMS), 0, SMALL, True)
    assert not own_cache.exists()


def test_a_run_is_refused_before_anything_is_measured(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {
        "name": "r",
        "base": {"model": str(tiny_folder), "dtype": "float32", "load_in_4bit": False},
        "domains": {"shop": ring_domains(data)["shop"]},
        "stages": [{"name": "s", "domains": ["shop"], "max_steps": 1}],
        "recommend": {"strategy": "beam"},
        "evaluate": {"base": False, "baselines": ["popularity", "sasrec"], "sasrec": {"hidden": 8, "epochs": 1}},
    }
    run = Run.start(check_recipe(values), tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cornac", None)
        with pytest.raises(InputError, match="sasrec needs the extra"):
            evaluate_run(run, trained=False)
    assert "evaluating" not in capsys.readouterr().out
    assert not run.evaluation.exists()
    assert set(evaluate_run(run, trained=False)["systems"]) == {"popularity", "sasrec"}
