"""A user's prior against the plain formulas: over items, below edges, and without the event that it shall predict."""

import numpy as np
import pytest
import torch

from calrec_lite.data.transitions import Transitions
from calrec_lite.prior.bias import UserBias
from calrec_lite.prior.collaborative import CollaborativePrior, Mixture
from calrec_lite.text.trie import Trie
from tests.prior.plain import draw_histories, plain_prior, plain_weights

ITEMS, SHARE = 15, 0.7
HISTORIES = draw_histories(ITEMS - 1, users=20)  # nobody took the last item
COUNTS = np.bincount(np.concatenate(HISTORIES), minlength=ITEMS)
TRIE = Trie.build([np.array([*map(int, f"{i * 37 % ITEMS:04b}"), 9]) for i in range(ITEMS)])
ASKED = [np.array([1, 2, 3]), np.array([], np.int64), np.array([ITEMS - 1]), np.array([4, 4, 9, 5, 6, 7, 8])]


def prior(histories: list[np.ndarray], counts: np.ndarray, share: float = SHARE, strength: float = 1.0):
    return CollaborativePrior(TRIE, counts, Transitions.counted(histories, counts), share, strength)


def dense(made: CollaborativePrior, mixture: Mixture) -> np.ndarray:
    """(U, N) p_u, by item."""
    placed = mixture.popularity[:, None] * made.popularity
    placed.reshape(-1)[mixture.key] += mixture.share
    return placed[:, made.trie.place]


def test_it_is_a_distribution_and_the_one_of_the_formula() -> None:
    made = prior(HISTORIES, COUNTS)
    found = dense(made, made.mixture(ASKED))
    np.testing.assert_allclose(found.sum(1), 1)
    weights = plain_weights(HISTORIES, COUNTS)
    np.testing.assert_allclose(found, [plain_prior(weights, COUNTS, h, SHARE) for h in ASKED], rtol=1e-5)
    np.testing.assert_allclose(found[1:3], np.tile((COUNTS + 1) / (COUNTS + 1).sum(), (2, 1)))  # nothing followed


def test_a_target_does_not_know_of_its_own_event() -> None:
    made = prior(HISTORIES, COUNTS)
    places = [(u, k) for u, items in enumerate(HISTORIES) for k in range(1, len(items))]
    before = [HISTORIES[u][:k] for u, k in places]
    found = dense(made, made.mixture(before, np.array([HISTORIES[u][k] for u, k in places])))
    for (u, k), p in zip(places, found, strict=True):
        weights = plain_weights(HISTORIES, COUNTS, without=(u, k))
        np.testing.assert_allclose(p, plain_prior(weights, COUNTS, HISTORIES[u][:k], SHARE), rtol=1e-4)


def test_a_target_whose_only_evidence_is_its_own_event_has_its_popularity_alone() -> None:
    histories = [np.array([0, 1, 2, 3])]
    counts = np.bincount(histories[0], minlength=ITEMS)
    made = prior(histories, counts)
    before = [histories[0][:k] for k in (1, 2, 3)]
    found = dense(made, made.mixture(before, np.array([1, 2, 3])))
    popularity = (counts + 1) / (counts + 1).sum()
    for p, target, others in zip(found, (1, 2, 3), ((2, 3), (0, 1, 3), (0, 1, 2)), strict=True):
        assert p[target] == pytest.approx((1 - SHARE) * popularity[target])
        assert (p[list(others)] > popularity[list(others)]).all()  # what stood near the others is still known
    pair = [np.array([0, 1])]
    counts = np.bincount(pair[0], minlength=ITEMS)
    made = prior(pair, counts)
    np.testing.assert_allclose(dense(made, made.mixture([pair[0][:1]], pair[0][1:]))[0], made.popularity[TRIE.place])


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("edges", [None, np.array([5, 0, 5, 12])], ids=["all", "some"])
def test_what_lies_below_an_edge_is_summed(strength: float, edges: np.ndarray | None) -> None:
    made = prior(HISTORIES, COUNTS, strength=strength)
    bias = UserBias.of(made, ASKED, edges=edges)
    asked = np.arange(len(TRIE.token)) if edges is None else edges
    user, edge = (a.reshape(-1) for a in np.meshgrid(range(len(ASKED)), range(len(asked)), indexing="ij"))
    found = bias(torch.from_numpy(user), torch.from_numpy(edge)).reshape(len(ASKED), -1)
    popular = strength * np.log(TRIE.below(COUNTS + 1.0)[asked])
    weights, total = plain_weights(HISTORIES, COUNTS), np.log((COUNTS + 1).sum())
    for history, own in zip(ASKED, found.numpy(), strict=True):
        wanted = strength * (np.log(TRIE.below(plain_prior(weights, COUNTS, history, SHARE))[asked]) + total)
        np.testing.assert_allclose(popular + own, wanted, atol=1e-5)


def test_without_weight_nothing_at_all_is_added() -> None:
    bias = UserBias.of(prior(HISTORIES, COUNTS, share=0.0), ASKED)
    users, edges = torch.tensor([0, 3, 3]), torch.tensor([1, 2, 7])
    assert bias(users, edges).tolist() == [0.0, 0.0, 0.0]
