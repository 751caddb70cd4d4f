"""Memory that is kept to, and the same domain whatever it is."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from calrec_lite.data import domain, events, prepare
from calrec_lite.data.domain import Catalogue, Domain, Sequences
from calrec_lite.data.prepare import THREAD_MEMORY, _fingerprint, database
from calrec_lite.data.report import statistics

TITLES = {f"i{n}": f"Item {n % 9}" for n in range(11)}
EVENTS = [(f"u{n * n % 23 % 7}", f"i{n * n * n % 29 % 11}", 86400 * (n % 10 // 3)) for n in range(90)]
# Of each set of options, as it was when DuckDB and NumPy had all at once.
FINGERPRINTS: list[tuple[dict[str, Any], str]] = [
    ({}, "2c5a88aceda249d9"),
    ({"drop_repeats": True, "min_item_events": 4, "min_user_events": 5}, "8da54484c536509e"),
    ({"max_users": 3, "max_user_events": 5}, "d9bc8ff308f54300"),
    ({"holdout": {"by": "time"}}, "e13a33aeed3a1f98"),
]


@pytest.mark.parametrize("part", [None, 2])
@pytest.mark.parametrize(("options", "fingerprint"), FINGERPRINTS)
def test_the_size_of_the_parts_changes_nothing(
    shop: Callable[..., Domain],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: int | None,
    options: dict[str, Any],
    fingerprint: str,
) -> None:
    whole = shop(EVENTS, TITLES, **options)
    if part:
        for module in (domain, events):
            monkeypatch.setattr(module, "PART", part)
    made = shop(EVENTS, TITLES, **options)
    made.save(tmp_path / "saved")
    opened = Domain.open(tmp_path / "saved")
    assert opened.fingerprint[:16] == fingerprint
    assert opened.info["statistics"] == statistics(opened.catalogue, opened.sequences) == whole.info["statistics"]
    assert opened.sequences.users == whole.sequences.users
    for name in ("items", "offsets", "times"):
        np.testing.assert_array_equal(getattr(opened.sequences, name), getattr(whole.sequences, name))
    np.testing.assert_array_equal(opened.sequences.train_lengths, whole.sequences.train_lengths)


@pytest.mark.parametrize(
    ("free", "cores", "limit", "threads"),
    [
        (1 << 40, 4, 4 * THREAD_MEMORY, 4),
        (2 * THREAD_MEMORY, 4, THREAD_MEMORY, 2),
        (THREAD_MEMORY // 2, 4, THREAD_MEMORY // 4, 1),
    ],
)
def test_duckdb_holds_half_of_what_is_free_at_most(
    monkeypatch: pytest.MonkeyPatch, free: int, cores: int, limit: int, threads: int
) -> None:
    monkeypatch.setattr(prepare, "free_ram", lambda: free, raising=False)
    monkeypatch.setattr(prepare, "cores", lambda: cores)
    with database() as (connection, _):
        said = connection.execute("SELECT current_setting('memory_limit'), current_setting('threads')").fetchall()[0]
    assert said == (f"{limit >> 20}.0 MiB" if limit < 1 << 30 else f"{limit >> 30}.0 GiB", threads)


def test_beside_the_result_there_is_one_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of statistics, fingerprint, saving and splitting; each took several times the result."""
    n_users, each = 20_000, 50
    made = Sequences(
        [f"user {u}" for u in range(n_users)],
        np.arange(n_users * each, dtype=np.int32) % 3,
        np.arange(n_users + 1, dtype=np.int64) * each,
        np.arange(n_users * each, dtype=np.int64),
        (n_users * each // 2, n_users * each // 3 * 2),
    )
    catalogue = Catalogue(list("abc"), [{"Title": title} for title in "abc"], dict(zip("abc", range(3), strict=True)))
    monkeypatch.setattr(domain, "PART", 500)
    for what in (statistics, lambda *of: _fingerprint(*of, {})):
        tracemalloc.start()
        what(catalogue, made)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200 * n_users  # not a number of bytes for each of the million events
    saved = Domain("large", catalogue, made, {"fingerprint": "f" * 64, "source_key": "s"})
    before = pa.total_allocated_bytes()
    saved.save(tmp_path / "saved")
    opened = Domain.open(tmp_path / "saved")
    assert pa.total_allocated_bytes() - before < made.items.nbytes  # nothing of the file is kept as Arrow
    np.testing.assert_array_equal(opened.sequences.times, made.times)
