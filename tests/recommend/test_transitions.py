"""The weight of what followed what in `strategy: rerank`."""

from pathlib import Path

import numpy as np
import pytest

from calrec_lite.data.domain import Domain
from calrec_lite.data.transitions import Transitions
from calrec_lite.evaluate.tune import FUSION, TRANSITIONS, tune_fusion
from calrec_lite.measure.cases import build_cases
from calrec_lite.measure.metrics import ndcg_at, ranks_from_lists
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.towers import Towers
from calrec_lite.recipe import Recommend
from calrec_lite.recommend import Recommender
from calrec_lite.text.encoding import Encoder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path))


@pytest.fixture
def counted(domain: Domain) -> Transitions:
    return Transitions.of(domain)


def recommender(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue, counted: Transitions | None, **options: object
) -> Recommender:
    ids = [f"id{i}" for i in range(len(catalogue))]
    chosen = Recommend(**{"strategy": "rerank", "rerank": 4, **options})
    return Recommender(towers, encoder, catalogue, ids, chosen, transitions=counted)


def test_lists_weigh_log_probability_cosine_and_transitions_of_both_kinds_of_candidates(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue, counted: Transitions
) -> None:
    history = np.array([5, 6, 7])
    plain = recommender(towers, encoder, catalogue, None, rerank=len(catalogue))
    users = [[f"id{i}" for i in history]]
    logp = {r.item: r.score for r in plain.recommend(users, len(catalogue))[0]}
    near = [r.item for r in recommender(towers, encoder, catalogue, None).recommend(users, 4)[0]]
    scores = counted.scores([history])[0]
    allowed = np.setdiff1d(np.arange(len(catalogue)), history)
    following = sorted((i for i in allowed if scores[i] > 0), key=lambda i: -scores[i])[:4]
    wanted = {
        name: logp[name] + 3 * np.log(scores[int(name[2:])] + 0.1) for name in {*near, *(f"id{i}" for i in following)}
    }
    made = recommender(towers, encoder, catalogue, counted, transitions=3.0).recommend(users, 4)[0]
    best = sorted(wanted.values(), reverse=True)[:4]
    np.testing.assert_allclose([r.score for r in made], best, atol=1e-3)
    assert {r.item for r in made} <= set(wanted)
    assert all("log transitions" in r.why for r in made)


def test_both_weights_are_tuned_as_the_lists_are_made(
    towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue, domain: Domain, counted: Transitions
) -> None:
    cases = build_cases(domain, "validation", 12, 0)
    made = recommender(towers, encoder, catalogue, counted)
    tried = {(t.fusion, t.transitions): t for t in tune_fusion(made, cases, exclude_seen=True)}
    assert set(tried) == {(f, t) for f in FUSION for t in TRANSITIONS}
    for fusion, transitions in ((0.0, 0.0), (5.0, 0.0), (1.0, 4.0)):
        weights = {"fusion": fusion, "transitions": transitions}
        # one list is as long as what is reranked: a longer one has more candidates
        lists = recommender(towers, encoder, catalogue, counted, **weights).rank(cases.histories, 4, True)
        ranks = ranks_from_lists(lists, cases.targets)
        shown = tried[fusion, transitions]
        assert shown.ndcg10 >= float(ndcg_at(ranks, 4).mean()) - 1e-9
        if not transitions:
            assert shown.ndcg10 == pytest.approx(float(ndcg_at(ranks, 4).mean()))
    best = max(t.ndcg10 for t in tried.values())
    assert best > max(t.ndcg10 for t in tried.values() if not t.transitions)  # a ring is what transitions know best


def test_counts_that_are_wanted_have_to_be_there(towers: Towers, encoder: Encoder, catalogue: EncodedCatalogue) -> None:
    with pytest.raises(ValueError, match="needs the counts"):
        recommender(towers, encoder, catalogue, None, transitions=1.0)
