"""The baselines of readings without an LLM, with a tiny random encoder in the place of MiniLM."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import calrec_lite.evaluate.baselines.fast as fast_module
import calrec_lite.fitting.lists as lists_module
from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines import build_baseline
from calrec_lite.evaluate.baselines.fast import COUNTS, FAST
from calrec_lite.evaluate.baselines.minilm import minilm_folder
from calrec_lite.evaluate.protocol import Protocol, SystemResult, evaluate_system
from calrec_lite.fitting.lists import FusionRanker
from calrec_lite.measure.cases import Cases, build_cases
from calrec_lite.recipe import Recipe
from calrec_lite.recipe.file import check_recipe
from calrec_lite.recommend.fusion import Fusion
from calrec_lite.recommend.readings import PARTS, recent_items
from calrec_lite.recommend.whitening import Whitening
from tests.conftest import make_domain as ring_of

MakeRecipe = Callable[..., Recipe]
ITEMS = 60


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def ring() -> Domain:
    """The last item predicts the next; titles are of words that the encoder knows."""
    return ring_of(items=ITEMS, users=150)


@pytest.fixture
def recipe(encoder_folder: Path) -> MakeRecipe:
    def make(exclude_seen: bool = True, **fused: object) -> Recipe:
        tower = {"dim": 16, "layers": 1, "epochs": 15, "learning_rate": 1e-2, "dropout": 0.1}
        return check_recipe(
            {
                "name": "r",
                "base": {"model": "m"},
                "domains": {"d": {"interactions": "x.csv"}},
                "stages": [{"name": "s", "domains": ["d"], "epochs": 1}],
                "recommend": {"exclude_seen": exclude_seen},
                "fused": {"tower": tower, **fused},
                "evaluate": {"minilm": {"model": str(encoder_folder)}, "bootstrap": 5},
            }
        )

    return make


def ranker(name: str, domain: Domain, recipe: Recipe) -> FusionRanker:
    made = build_baseline(name, domain, recipe)
    assert isinstance(made, FusionRanker)
    return made


def measured(name: str, domain: Domain, recipe: Recipe) -> SystemResult:
    """Of all test users; a list that breaks the protocol raises."""
    return evaluate_system(ranker(name, domain, recipe), build_cases(domain, "test", None, 0), Protocol.of(recipe))


def cases_of(domain: Domain) -> Cases:
    return build_cases(domain, "test", None, 0)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_each_makes_lists_by_the_protocol(ring: Domain, recipe: MakeRecipe, exclude_seen: bool) -> None:
    made = recipe(exclude_seen)
    results = {name: measured(name, ring, made) for name in FAST}
    ndcg = {name: result.metrics["ndcg@10"]["value"] for name, result in results.items()}
    assert ndcg["minilm_fast"] > 0.9
    assert ndcg["minilm_vectors"] > ndcg["minilm_text"] + 0.2
    assert ndcg["counts_fast"] > 0.9
    assert ndcg["minilm_text"] < 0.5  # a random encoder's titles know nothing of a ring
    histories = cases_of(ring).histories
    seen = [bool(set(own) & set(h.tolist())) for own, h in zip(results["minilm_text"].lists.tolist(), histories)]
    assert any(seen) != exclude_seen
    assert len({result.lists.tobytes() for result in results.values()}) == len(FAST)


def test_text_is_whitened_vectors_by_recency_and_words(ring: Domain, recipe: MakeRecipe) -> None:
    made = recipe()
    vectors = torch.from_numpy(load_file(minilm_folder(ring, made.evaluate.minilm) / "vectors.safetensors")["vectors"])
    text = Whitening.of(vectors)(vectors)
    histories = cases_of(ring).histories
    scores = recent_items(text, histories).numpy()
    for row, history in zip(scores, histories):
        row[history] = -np.inf
    by_text = ranker("minilm_text", ring, made).fusion
    assert set(by_text.fast) == {"text", "words"}
    lists = FusionRanker(Fusion(by_text.readings, {"text": 1.0})).rank(histories, 10, True)
    kept_in_16_bits = np.take_along_axis(scores, lists.astype(np.int64), 1)
    np.testing.assert_allclose(kept_in_16_bits, np.sort(scores, 1)[:, ::-1][:, :10], atol=2e-3)


def test_vectors_and_all_readings_are_of_one_fit(ring: Domain, recipe: MakeRecipe) -> None:
    made = recipe()
    fast, vectors = ranker("minilm_fast", ring, made).fusion, ranker("minilm_vectors", ring, made).fusion
    assert set(fast.fast) == {*PARTS} - {"repeats"}  # seen items are masked
    assert set(vectors.fast) == {"tower", "recent", "text"}
    histories = cases_of(ring).histories[:20]
    parts = fast.readings.parts(histories)
    scores = sum((weight * parts[name] for name, weight in vectors.fast.items()), torch.zeros(())).numpy()
    for row, history in zip(scores, histories):
        row[history] = -np.inf
    wanted = np.argsort(-scores, 1, kind="stable")[:, :5]
    assert np.array_equal(ranker("minilm_vectors", ring, made).rank(histories, 5, True), wanted)


def test_recent_is_the_towers_items_by_recency(ring: Domain, recipe: MakeRecipe) -> None:
    readings = ranker("minilm_fast", ring, recipe()).fusion.readings
    history = cases_of(ring).histories[0]
    with torch.no_grad():
        items = readings.tower.items()
    ages = torch.arange(len(history) - 1, -1, -1.0)
    user = (0.6**ages) @ items[torch.from_numpy(history.astype(np.int64))]
    cosines = torch.nn.functional.cosine_similarity(user[None], items)
    assert torch.allclose(readings.parts([history])["recent"][0], cosines, atol=1e-5)


def test_counts_know_nothing_of_texts(ring: Domain, recipe: MakeRecipe) -> None:
    """The same lists whatever items are called; weights of their own."""
    made = recipe()
    counts = ranker("counts_fast", ring, made)
    assert set(counts.fusion.fast) == set(COUNTS)
    turned = replace(ring.catalogue, fields=ring.catalogue.fields[::-1])
    others = replace(ring, catalogue=turned, info={"fingerprint": "1"})
    assert not torch.equal(
        ranker("minilm_text", others, made).fusion.readings.text, ranker("minilm_text", ring, made).fusion.readings.text
    )
    again = ranker("counts_fast", others, made)
    assert again.fusion.fast == pytest.approx(counts.fusion.fast, rel=1e-3)
    histories = cases_of(ring).histories
    assert np.array_equal(again.rank(histories, 10, True), counts.rank(histories, 10, True))


def test_what_was_fitted_is_kept(
    ring: Domain, recipe: MakeRecipe, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four are of one fit; other data, settings or lists are fitted for themselves."""
    fits: list[bool] = []
    fit = fast_module.fit_fusion
    monkeypatch.setattr(fast_module, "fit_fusion", lambda *a, **named: fits.append(True) or fit(*a, **named))
    first = {name: measured(name, ring, recipe()).lists for name in FAST}
    assert len(fits) == 1
    for name, lists in first.items():
        assert np.array_equal(measured(name, ring, recipe()).lists, lists)
    assert len(fits) == 1
    others = [
        (ring, recipe(exclude_seen=False)),
        (ring, recipe(users=60)),
        (replace(ring, info={"fingerprint": "1"}), recipe()),
        (ring, recipe().model_copy(update={"seed": 1})),
    ]
    for n, (domain, made) in enumerate(others, 2):
        ranker("minilm_vectors", domain, made)
        assert len(fits) == n
    kept = [path for path in (own_cache / "baselines").iterdir() if path.name.startswith("minilm_fast-")]
    assert len(kept) == 5


