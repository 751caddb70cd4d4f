"""Comparing two evaluations: what comes out and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines.counting import BASELINES
from calrec_lite.evaluate.compare import Evaluation, compare, comparison_table
from calrec_lite.evaluate.protocol import SAME, Protocol, SystemResult, evaluate_system
from calrec_lite.evaluate.store import write_results
from calrec_lite.evaluate.tables import interval_cell, table
from calrec_lite.measure.cases import build_cases
from calrec_lite.measure.metrics import METRICS, paired_bootstrap

PROTOCOL = Protocol(bootstrap=50)
SEQUENCES = [np.random.default_rng(n).permutation(30)[: 3 + n % 7].tolist() for n in range(40)]


def write(folder: Path, domain: Any, names: list[str], protocol: Protocol = PROTOCOL) -> dict[str, SystemResult]:
    """Evaluate the named baselines into `folder`."""
    cases = build_cases(domain, protocol.split, protocol.users, protocol.seed)
    systems = {name: evaluate_system(BASELINES[name](domain, 0), cases, protocol) for name in names}
    write_results(folder, domain, protocol, cases, systems, {})
    return systems


def test_compare_shared_systems_and_pairs(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES, 30)
    of_a = write(tmp_path / "a", domain, ["popularity", "transitions"])
    of_b = write(tmp_path / "b", domain, ["bm25_last", "popularity"])
    found = compare(tmp_path / "a", tmp_path / "b", [("transitions", "bm25_last")])
    assert [(pair["a"], pair["b"]) for pair in found["comparisons"]] == [
        ("popularity", "popularity"),
        ("transitions", "bm25_last"),
    ]
    expected = paired_bootstrap(of_a["transitions"].ranks, of_b["bm25_last"].ranks, 50, 0)
    assert found["comparisons"][1]["metrics"] == expected
    assert all(found["comparisons"][0]["metrics"][metric]["p"] == 1 for metric in METRICS)
    text = comparison_table(found)
    table_lines = text.split("\n\n")[0].splitlines()
    assert len([line for line in table_lines if line.startswith("| transitions -> bm25_last |")]) == 4
    assert max(map(len, table_lines)) <= 80
    assert f"{expected['ndcg@10']['difference']:+.4f}" in text
    assert "b minus a, paired bootstrap. toys (ffffffffffff), test" in text


def test_compare_credits_copies_as_the_table_does(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES, 30, copies={n: 1 + n % 4 for n in range(30)})
    expected = Protocol(duplicates="expected", bootstrap=50)
    write(tmp_path, domain, ["popularity", "transitions"], expected)
    pair = compare(tmp_path, tmp_path, [("popularity", "transitions")])["comparisons"][0]["metrics"]
    systems = Evaluation.open(tmp_path).results["systems"]
    for metric in METRICS:
        of_b, of_a = (systems[name][metric]["value"] for name in ("transitions", "popularity"))
        assert pair[metric]["difference"] == pytest.approx(of_b - of_a)


def test_copies_are_part_of_what_is_compared(make_domain: Any, tmp_path: Path) -> None:
    expected = Protocol(duplicates="expected", bootstrap=50)
    for name, copies in (("a", {0: 2}), ("b", {1: 2})):
        write(tmp_path / name, make_domain(SEQUENCES, 30, copies=copies), ["popularity"], expected)
    with pytest.raises(InputError, match="know different copies of the same items"):
        compare(tmp_path / "a", tmp_path / "b")


def test_how_lists_were_made_is_said(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES, 30)
    cases = build_cases(domain, "test", None, 0)
    rerank = {"strategy": "rerank", "fusion": 5.0, "transitions": 0.5}
    for name, recommend in (("a", {"strategy": "beam"}), ("b", rerank)):
        systems = {"final": evaluate_system(BASELINES["popularity"](domain, 0), cases, PROTOCOL)}
        write_results(tmp_path / name, domain, PROTOCOL, cases, systems, {"recommend": recommend})
    text = comparison_table(compare(tmp_path / "a", tmp_path / "b"))
    assert text.endswith("Models' lists by `beam`, of b by `rerank` (fusion 5, transitions 0.5).")
    text = comparison_table(compare(tmp_path / "a", tmp_path / "a", [("final", "final")]))
    assert text.endswith("Models' lists by `beam`.")


def test_compare_within_one_folder(make_domain: Any, tmp_path: Path) -> None:
    write(tmp_path, make_domain(SEQUENCES, 30), ["popularity", "transitions"])
    assert len(compare(tmp_path, tmp_path, [("popularity", "transitions")])["comparisons"]) == 1
    with pytest.raises(InputError, match="share no system"):
        compare(tmp_path, tmp_path)
    with pytest.raises(InputError, match="no system `sasrec`; it has: popularity, transitions"):
        compare(tmp_path, tmp_path, [("popularity", "sasrec")])


def test_compare_refuses_what_is_unlike(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES, 30)
    write(tmp_path / "a", domain, ["popularity"])
    write(tmp_path / "data", make_domain(SEQUENCES, 30, "e" * 64), ["popularity"])
    write(tmp_path / "split", domain, ["popularity"], Protocol(split="validation", bootstrap=50))
    write(tmp_path / "copies", domain, ["popularity"], Protocol(duplicates="expected", bootstrap=50))
    # Were the fingerprint forged, the way of holding out would still tell them apart.
    times = np.concatenate([np.arange(len(items)) for items in SEQUENCES])
    write(tmp_path / "time", make_domain(SEQUENCES, 30, times=times, cuts=(2, 3)), ["popularity"])
    write(tmp_path / "seed", make_domain(SEQUENCES, 30, "e" * 64), ["popularity"], Protocol(seed=1, bootstrap=50))
    with pytest.raises(InputError, match=r"different data \(fingerprints f{12} and e{12}\)"):
        compare(tmp_path / "a", tmp_path / "data")
    with pytest.raises(InputError, match=r"`seed` 0 and 1, which is part of the data"):
        compare(tmp_path / "a", tmp_path / "seed")
    with pytest.raises(InputError, match=r"different protocols \(split: test and validation\)"):
        compare(tmp_path / "a", tmp_path / "split")
    with pytest.raises(InputError, match=r"different protocols \(duplicates: canonical and expected\)"):
        compare(tmp_path / "a", tmp_path / "copies")
    with pytest.raises(InputError, match=r"different protocols \(holdout: leave-one-out and global time split"):
        compare(tmp_path / "a", tmp_path / "time")


def test_compare_needs_the_same_users_not_the_same_seed(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES, 30)
    write(tmp_path / "all0", domain, ["popularity"])
    write(tmp_path / "all1", domain, ["popularity"], Protocol(bootstrap=50, seed=1))
    assert len(compare(tmp_path / "all0", tmp_path / "all1")["comparisons"]) == 1
    for seed in (0, 1):
        write(tmp_path / f"some{seed}", domain, ["popularity"], Protocol(bootstrap=50, users=10, seed=seed))
    with pytest.raises(InputError, match="different users"):
        compare(tmp_path / "some0", tmp_path / "some1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "metrics.json").unlink(), "no evaluation"),
        (lambda folder: (folder / "rankings.parquet").unlink(), "no evaluation"),
        (lambda folder: (folder / "metrics.json").write_text("{"), "not the metrics of an evaluation"),
        (lambda folder: (folder / "metrics.json").write_text("{}"), "has no `domain`"),
        (lambda folder: (folder / "rankings.parquet").write_bytes(b"PAR1"), "not readable"),
    ],
)
def test_compare_says_what_is_damaged(make_domain: Any, tmp_path: Path, damage: Any, message: str) -> None:
    write(tmp_path, make_domain(SEQUENCES, 30), ["popularity"])
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        compare(tmp_path, tmp_path, [("popularity", "popularity")])
    assert "\n" not in str(error.value)


def test_a_model_measured_on_a_part_is_compared_on_that_part(make_domain: Any, tmp_path: Path) -> None:
    domain, protocol = make_domain(SEQUENCES, 30), Protocol(bootstrap=50, model_users=12)
    cases = build_cases(domain, "test", None, 0)
    part = cases.part(protocol.model_users, protocol.seed)
    model, baseline = (BASELINES[name](domain, 0) for name in ("transitions", "popularity"))
    systems = {
        "popularity": evaluate_system(baseline, cases, protocol),
        "last_item": evaluate_system(baseline, cases, protocol),
        "final": evaluate_system(model, part, protocol),
    }
    results = write_results(tmp_path, domain, protocol, cases, systems, {})
    assert results["users"] == {"popularity": len(cases.users), "last_item": len(cases.users), "final": 12}
    assert results["slices"]["final"]["target: explore"]["users"] == 12
    text = table(results)
    assert f"{len(cases.users)} users (models: 12 of them)" in text
    same = evaluate_system(baseline, part, protocol).metrics["ndcg@10"]
    assert results["slices"]["popularity"][SAME] | {"users": 0} == {
        "users": 0,
        **evaluate_system(baseline, part, protocol).metrics,
    }
    assert text.splitlines()[0].split("|")[7].strip() == "N@10, same 12"
    assert text.splitlines()[2].split("|")[7].strip() == interval_cell(same)
    assert [row.split("|")[2].strip() for row in text.splitlines()[2:5]] == [str(len(cases.users))] * 2 + ["12"]

    pairs = [("popularity", "final"), ("popularity", "last_item")]
    found = compare(tmp_path, tmp_path, pairs)
    of_part = evaluate_system(baseline, part, protocol)
    expected = paired_bootstrap(of_part.ranks, systems["final"].ranks, 50, 0)
    assert found["comparisons"][0] == {"a": "popularity", "b": "final", "users": 12, "metrics": expected}
    assert found["comparisons"][1]["users"] == len(cases.users)
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in comparison_table(found).splitlines()[2:6]]
    assert rows == [["popularity -> final", "12", metric] for metric in ("R@1", "R@10", "N@10", "MRR@10")]


def test_a_part_of_the_users_is_drawn_by_the_seed_and_in_order(make_domain: Any) -> None:
    cases = build_cases(make_domain(SEQUENCES, 30), "test", None, 0)
    part = cases.part(9, 3)
    assert part.users.tolist() == cases.part(9, 3).users.tolist() == sorted(part.users.tolist())
    assert part.users.tolist() != cases.part(9, 4).users.tolist()
    where = {user: i for i, user in enumerate(cases.users.tolist())}
    for user, history, target in zip(part.users.tolist(), part.histories, part.targets, strict=True):
        np.testing.assert_array_equal(history, cases.histories[where[user]])
        assert target == cases.targets[where[user]]
    assert cases.part(None, 0) is cases
    assert cases.part(1000, 0) is cases
