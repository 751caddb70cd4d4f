"""What followed what: its file, and what a single event adds to it."""

from pathlib import Path

import numpy as np
import pytest

from calrec_lite.data.domain import Domain
from calrec_lite.data.transitions import Transitions
from calrec_lite.errors import InputError
from tests.prior.plain import draw_histories, plain_weights


@pytest.fixture
def counted(domain: Domain) -> Transitions:
    return Transitions.of(domain)


def test_the_file_survives_items_added_moved_and_taken_out(
    domain: Domain, counted: Transitions, tmp_path: Path
) -> None:
    ids = domain.catalogue.ids
    counted.save(tmp_path / "t.parquet", ids)
    history = [np.array([3, 4])]
    whole = Transitions.open(tmp_path / "t.parquet", {name: i for i, name in enumerate(ids)}, len(ids))
    np.testing.assert_allclose(whole.scores(history), counted.scores(history), rtol=1e-6)
    kept = [*reversed(ids[:-3]), "new"]
    index = {name: i for i, name in enumerate(kept)}
    other = Transitions.open(tmp_path / "t.parquet", index, len(kept))
    moved = other.scores([np.array([index[ids[3]], index[ids[4]]])])[0]
    assert moved[index["new"]] == 0
    np.testing.assert_allclose([moved[index[n]] for n in ids[:-3]], counted.scores(history)[0, :-3], rtol=1e-6)
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="t.parquet: not readable .*; export again"):
        Transitions.open(tmp_path / "t.parquet", index, len(kept))


def test_scores_are_those_of_a_plain_count_in_any_order_of_the_items() -> None:
    histories = draw_histories(items=12, users=30)
    counts = np.bincount(np.concatenate(histories), minlength=12)
    made = Transitions.counted(histories, counts)
    weights = plain_weights(histories, counts)
    asked = [np.array([3, 5, 3]), np.array([], np.int64), np.arange(8)]
    wanted = [sum((0.6**age * weights[i] for age, i in enumerate(h[::-1][:5])), np.zeros(12)) for h in asked]
    np.testing.assert_allclose(made.scores(asked), wanted, rtol=1e-5)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(made.in_order(order).scores(asked), made.scores(asked)[:, order])


def test_what_an_event_adds_is_the_difference_to_a_count_without_it() -> None:
    histories = draw_histories(items=6, users=12)  # few items: users take them again
    counts = np.bincount(np.concatenate(histories), minlength=6)
    whole = plain_weights(histories, counts)
    repeats = 0
    for u, items in enumerate(histories):
        for k in range(1, len(items)):
            before, target = items[:k], items[k]
            lost = whole - plain_weights(histories, counts, without=(u, k))
            wanted = sum(0.6**age * lost[i, target] for age, i in enumerate(before[::-1][:5]))
            found = Transitions.event_scores([before], np.array([target]), counts)
            assert found[0] == pytest.approx(wanted)
            repeats += target in before[-3:]
    assert repeats > 5
