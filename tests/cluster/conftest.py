"""An exported folder of the tiny model, and a file of histories with bad lines in it."""

import numpy as np

from tests.recommend.conftest import users  # noqa: F401
from tests.stores.conftest import causal, package  # noqa: F401


def same_rows(found: list[dict], wanted: list[dict]) -> None:
    """Rows of item vectors: all the same, but that other texts beside a text change a sum's last digits."""
    vectors = [np.array([row.pop("vector") for row in rows]) for rows in (found, wanted)]
    assert found == wanted
    np.testing.assert_allclose(*vectors, atol=1e-6)
