"""SASRec: that it learns, from the training part only, once; and that rows do not see what they must not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calrec_lite.errors import InputError
from calrec_lite.evaluate import sasrec
from calrec_lite.evaluate.baselines import Popularity
from calrec_lite.evaluate.protocol import Protocol, build_cases, evaluate_system
from calrec_lite.evaluate.sasrec import Network, Sasrec, fit
from calrec_lite.recipe import Sasrec as Options

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
    ranker = Sasrec(domain, 0, SMALL.model_copy(update={"hidden": 32, "epochs": 40, "negatives": negatives}), True)
    cases, protocol = build_cases(domain, "test", None, 0), Protocol(bootstrap=5)
    assert evaluate_system(ranker, cases, protocol).metrics["recall@1"]["value"] > 0.9
    assert evaluate_system(Popularity(domain, 0), cases, protocol).metrics["recall@1"]["value"] < 0.2
    assert ranker.trained["valid_ndcg"] == max(epoch["ndcg"] for epoch in ranker.trained["epochs"])


def test_a_history_is_scored_alike_alone_and_among_longer_ones() -> None:
    torch.manual_seed(0)
    network = Network(ITEMS, SMALL)
    histories = [np.array(items, dtype=np.int32) for items in ([3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 5, 6])]
    together = network.scores(histories)
    for history, scores in zip(histories, together, strict=True):
        torch.testing.assert_close(network.scores([history])[0], scores)
    assert together.shape == (3, ITEMS)
    torch.testing.assert_close(network.scores([histories[1][-8:]])[0], together[1])  # no more than max_len is read


def test_a_step_in_parts_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one length go through the network together; gradients and the loss are those of all rows at once."""
    rows = [np.array(items[-9:], dtype=np.int32) for items in ring(30)]
    found = []
    for parts in (1, 4, 100):
        monkeypatch.setattr(sasrec, "PARTS", parts)
        torch.manual_seed(0)
        network = Network(ITEMS, SMALL)
        descent = torch.optim.SGD(network.parameters(), lr=1.0)
        loss = sasrec._epoch(network, descent, rows, SMALL, np.random.default_rng(0))
        found.append((loss, network.state_dict()))
    for loss, state in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, weight in found[0][1].items():
            torch.testing.assert_close(state[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    assert [len(part) for part in sasrec._by_length(rows[:3])] == [1, 1, 1]


def test_later_items_change_no_earlier_state() -> None:
    torch.manual_seed(0)
    network = Network(ITEMS, SMALL).eval()
    rows = torch.tensor([[1, 2, 3, 4], [1, 2, 9, 9]])
    states = network(rows, torch.tensor([4, 4]))
    torch.testing.assert_close(states[0, :2], states[1, :2])
    assert not torch.allclose(states[0, 2], states[1, 2])


def test_the_sampled_softmax_leaves_the_target_out_of_its_negatives() -> None:
    torch.manual_seed(0)
    network = Network(3, SMALL)
    states, targets = torch.randn(5, 16), torch.tensor([0, 1, 2, 1, 0])
    torch.nn.init.normal_(network.items.weight)
    full = sasrec._softmax_loss(network, states, targets, None, np.random.default_rng(0))
    torch.testing.assert_close(full, F.cross_entropy(states @ network.items.weight[:3].T, targets))
    # Two of three drawn: the loss is over the target and those of the two that are not the target.
    drawn = np.random.default_rng(0).choice(3, 2, replace=False).tolist()
    logits = (states @ network.items.weight[:3].T).tolist()
    by_hand = [
        np.log(sum(np.exp(row[i]) for i in {*drawn, target})) - row[target]
        for row, target in zip(logits, targets.tolist(), strict=True)
    ]
    sampled = sasrec._softmax_loss(network, states, targets, 2, np.random.default_rng(0))
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
    lists = Sasrec(domain, 0, SMALL, True).rank(histories, 10, True)
    assert len(list(own_cache.iterdir())) == 1

    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(sasrec, "fit", never)
        np.testing.assert_array_equal(Sasrec(domain, 0, SMALL, True).rank(histories, 10, True), lists)
        for other in (
            (make_domain(ring(30), ITEMS, "e" * 64), 0, SMALL, True),
            (domain, 1, SMALL, True),
            (domain, 0, SMALL.model_copy(update={"hidden": 32}), True),
            (domain, 0, SMALL, False),
        ):
            with pytest.raises(AssertionError, match="trained again"):
                Sasrec(*other)
    assert len(list(own_cache.iterdir())) == 1  # what failed left nothing behind


def test_it_stops_when_validation_no_longer_improves(make_domain: Any) -> None:
    domain = make_domain(ring(30), ITEMS)
    _, epochs = fit(domain, 0, SMALL.model_copy(update={"epochs": 200, "patience": 2}), True)
    best = max(range(len(epochs)), key=lambda n: epochs[n].ndcg)
    assert len(epochs) == best + 3 < 200


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_lists_keep_the_rankers_promise(make_domain: Any, exclude_seen: bool) -> None:
    domain = make_domain(ring(30), ITEMS)
    ranker = Sasrec(domain, 0, SMALL, exclude_seen)
    cases = build_cases(domain, "test", None, 0)
    lists = evaluate_system(ranker, cases, Protocol(exclude_seen=exclude_seen, bootstrap=5)).lists
    assert (lists >= 0).all()
    nobody = [np.empty(0, dtype=np.int32)]
    np.testing.assert_array_equal(ranker.rank(nobody, 5, True), Popularity(domain, 0).rank(nobody, 5, True))


def test_what_cannot_be_trained_is_refused(make_domain: Any) -> None:
    with pytest.raises(InputError, match="domain `toys`: no user has two items that SASRec"):
        Sasrec(make_domain([[0, 1, 2]], 3), 0, SMALL, True)
    with pytest.raises(ValueError, match="hidden = 16 must be a multiple of heads = 3"):
        Options(hidden=16, heads=3)
