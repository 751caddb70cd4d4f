"""Training with a user's own transitions in the prior, against a plain re-implementation of docs/method.md, 5b."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calrec_lite.data.domain import Domain
from calrec_lite.data.transitions import Transitions
from calrec_lite.method.batch import Collator
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.method.rows import Rows, training_rows
from calrec_lite.method.step import two_tower_step
from calrec_lite.method.towers import Towers
from calrec_lite.model import head_loss
from calrec_lite.recipe import Loss
from calrec_lite.text.encoding import Encoder
from tests.method.conftest import collate, gradients
from tests.method.test_step import plain
from tests.prior.plain import plain_prior, plain_weights, trained


@pytest.fixture(scope="module")
def windows(domain: Domain, mixed: EncodedCatalogue, encoder: Encoder) -> SimpleNamespace:
    """Some rows of users, and where in the user's history each begins."""
    part = training_rows(domain, mixed, encoder, Loss())
    chosen = [0, 1, 5, 9, 12, 20]
    rows = Rows([part], encoder)
    first = part.start - domain.sequences.offsets[part.user]
    return SimpleNamespace(rows=[rows[i] for i in chosen], first=first[chosen])


@pytest.mark.parametrize("held_out", [False, True], ids=["counted", "held out"])
@pytest.mark.parametrize("entries", [40, 1 << 24], ids=["in slices", "at once"])
def test_loss_and_gradient_equal_the_plain_formulas(
    model,
    windows: SimpleNamespace,
    domain: Domain,
    encoder: Encoder,
    mixed: EncodedCatalogue,
    held_out: bool,
    entries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head_loss, "HEAD_ENTRIES", entries)
    histories, rows = trained(domain), windows.rows

    def prior(r: int, k: int) -> np.ndarray:
        event = (rows[r].user, windows.first[r] + k)
        weights = plain_weights(histories, mixed.counts, None if held_out else event)
        return plain_prior(weights, mixed.counts, rows[r].items[:k], 0.6)

    assert (windows.first > 0).any()
    loss = Loss(alpha=0.2, beta=0.1, contrast_per_row=None)
    batch = Collator({"shop": mixed}, loss, int(encoder.start[0]), encoder.pad, 2, held_out=held_out)(rows)
    assert len(batch.chunks) == 3
    wanted = plain(model, rows, encoder, mixed, loss, prior)
    model.zero_grad()
    wanted.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    found, got = gradients(model, batch, loss)
    torch.testing.assert_close(found, wanted.detach(), rtol=2e-5, atol=1e-5)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_the_softmax_with_a_prior_of_the_user_is_one_over_all_items(
    model, encoder: Encoder, mixed: EncodedCatalogue
) -> None:
    loss = Loss(alpha=0, beta=0, targets="last")
    collator = Collator({"shop": mixed}, loss, int(encoder.start[0]), encoder.pad, 1, held_out=True)
    rows = [encoder.row(np.array([2, 6, item]), mixed.tokens, "shop") for item in range(len(mixed))]
    nats = [two_tower_step(Towers(model), collator([row]), loss, None).nats_per_item for row in rows]
    assert float(torch.stack(nats).neg().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_no_weight_changes_no_bit(
    model, windows: SimpleNamespace, domain: Domain, encoder: Encoder, catalogue: EncodedCatalogue
) -> None:
    counted, loss = Transitions.of(domain), Loss(alpha=0.2, beta=0.1)
    options: dict = {"prior": 1.0, "logit_scale": 0.5, "transitions": counted}
    none = encode_catalogue("shop", domain.catalogue, encoder, domain.train_counts(), **options)
    assert none.collaborative is not None
    assert catalogue.collaborative is None
    (wanted, before), (found, after) = (
        gradients(model, collate(windows.rows, encoder, items, loss, 3), loss) for items in (catalogue, none)
    )
    assert torch.equal(wanted, found)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_made_does_not_grow_with_the_catalogue(
    windows: SimpleNamespace, encoder: Encoder, mixed: EncodedCatalogue
) -> None:
    """As many numbers as forks have children, and as items have followed the history's."""
    forks = collate(windows.rows, encoder, mixed, Loss(), 100).chunks[0].forks
    assert forks is not None
    assert forks.own is not None
    assert len(forks.own.popular) == len(forks.entry_bias)
    histories = [row.items[:k] for row in windows.rows for k in range(1, len(row.items))]
    assert mixed.collaborative is not None
    assert len(forks.own.key) <= mixed.collaborative.transitions.sparse_scores(histories).nnz
    pinned = forks.to("cpu")  # as one, the prior too
    assert replace(pinned).own.key.tolist() == forks.own.key.tolist()
