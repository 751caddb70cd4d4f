"""User tower, weights and fused lists fitted on a small domain in which the last item predicts the next."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from calrec_lite.data.domain import Catalogue, Domain, Sequences
from calrec_lite.data.transitions import Transitions
from calrec_lite.errors import InputError
from calrec_lite.fitting.fit import fit_fusion, require_users, weigh
from calrec_lite.fitting.weights import fit_weights
from calrec_lite.measure.cases import build_cases
from calrec_lite.recipe import Fused, TowerSettings
from calrec_lite.recommend.fusion import Fusion
from calrec_lite.recommend.readings import PARTS
from calrec_lite.recommend.whitening import Whitening
from tests.conftest import make_domain

SMALL = Fused(tower=TowerSettings(dim=16, layers=1, epochs=30, learning_rate=1e-2, dropout=0.1), likelihood_users=40)


@pytest.fixture(scope="module")
def ring() -> Domain:
    return make_domain(items=30, users=120)


def vectors(domain: Domain, seed: int = 0) -> torch.Tensor:
    """Random vectors with a large common part, as a language model's have."""
    generator = torch.Generator().manual_seed(seed)
    return 5 + torch.randn(len(domain.catalogue), 24, generator=generator)


@pytest.fixture(scope="module")
def fusion(ring: Domain) -> Fusion:
    return fit_fusion(ring, vectors(ring), SMALL, 0, exclude_seen=True)


def lists(fusion: Fusion, histories: list[np.ndarray], k: int = 5) -> np.ndarray:
    allowed = np.ones((len(histories), len(fusion.readings.counts)), np.bool_)
    for row, history in zip(allowed, histories):
        row[history] = False
    return np.stack(fusion.best(histories, allowed, k))


def part(fusion: Fusion, name: str) -> Fusion:
    """Lists by one part alone."""
    return Fusion(fusion.readings, {name: 1.0})


def test_lists_find_what_comes_next(ring: Domain, fusion: Fusion) -> None:
    cases = build_cases(ring, "test", None, 0)
    for made in (fusion, part(fusion, "tower"), part(fusion, "recent")):
        assert (lists(made, cases.histories, 1)[:, 0] == cases.targets).mean() > 0.9
    untrained_text = lists(part(fusion, "text"), cases.histories, 1)[:, 0]
    assert (untrained_text == cases.targets).mean() < 0.5  # these vectors are random: text knows nothing here
    assert fusion.facts["fast_fit"]["valid_ndcg"] > 0.9


def test_fitted_twice_is_the_same(ring: Domain, fusion: Fusion) -> None:
    again = fit_fusion(ring, vectors(ring), SMALL, 0, exclude_seen=True)
    assert again.fast == fusion.fast
    assert torch.equal(again.readings.tower.memory, fusion.readings.tower.memory)


def test_saved_and_opened_for_a_catalogue_that_has_changed(ring: Domain, fusion: Fusion, tmp_path: Path) -> None:
    ids = ring.catalogue.ids
    fusion.save(tmp_path, ids)
    transitions, counts = Transitions.of(ring), ring.train_counts()
    opened, missing = Fusion.open(tmp_path, ids, ring.catalogue.titles, transitions, counts)
    cases = build_cases(ring, "test", None, 0)
    assert not len(missing)
    assert np.array_equal(lists(opened, cases.histories), lists(fusion, cases.histories))
    moved = [*ids[::-1], "new"]  # in another order, with an item more
    index = {item: row for row, item in enumerate(moved)}
    transitions.save(tmp_path / "transitions.parquet", ids)
    pairs = Transitions.open(tmp_path / "transitions.parquet", index, 31)
    titles = [*ring.catalogue.titles[::-1], "a new one"]
    larger, missing = Fusion.open(tmp_path, moved, titles, pairs, np.append(counts[::-1], 0))
    assert missing.tolist() == [30]
    assert larger.readings.repeats.again.tolist() == [*fusion.readings.repeats.again[::-1].tolist(), 1]
    histories = [29 - history for history in cases.histories]
    assert np.array_equal(
        lists(part(larger, "tower"), histories, 1), 29 - lists(part(fusion, "tower"), cases.histories, 1)
    )
    same_text = larger.with_items(missing, vectors(ring)[:1])
    assert torch.allclose(same_text.readings.text[30], fusion.readings.text[0], atol=2e-3)  # kept in 16 bits


def test_where_seen_items_may_be_recommended_what_was_bought_often_counts() -> None:
    """Every user has an item of its own, bought every other time; the rest goes round a ring."""
    users, random = range(60), np.random.default_rng(0)
    bought = np.concatenate([[(u + t) % 30 if t % 2 else u % 7 for t in random.integers(30, size=12)] for u in users])
    names = [f"thing {n}" for n in range(30)]
    ids = [f"i{n}" for n in range(30)]
    histories = Sequences([f"u{u}" for u in users], bought.astype(np.int32), np.arange(61, dtype=np.int64) * 12, None)
    shop = Domain("shop", Catalogue(ids, [{"Title": n} for n in names], dict(zip(ids, range(30)))), histories, {})
    fitted = fit_fusion(shop, vectors(shop), SMALL, 0, exclude_seen=False)
    assert set(fitted.fast) == set(PARTS)
    assert fitted.facts["fast_fit"]["intervals"]["repeats"][0] > 0


