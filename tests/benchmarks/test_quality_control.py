"""The control of the quality benchmark."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import quality_control


def test_kept_ranks_are_paired_by_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"minilm_fast_0": pa.array([1, None, 3], pa.int8()), "minilm_fast_1": pa.array([4, 5, None], pa.int8())}
    pq.write_table(pa.table({"user": ["a", "b", "c"], **ranks}), tmp_path / "quality_films.parquet")
    monkeypatch.setattr(quality_control, "RESULTS", tmp_path)
    found = quality_control.kept_ranks("films", "minilm_fast", [0, 1], ["c", "a", "b"])
    assert np.array_equal(found, [[3, 1, np.inf], [np.inf, 4, 5]])
