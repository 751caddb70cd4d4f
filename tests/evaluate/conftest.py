"""Small domains made by hand."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from calrec_lite.data.domain import Catalogue, Domain, Sequences

MakeDomain = Callable[..., Domain]


@pytest.fixture
def make_domain() -> MakeDomain:
    """Makes a domain of users' sequences (lists of indices); items are called i0, i1, ... unless titles are given."""

    def make(sequences: Sequence[Sequence[int]], titles: Sequence[str] | int, fingerprint: str = "f" * 64) -> Domain:
        names = [f"title {n}" for n in range(titles)] if isinstance(titles, int) else list(titles)
        ids = [f"i{n}" for n in range(len(names))]
        return Domain(
            "toys",
            Catalogue(ids, [{"Title": name} for name in names], {name: n for n, name in enumerate(ids)}),
            Sequences(
                [f"u{n:04}" for n in range(len(sequences))],
                np.array([item for items in sequences for item in items], dtype=np.int32),
                np.cumsum([0, *(len(items) for items in sequences)]).astype(np.int64),
                None,
            ),
            {"fingerprint": fingerprint},
        )

    return make
