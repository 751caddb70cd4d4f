"""Two measured systems compared on the same users, by a paired bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from calrec_lite.errors import InputError
from calrec_lite.evaluate.store import read_metrics, read_rankings
from calrec_lite.evaluate.tables import caption, made_by
from calrec_lite.measure.metrics import METRICS, Copies, Ranks, paired_bootstrap
from calrec_lite.table import markdown

REMEDY = "evaluate both on the same prepared domain"
# Keys of the protocol that may differ: how users were drawn, and how many resamples. The users must be the same.
NOT_COMPARED = ("seed", "bootstrap")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation read back from its folder."""

    folder: Path
    results: dict[str, Any]
    rankings: pa.Table

    @classmethod
    def open(cls, folder: Path) -> "Evaluation":
        """Read what `write_results` wrote into `folder`. Raises InputError if it is missing or damaged."""
        return cls(folder, read_metrics(folder), read_rankings(folder, ["system", "user", "rank", "copies"]))

    def ranks(self, system: str) -> tuple[list[str], Ranks]:
        """The users, sorted, and the rank of each one's target; inf where it is not in the list.

        Raises:
            InputError: the run has no such system.
        """
        rows = self._rows(system)
        ranks = rows["rank"].cast(pa.float64()).fill_null(np.inf)
        return rows["user"].to_pylist(), ranks.to_numpy()

    def copies(self, system: str) -> Copies | None:
        """The copies of each target in the order of `ranks`; None where the protocol knows none. Raises as `ranks`."""
        return self._rows(system)["copies"].to_numpy() if self.results["protocol"]["duplicates"] == "expected" else None

    def _rows(self, system: str) -> pa.Table:
        rows = self.rankings.filter(pc.equal(self.rankings["system"], system)).sort_by("user")
        if system not in self.results["systems"] or not len(rows):
            raise InputError(f"{self.folder}: no system `{system}`; it has: {', '.join(self.results['systems'])}")
        return rows


def compare(a: Path, b: Path, pairs: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """System against system: b minus a, with 95% intervals and p-values by a paired bootstrap.

    Args:
        a: folder with metrics.json and rankings.parquet.
        b: another one, whose systems are compared with those of the same name in `a`; or the same folder again.
        pairs: compare these too: (a system of `a`, a system of `b`).

    Returns:
        `domain` (the same for both), the `protocol` of `a`, `lists`: how each made its models' lists, in words, and
        `comparisons`: a list of {a, b, users, metrics: {metric: {difference, low, high, p}}}, `users` being how many.

    Raises:
        InputError: the two differ in data, protocol or users, lack a system of `pairs`, or leave nothing to compare.
    """
    run_a, run_b = Evaluation.open(a), Evaluation.open(b)
    refuse_unlike(run_a, run_b)
    same = a.resolve() == b.resolve()
    shared = [] if same else [(name, name) for name in run_a.results["systems"] if name in run_b.results["systems"]]
    pairs = list(dict.fromkeys([*shared, *pairs]))
    if not pairs:
        raise InputError(f"{a} and {b} share no system to compare; name one of each by --pair")
    return {
        "domain": run_a.results["domain"],
        "protocol": run_a.results["protocol"],
        "lists": [made_by(run.results) for run in (run_a, run_b)],
        "comparisons": [{"a": sys_a, "b": sys_b, **_differences(run_a, sys_a, run_b, sys_b)} for sys_a, sys_b in pairs],
    }


def comparison_table(comparison: dict[str, Any]) -> str:
    """The result of `compare` as a Markdown table with its protocol as the caption."""
    return f"{markdown(*comparison_rows(comparison))}\n\n{comparison_notes(comparison)}"


def comparison_rows(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows, narrow enough for 80 columns: a row a pair and metric."""
    uneven = len({pair["users"] for pair in comparison["comparisons"]}) > 1
    head = ["a -> b", *(["users"] if uneven else []), "metric", "b - a", "95% interval", "p"]
    names = ("R@1", "R@10", "N@10", f"MRR@{comparison['protocol']['mrr_cut']}")
    rows = [
        [
            pair["a"] if pair["a"] == pair["b"] else f"{pair['a']} -> {pair['b']}",
            *([f"{pair['users']:,}"] if uneven else []),
            name,
            f"{d['difference']:+.4f}",
            f"[{d['low']:+.4f}, {d['high']:+.4f}]",
            f"{d['p']:.3g}",
        ]
        for pair in comparison["comparisons"]
        for name, d in zip(names, (pair["metrics"][metric] for metric in METRICS), strict=True)
    ]
    return head, rows


def comparison_notes(comparison: dict[str, Any]) -> str:
    """How the two were measured, and their lists made."""
    lists = dict.fromkeys(comparison["lists"])  # one entry where both are the same
    return f"b minus a, paired bootstrap. {caption(comparison)} Models' lists by {', of b by '.join(lists)}."


def _differences(a: Evaluation, system_a: str, b: Evaluation, system_b: str) -> dict[str, Any]:
    """Over the users that both have: a model may have been measured on a part of them (`evaluate.model_users`)."""
    users_a, ranks_a = a.ranks(system_a)
    users_b, ranks_b = b.ranks(system_b)
    shared_users = sorted(set(users_a) & set(users_b))
    if shared_users not in (users_a, users_b):
        seeds = f"{a.results['protocol']['seed']} and {b.results['protocol']['seed']}"
        raise InputError(
            f"{a.folder} and {b.folder} measured different users (seeds {seeds}): "
            "evaluate both with the same seed and number of users"
        )
    protocol = a.results["protocol"]
    in_a, in_b = np.isin(users_a, shared_users), np.isin(users_b, shared_users)
    copies_a, copies_b = a.copies(system_a), b.copies(system_b)
    if copies_a is not None and copies_b is not None:
        copies_a, copies_b = copies_a[in_a], copies_b[in_b]
        if not np.array_equal(copies_a, copies_b):
            raise InputError(f"{a.folder} and {b.folder} know different copies of the same items: {REMEDY}")
    options = protocol["bootstrap"], protocol["seed"], protocol["mrr_cut"], copies_a
    return {"users": len(shared_users), "metrics": paired_bootstrap(ranks_a[in_a], ranks_b[in_b], *options)}


def refuse_unlike(a: Evaluation, b: Evaluation) -> None:
    """Raises InputError unless both are of the same data and protocol."""
    data_a, data_b = (run.results["domain"]["fingerprint"] for run in (a, b))
    protocol_a, protocol_b = a.results["protocol"], b.results["protocol"]
    if data_a != data_b:
        seed_a, seed_b = protocol_a["seed"], protocol_b["seed"]
        seeds = f"; `seed` {seed_a} and {seed_b}, which is part of the data: training has `optim.seed`"
        raise InputError(
            f"{a.folder} and {b.folder} measured different data (fingerprints {data_a[:12]} and {data_b[:12]}"
            f"{seeds if seed_a != seed_b else ''}): {REMEDY}"
        )
    for key in sorted((protocol_a.keys() | protocol_b.keys()) - set(NOT_COMPARED)):
        if protocol_a.get(key) != protocol_b.get(key):
            raise InputError(
                f"{a.folder} and {b.folder} were measured by different protocols "
                f"({key}: {protocol_a.get(key)} and {protocol_b.get(key)}): evaluate both by the same one"
            )
