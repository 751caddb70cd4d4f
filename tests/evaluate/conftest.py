"""Small domains made by hand."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calrec_lite.data.domain import Catalogue, Domain, Sequences
from tests.conftest import item_names

MakeDomain = Callable[..., Domain]
HOSTILE = "<script>alert(1)</script> & <b>bold</b>"  # a title like any other


@pytest.fixture
def make_domain() -> MakeDomain:
    """Makes a domain of users' sequences (lists of indices); items are called i0, i1, ... unless titles are given.

    `copies[n]`: how many original items canonical item n stands for, 1 if it is not there.
    """

    def make(
        sequences: Sequence[Sequence[int]],
        titles: Sequence[str] | int,
        fingerprint: str = "f" * 64,
        times: Sequence[int] | None = None,
        cuts: tuple[int, int] | None = None,
        copies: Mapping[int, int] | None = None,
    ) -> Domain:
        names = [f"title {n}" for n in range(titles)] if isinstance(titles, int) else list(titles)
        ids = [f"i{n}" for n in range(len(names))]
        aliases = {name: n for n, name in enumerate(ids)}
        aliases |= {f"i{n}-{copy}": n for n, count in (copies or {}).items() for copy in range(1, count)}
        return Domain(
            "toys",
            Catalogue(ids, [{"Title": name} for name in names], aliases),
            Sequences(
                [f"u{n:04}" for n in range(len(sequences))],
                np.array([item for items in sequences for item in items], dtype=np.int32),
                np.cumsum([0, *(len(items) for items in sequences)]).astype(np.int64),
                None if times is None else np.asarray(times, dtype=np.int64),
                cuts,
            ),
            {"fingerprint": fingerprint},
        )

    return make


@pytest.fixture(scope="session")
def two_stages(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of two domains and two stages on the tiny model, as plain data."""
    folder = tmp_path_factory.mktemp("events")
    rng = np.random.default_rng(0)
    for name, n in (("shop", 30), ("other", 20)):
        names = [HOSTILE, *item_names(n - 1)]
        lines = ["user,item,time,title"]
        for user in range(40):
            start = rng.integers(n)
            lines += [f"{user},{(start + t) % n},{t},{names[(start + t) % n]}" for t in range(rng.integers(4, 12))]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    domain = {"fields": {"Title": "title"}, "columns": {"time": "time"}}
    return {
        "name": "tiny",
        "base": {"model": str(tiny_folder), "dtype": "float32", "load_in_4bit": False, "lora": {"r": 4}},
        "domains": {name: {**domain, "interactions": str(folder / f"{name}.csv")} for name in ("shop", "other")},
        "text": {"max_items": 6},
        "stages": [
            {"name": "joint", "domains": ["other", "shop"], "max_steps": 4},
            {"name": "target", "domains": ["shop"], "max_steps": 2},
        ],
        "optim": {"batch_size": 4, "micro_batch_size": 4, "save_every": 2, "log_every": 2, "learning_rate": 5e-3},
        "recommend": {"strategy": "beam", "beams": 10},
        "evaluate": {"users": 20, "bootstrap": 200, "baselines": ["popularity"]},
    }
