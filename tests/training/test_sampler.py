"""Which rows make a step."""

from calrec_lite.data.domain import Domain
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.method.rows import Rows, training_rows
from calrec_lite.recipe import Loss
from calrec_lite.text.encoding import Encoder
from calrec_lite.training.sampler import StepSampler
from tests.conftest import make_domain


def test_steps_hold_one_domain_and_every_row_once_an_epoch(
    domain: Domain, catalogue: EncodedCatalogue, encoder: Encoder
) -> None:
    other = make_domain("other", items=12, users=9, seed=3)
    rows = Rows(
        [
            training_rows(domain, catalogue, encoder, Loss()),
            training_rows(other, encode_catalogue("other", other.catalogue, encoder), encoder, Loss()),
        ],
        encoder,
    )
    sampler = StepSampler(rows, 8, seed=1)
    steps = list(sampler)
    assert len(steps) == len(sampler)
    assert all(len(s) == 8 and len(set(rows.domain[s])) == 1 for s in steps)
    assert {i for s in steps for i in s} == set(range(len(rows)))
    assert list(sampler) == steps
    sampler.set_epoch(1)
    assert list(sampler) != steps
    assert {rows[s[0]].domain for s in steps} == {"shop", "other"}
