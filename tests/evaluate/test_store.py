"""metrics.json, rankings.parquet and the table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines.counting import BASELINES
from calrec_lite.evaluate.protocol import Protocol, SystemResult, evaluate_system
from calrec_lite.evaluate.store import RESULTS, read_metrics, write_results
from calrec_lite.evaluate.tables import table
from calrec_lite.measure.cases import build_cases
from calrec_lite.stored import write_manifest

PROTOCOL = Protocol(bootstrap=50)
SEQUENCES = [np.random.default_rng(n).permutation(30)[: 3 + n % 7].tolist() for n in range(40)]


def measure(domain: Any, names: list[str], protocol: Protocol = PROTOCOL) -> tuple[Any, dict[str, SystemResult]]:
    cases = build_cases(domain, protocol.split, protocol.users, protocol.seed)
    return cases, {name: evaluate_system(BASELINES[name](domain, 0), cases, protocol) for name in names}


def write(folder: Path, domain: Any, names: list[str], protocol: Protocol = PROTOCOL) -> dict[str, Any]:
    cases, systems = measure(domain, names, protocol)
    return write_results(folder, domain, protocol, cases, systems, {})


def test_both_files_hold_what_was_measured(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES, 30)
    cases, systems = measure(domain, ["popularity", "transitions"])
    returned = write_results(tmp_path / "run", domain, PROTOCOL, cases, systems, {"parity": 0.5})
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results == returned
    assert results["domain"] == {"name": "toys", "fingerprint": "f" * 64}
    assert results["protocol"] == {
        "split": "test",
        "users": 40,
        "exclude_seen": True,
        "k": 10,
        "mrr_cut": 10,
        "seed": 0,
        "bootstrap": 50,
        "duplicates": "canonical",
        "holdout": "leave-one-out",
        "tied_share": None,
        "items": 30,
        "unreachable": 0,
        "unreachable_share": 0,
    }
    assert results["systems"] == {name: system.metrics for name, system in systems.items()}
    assert results["users_per_second"].keys() == results["slices"].keys() == results["systems"].keys()
    assert results["parity"] == 0.5
    assert results["versions"]["numpy"] == np.__version__
    assert results["versions"].keys() >= {"python", "calrec_lite", "torch", "transformers", "peft", "bitsandbytes"}
    assert results["hardware"]["cpus"] >= 1

    rows = pq.read_table(tmp_path / "run" / "rankings.parquet").to_pylist()
    assert len(rows) == 80
    for row in rows:
        place = row["list"].index(row["target"]) + 1 if row["target"] in row["list"] else None
        assert row["rank"] == place
        assert len(row["list"]) == 10
    assert [row["user"] for row in rows if row["system"] == "transitions"] == domain.sequences.users
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.json", "rankings.parquet"]


def test_systems_are_added_stage_by_stage(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES, 30)
    whole = write(tmp_path / "whole", domain, ["popularity", "bm25_last", "transitions"])
    cases, first = measure(domain, ["popularity", "bm25_last"])
    write_results(tmp_path / "parts", domain, PROTOCOL, cases, first, {"stage": 1, "first": True})
    _, second = measure(domain, ["bm25_last", "transitions"])
    parts = write_results(tmp_path / "parts", domain, PROTOCOL, cases, second, {"stage": 2})
    assert (parts["stage"], parts["first"]) == (2, True)
    assert parts["systems"] == whole["systems"]
    assert parts["users_per_second"].keys() == whole["users_per_second"].keys()
    rows = [pq.read_table(tmp_path / name / "rankings.parquet").to_pylist() for name in ("whole", "parts")]
    key = lambda row: (row["system"], row["user"])  # noqa: E731
    assert sorted(rows[0], key=key) == sorted(rows[1], key=key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "e" * 64}, "measured on other data than domain `toys`"),
        ({"protocol": Protocol(bootstrap=50, exclude_seen=False)}, "exclude_seen: True, now False"),
        ({"protocol": Protocol(bootstrap=50, users=20)}, "users: 40, now 20"),
        ({"protocol": Protocol(bootstrap=50, seed=1)}, "seed: 0, now 1"),
        ({"protocol": Protocol(bootstrap=50, duplicates="expected")}, "duplicates: canonical, now expected"),
        ({"protocol": Protocol(bootstrap=50, mrr_cut=5)}, "mrr_cut: 10, now 5"),
    ],
)
def test_unlike_results_are_not_mixed(make_domain: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, make_domain(SEQUENCES, 30), ["popularity"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = make_domain(SEQUENCES, 30, change.get("fingerprint", "f" * 64))
    with pytest.raises(InputError, match=message):
        write(tmp_path, other, ["transitions"], change.get("protocol", PROTOCOL))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_changed_are_evaluated_again(make_domain: Any, tmp_path: Path, name: str) -> None:
    domain = make_domain(SEQUENCES, 30)
    write(tmp_path, domain, ["popularity"])
    write_manifest(tmp_path, RESULTS)
    write(tmp_path, domain, ["transitions"])  # added, and noted
    assert set(read_metrics(tmp_path)["systems"]) == {"popularity", "transitions"}
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content.replace(b"recall@10", b"recall@11") if b"recall" in content else content[:-1])
    with pytest.raises(InputError, match=f"{name}: .*evaluate again"):
        read_metrics(tmp_path)


def test_table(make_domain: Any, tmp_path: Path) -> None:
    results = write(tmp_path, make_domain([*SEQUENCES, [3, 4, 3]], 30), ["popularity", "last_item"])
    head, rule, first, second, blank, caption = table(results).splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["system", "R@1", "R@10", "N@10", "MRR@10", "users/s"]
    assert len({len(line) for line in (head, rule, first, second)}) == 1
    metric = results["systems"]["last_item"]["recall@10"]
    assert f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]" in second
    assert blank == ""
    assert caption == (
        "toys (ffffffffffff), test, leave-one-out, full catalogue of 30 items (same text, one item), 41 users, "
        "no times: events in the file's order, seen items masked "
        "(the target of 2.4% of users is one: a miss for every system), MRR cut at 10; "
        "[95% bootstrap interval over users], seed 0."
    )
