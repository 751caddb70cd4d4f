"""Searches and exact scores where each user has a prior of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from calrec_lite.data.domain import Catalogue, Domain
from calrec_lite.data.transitions import Transitions
from calrec_lite.decode.beam import beam_search
from calrec_lite.decode.exact import catalogue_logprobs, item_logprobs
from calrec_lite.decode.prompt_tree import PromptTree
from calrec_lite.decode.trie_tensors import TrieTensors
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.method.towers import Towers
from calrec_lite.text.encoding import Encoder
from tests.conftest import item_names
from tests.decode.conftest import HISTORIES, Exact
from tests.prior.plain import draw_histories, plain_prior, plain_weights, trained

KNOWN = [np.array(history, np.int64) for history in HISTORIES]


@pytest.fixture(scope="module")
def large(encoder: Encoder) -> tuple[EncodedCatalogue, np.ndarray]:
    """A catalogue of 80 items that users take at random, and (U, N) the prior of users with some histories."""
    histories = draw_histories(items=80, users=60)
    counts = np.bincount(np.concatenate(histories), minlength=80)
    items = Catalogue([str(i) for i in range(80)], [{"Title": name} for name in sorted(item_names(80))], {})
    options: dict = {"prior": 1.0, "logit_scale": 1e-9, "collaborative": 0.6}
    counted = Transitions.counted(histories, counts)
    made = encode_catalogue("large", items, encoder, counts, transitions=counted, **options)
    weights = plain_weights(histories, counts)
    return made, np.stack([plain_prior(weights, counts, history, 0.6) for history in KNOWN])


def test_search_and_exact_scores_are_those_of_the_plain_formulas(
    towers: Towers,
    prompts: list,
    encoder: Encoder,
    domain: Domain,
    mixed: EncodedCatalogue,
    exact: Exact,
    everything: np.ndarray,
) -> None:
    n, weights = len(mixed), plain_weights(trained(domain), mixed.counts)
    wanted = np.zeros((len(prompts), n))
    for u, (prompt, history) in enumerate(zip(prompts, KNOWN, strict=True)):
        exact.weights = plain_prior(weights, mixed.counts, history, 0.6)
        wanted[u] = exact(prompt, "catalogue")
    assert np.exp(wanted).sum(1) == pytest.approx(np.ones(len(prompts)), abs=1e-4)
    paths = TrieTensors.of(mixed, "catalogue").for_users(KNOWN)
    trees = [PromptTree(towers, prompts, encoder.pad) for _ in range(3)]
    np.testing.assert_allclose(catalogue_logprobs(trees[0], mixed.trie, paths), wanted, atol=4e-4)
    some = [np.array([3, 17, 4]), np.array([29]), np.empty(0, np.int64), np.array([0, 1])]
    for scores, items, logp in zip(item_logprobs(trees[1], mixed.trie, paths, some), some, wanted, strict=True):
        np.testing.assert_allclose(scores, logp[items], atol=4e-4)
    for ranked, logp in zip(beam_search(trees[2], mixed.trie, paths, n, n, everything), wanted, strict=True):
        assert sorted(ranked.items.tolist()) == list(range(n))
        np.testing.assert_allclose(ranked.scores, logp[ranked.items], atol=4e-4)


@pytest.mark.parametrize("some", [False, True], ids=["all", "half of them"])
def test_where_the_model_says_nothing_lists_are_those_of_the_mixture(
    towers: Towers, encoder: Encoder, large: tuple[EncodedCatalogue, np.ndarray], some: bool
) -> None:
    """Found with as few beams as items: what a partial item promises is then no guess."""
    catalogue, prior = large
    prompts = [encoder.prompt([catalogue.tokens[i] for i in history]) for history in HISTORIES]
    paths = TrieTensors.of(catalogue, "catalogue").for_users(KNOWN)
    allowed = np.ones(prior.shape, np.bool_)
    allowed[:, 1::2] = not some
    beams = 20 if some else 4  # promises know nothing of what is allowed
    found = beam_search(PromptTree(towers, prompts, encoder.pad), catalogue.trie, paths, beams, 4, allowed)
    for ranked, p, own in zip(found, prior, allowed, strict=True):
        np.testing.assert_allclose(np.exp(ranked.scores), np.sort(p[own])[::-1][:4], rtol=1e-4)
        np.testing.assert_allclose(np.exp(ranked.scores), p[ranked.items], rtol=1e-4)
        assert own[ranked.items].all()


def test_an_edge_promises_the_best_item_below_it(large: tuple[EncodedCatalogue, np.ndarray]) -> None:
    catalogue, prior = large
    trie, paths = catalogue.trie, TrieTensors.of(catalogue, "catalogue").for_users(KNOWN)
    edges = torch.arange(len(trie.token))
    for u, p in enumerate(prior):
        found = paths.promise(torch.full_like(edges, u), edges)
        np.testing.assert_allclose(found, np.log(trie.most(p) / trie.below(p)), atol=1e-5)


def test_users_keep_their_own_prior_whoever_shares_the_batch(
    towers: Towers, prompts: list, encoder: Encoder, mixed: EncodedCatalogue, everything: np.ndarray
) -> None:
    paths = TrieTensors.of(mixed, "catalogue")
    together = beam_search(
        PromptTree(towers, prompts, encoder.pad), mixed.trie, paths.for_users(KNOWN), 10, 10, everything
    )
    for u, ranked in enumerate(together):
        tree, own = PromptTree(towers, [prompts[u]], encoder.pad), paths.for_users([KNOWN[u]])
        alone = beam_search(tree, mixed.trie, own, 10, 10, everything[:1])[0]
        assert alone.items.tolist() == ranked.items.tolist()
        np.testing.assert_allclose(alone.scores, ranked.scores, atol=2e-4)


def test_no_weight_changes_no_bit_and_the_vocabulary_knows_no_prior(
    towers: Towers,
    prompts: list,
    encoder: Encoder,
    catalogue: EncodedCatalogue,
    mixed: EncodedCatalogue,
    everything: np.ndarray,
) -> None:
    assert mixed.collaborative is not None
    none = replace(mixed, collaborative=replace(mixed.collaborative, weight=0.0))
    for score, other in (("catalogue", none), ("vocabulary", mixed)):
        lists = [
            beam_search(
                PromptTree(towers, prompts, encoder.pad),
                items.trie,
                TrieTensors.of(items, score).for_users(KNOWN),
                5,
                5,
                everything,
            )
            for items in (catalogue, other)
        ]
        for one, same in zip(*lists, strict=True):
            assert one.items.tolist() == same.items.tolist()
            assert one.scores.tolist() == same.scores.tolist()