def test_a_killed_fit_leaves_nothing(ring: Domain, recipe: MakeRecipe, own_cache: Path) -> None:
    def killed(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_module, "fit_fusion", killed)
        with pytest.raises(KeyboardInterrupt):
            ranker("minilm_fast", ring, recipe())
    assert not [path for path in (own_cache / "baselines").iterdir() if "minilm_fast" in path.name]
    assert measured("minilm_fast", ring, recipe()).metrics["ndcg@10"]["value"] > 0.9


def test_many_users_are_ranked_a_few_at_a_time(
    ring: Domain, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ranker("minilm_fast", ring, recipe())
    histories = cases_of(ring).histories
    lists = made.rank(histories, 10, True)
    monkeypatch.setattr(lists_module, "CELLS", 7 * ITEMS)
    assert np.array_equal(made.rank(histories, 10, True), lists)


@pytest.mark.parametrize("name", list(FAST))
def test_lists_end_where_the_catalogue_does_and_begin_without_a_history(
    ring: Domain, recipe: MakeRecipe, name: str
) -> None:
    made = ranker(name, ring, recipe())
    histories = [np.arange(5, dtype=np.int32), np.empty(0, np.int32)]
    lists = made.rank(histories, ITEMS + 3, True)
    assert sorted(lists[0].tolist()) == [-1] * 8 + list(range(5, ITEMS))
    assert lists[0, -8:].tolist() == [-1] * 8
    assert sorted(lists[1, :ITEMS].tolist()) == list(range(ITEMS))
    counts = ring.train_counts()[lists[1, :ITEMS]]
    assert (np.diff(counts) <= 0).all()  # popularity


@pytest.mark.parametrize("name", list(FAST))
def test_too_few_users_are_refused(recipe: MakeRecipe, name: str) -> None:
    with pytest.raises(InputError, match="30 users have a validation case"):
        ranker(name, ring_of(items=20, users=30), recipe())
