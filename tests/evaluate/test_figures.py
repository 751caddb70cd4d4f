"""The baselines against figures measured before, by other code, on the shared data where it is at hand."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calrec_lite.data.domain import Catalogue, Domain, Sequences
from calrec_lite.evaluate.baselines.counting import BASELINES
from calrec_lite.evaluate.protocol import Protocol, evaluate_system
from calrec_lite.measure.cases import build_cases

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
# R@1, R@10, N@10, MRR@10 on test, all users, seen items masked; and how far off they may be. BM25 on scientific
# was measured on 3,000 users (standard error of R@10: .0054); the transitions' decay and direction were not told.
FIGURES = {
    "amazon18_scientific": {
        "popularity": ([0.0119, 0.0245, 0.0167, 0.0144], 0.0002),
        "bm25_last": ([0.0370, 0.0967, 0.0630, 0.0527], 0.006),
        "transitions": ([0.0582, 0.1075, 0.0808, 0.0725], 0.0035),
    },
    "amazon14_office": {
        "bm25_last": ([0.0190, 0.0753, 0.0442, 0.0346], 0.002),
        "transitions": ([0.0300, 0.0911, 0.0569, 0.0464], 0.0045),
    },
}


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"shared data {name} is not here")
    records = read(SHARED / name / "items.jsonl.gz")
    index = {str(record["item"]): i for i, record in enumerate(records)}
    rows = [[index[str(item)] for item in row["items"]] for row in read(SHARED / name / "seqs.jsonl.gz")]
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    sequences = Sequences([str(u) for u in range(len(rows))], np.concatenate(rows).astype(np.int32), offsets, None)
    catalogue = Catalogue(list(index), [{"Title": record["title"]} for record in records], index)
    domain = Domain(name, catalogue, sequences, {"fingerprint": "0" * 64})
    protocol = Protocol(bootstrap=10)
    cases = build_cases(domain, protocol.split, None, 0)
    for system, (figures, tolerance) in FIGURES[name].items():
        metrics = evaluate_system(BASELINES[system](domain, 0), cases, protocol).metrics
        assert [metric["value"] for metric in metrics.values()] == pytest.approx(figures, abs=tolerance), system