def test_damaged_files_are_refused(ring: Domain, fusion: Fusion, tmp_path: Path) -> None:
    transitions, counts, ids = Transitions.of(ring), ring.train_counts(), ring.catalogue.ids
    with pytest.raises(InputError, match="no fitted weights there"):
        Fusion.open(tmp_path, ids, ring.catalogue.titles, transitions, counts)
    fusion.save(tmp_path, ids)
    for wrong in ({"fast": {"taste": 1.0}, "fused": None}, {"fast": {"text": float("nan")}, "fused": None}, [], {}):
        (tmp_path / "weights.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="not the weights of readings"):
            Fusion.open(tmp_path, ids, ring.catalogue.titles, transitions, counts)
    fusion.save(tmp_path, ids)
    whole_weights = json.loads((tmp_path / "weights.json").read_text())
    for wrong in ({"users": "many"}, {"intervals": {}}, {"intervals": {name: ["a", "b"] for name in fusion.fast}}):
        fit = {**whole_weights["fast_fit"], **wrong}
        (tmp_path / "weights.json").write_text(json.dumps({**whole_weights, "fast_fit": fit}))
        with pytest.raises(InputError, match="not the weights of readings"):
            Fusion.open(tmp_path, ids, ring.catalogue.titles, transitions, counts)
    fusion.save(tmp_path, ids)
    for name in ("items.parquet", "tower.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="not readable as fitted readings"):
            Fusion.open(tmp_path, ids, ring.catalogue.titles, transitions, counts)
        (tmp_path / name).write_bytes(whole)


def test_an_empty_history_gets_the_popular_items(ring: Domain, fusion: Fusion) -> None:
    parts = fusion.readings.parts([np.empty(0, np.int64), np.array([3])])
    assert torch.equal(parts["tower"][0], parts["popularity"][0])
    assert not parts["text"][0].any()
    assert set(parts) == set(PARTS)
    assert torch.allclose(parts["tower"].logsumexp(1), torch.zeros(2), atol=1e-4)  # a distribution over items


def test_the_likelihood_gets_the_weight_that_it_earns(ring: Domain, fusion: Fusion) -> None:
    """One likelihood that knows the answer, and one that is noise."""
    cases = build_cases(ring, "validation", None, 0)
    answers = {history.tobytes(): target for history, target in zip(cases.histories, cases.targets)}
    rng = np.random.default_rng(0)

    def knowing(histories, items):
        return [
            np.where(i == answers[h.tobytes()], 0.0, -5.0) + rng.normal(0, 1, len(i)) for h, i in zip(histories, items)
        ]

    def noise(histories, items):
        return [rng.normal(0, 1, len(i)) for i in items]

    weights, intervals = {}, {}
    for name, likelihood in (("knowing", knowing), ("noise", noise)):
        made = weigh(fusion.readings, ring, SMALL, 0, True, ("popularity",), likelihood, 30, {})
        intervals[name] = made.facts["fused_fit"]["intervals"]["likelihood"]
        weights[name] = made.fused["likelihood"]
    assert intervals["knowing"][0] > 0 > intervals["noise"][0]
    assert weights["knowing"] > 2 * abs(weights["noise"])


def test_weights_are_those_of_the_model_that_made_the_choices() -> None:
    """Choices drawn from known weights: the fit finds them, whatever the parts' units."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (4000, 20)), rng.normal(0, 10, (4000, 20))
    true = {"a": 1.5, "b": -0.1}
    chosen = (true["a"] * a + true["b"] * b + rng.gumbel(size=a.shape)).argmax(1)
    parts = {"a": torch.from_numpy(a), "b": torch.from_numpy(b)}
    fitted = fit_weights(parts, torch.from_numpy(chosen), torch.ones(a.shape, dtype=torch.bool))
    for name, weight in true.items():
        low, high = fitted.intervals[name]
        assert low < weight < high
        assert fitted.weights[name] == pytest.approx(weight, rel=0.1)


def test_a_part_that_says_nothing_of_the_candidates_has_no_weight() -> None:
    """One that is constant, and one that differs between users alone."""
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.normal(0, 1, (200, 10)))
    between = torch.arange(200.0).double()[:, None].expand(-1, 10)
    parts = {"a": a, "constant": torch.full_like(a, -2.3), "between": between}
    fitted = fit_weights(parts, a.argmax(1), torch.ones(200, 10, dtype=torch.bool))
    assert fitted.weights["constant"] == fitted.weights["between"] == 0
    assert fitted.weights["a"] > 1


def test_whitened_vectors_have_no_common_part_and_no_long_direction() -> None:
    raw = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, *[1.0] * 7]) + 50
    whitening = Whitening.of(raw)
    spread = (raw - whitening.mean) @ whitening.matrix
    assert torch.allclose(spread.T @ spread / 500, torch.eye(8), atol=1e-3)
    assert Whitening.of(raw[:1])(raw[:1]).shape == (1, 1)


def test_too_few_users_are_refused() -> None:
    with pytest.raises(InputError, match="need 50: set recommend.strategy to another"):
        require_users(make_domain(users=20))
