"""Which items are trained on, and in which steps."""

from dataclasses import replace

import numpy as np

from calrec_lite.data.domain import Domain
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.method.rows import training_rows, validation_rows
from calrec_lite.recipe import Loss, Text
from calrec_lite.text.encoding import Encoder
from tests.conftest import make_domain


def targets(part, last_only: bool) -> list[int]:
    """Flat positions that are targets, over all windows."""
    return sorted(p for a, b in zip(part.start, part.end) for p in (range(b - 1, b) if last_only else range(a + 1, b)))


def test_every_training_item_but_the_first_is_a_target_once(
    domain: Domain, catalogue: EncodedCatalogue, encoder: Encoder
) -> None:
    offsets = domain.sequences.offsets
    wanted = [
        p for u in range(len(domain.sequences)) for p in range(offsets[u] + 1, offsets[u] + len(domain.train_items(u)))
    ]
    for kind in ("all", "last"):
        part = training_rows(domain, catalogue, encoder, Loss(targets=kind))
        assert targets(part, kind == "last") == wanted
        assert (part.end - part.start <= encoder.text.max_items).all()


def test_validation_and_test_items_are_never_trained_on(
    domain: Domain, catalogue: EncodedCatalogue, encoder: Encoder
) -> None:
    part = training_rows(domain, catalogue, encoder, Loss())
    held_out = {
        int(e) - k
        for e, n in zip(domain.sequences.offsets[1:], np.diff(domain.sequences.offsets))
        for k in (1, 2)
        if n >= 3
    }
    assert not held_out & {p for a, b in zip(part.start, part.end) for p in range(a, b)}
    valid = validation_rows(domain, catalogue, encoder, 1000, 0)
    assert set(valid.end - 1) == {int(e) - 2 for e in domain.sequences.offsets[1:]}


def test_latest_window_only(domain: Domain, catalogue: EncodedCatalogue, encoder: Encoder) -> None:
    latest = Encoder(encoder.tokenizer, Text(max_items=4, windows="last"))
    part = training_rows(domain, catalogue, latest, Loss())
    assert len(part.start) == sum(len(domain.train_items(u)) >= 2 for u in range(len(domain.sequences)))


def test_a_time_split_decides_what_is_trained_on(encoder: Encoder) -> None:
    plain = make_domain(users=12)
    times = np.concatenate([np.arange(n) + u for u, n in enumerate(np.diff(plain.sequences.offsets))])
    domain = replace(plain, sequences=replace(plain.sequences, times=times, cuts=(6, 9)))
    catalogue = encode_catalogue(domain.name, domain.catalogue, encoder, domain.train_counts(), prior=1.0)
    part = training_rows(domain, catalogue, encoder, Loss())
    trained = [p for a, b in zip(part.start, part.end) for p in range(a, b)]
    assert trained
    assert times[trained].max() == 5  # the latest second before validation
    valid = validation_rows(domain, catalogue, encoder, 1000, 0)
    ends = valid.end - 1
    assert len(ends)
    assert ((times[ends] >= 6) & (times[ends] < 9)).all()
    assert (times[ends - 1] < 6).all()  # each is its user's first of the validation part
