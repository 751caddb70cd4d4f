"""Two measured systems held against each other on the same users, by a paired bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from calrec_lite.errors import InputError
from calrec_lite.evaluate.metrics import METRICS, Copies, Ranks, paired_bootstrap
from calrec_lite.evaluate.store import read_metrics, read_rankings
from calrec_lite.evaluate.tables import caption, difference_cell, made_by, markdown

MEND = "evaluate both on the same prepared domain"
# These say how users were drawn and how wide the intervals are. What they led to, the users, is compared itself.
DRAW = ("seed", "bootstrap")


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
        What both share (`domain`, and the `protocol` of `a`), `lists`: how each made its models' lists, in words, and
        `comparisons`: a list of {a, b, users, metrics: {metric: {difference, low, high, p}}}, over so many users.

    Raises:
        InputError: the two differ in data, protocol or users, lack a system of `pairs`, or leave nothing to compare.
    """
    run_a, run_b = Evaluation.open(a), Evaluation.open(b)
    refuse_unlike(run_a, run_b)
    same = a.resolve() == b.resolve()
    shared = [] if same else [(name, name) for name in run_a.results["systems"] if name in run_b.results["systems"]]
    chosen = list(dict.fromkeys([*shared, *pairs]))
    if not chosen:
        raise InputError(f"{a} and {b} share no system to compare; name one of each by --pair")
    return {
        "domain": run_a.results["domain"],
        "protocol": run_a.results["protocol"],
        "lists": [made_by(run.results) for run in (run_a, run_b)],
        "comparisons": [{"a": of_a, "b": of_b, **_differences(run_a, of_a, run_b, of_b)} for of_a, of_b in chosen],
    }


def comparison_table(comparison: dict[str, Any]) -> str:
    """The result of `compare` as a Markdown table with its protocol as the caption."""
    apart = len({pair["users"] for pair in comparison["comparisons"]}) > 1
    head = ["a -> b", *(["users"] if apart else []), "R@1", "R@10", "N@10", f"MRR@{comparison['protocol']['mrr_cut']}"]
    rows = [
        [
            pair["a"] if pair["a"] == pair["b"] else f"{pair['a']} -> {pair['b']}",
            *([f"{pair['users']:,}"] if apart else []),
            *(difference_cell(pair["metrics"][metric]) for metric in METRICS),
        ]
        for pair in comparison["comparisons"]
    ]
    lists = dict.fromkeys(comparison["lists"])  # the same need be said once
    notes = f"b minus a, paired bootstrap. {caption(comparison)} Models' lists by {', of b by '.join(lists)}."
    return f"{markdown(head, rows)}\n\n{notes}"


def _differences(a: Evaluation, of_a: str, b: Evaluation, of_b: str) -> dict[str, Any]:
    """Over the users of both: a model may have been measured on a part of them (`evaluate.model_users`)."""
    users_a, ranks_a = a.ranks(of_a)
    users_b, ranks_b = b.ranks(of_b)
    both = sorted(set(users_a) & set(users_b))
    if both not in (users_a, users_b):
        seeds = f"{a.results['protocol']['seed']} and {b.results['protocol']['seed']}"
        raise InputError(
            f"{a.folder} and {b.folder} measured different users (seeds {seeds}): "
            "evaluate both with the same seed and number of users"
        )
    protocol = a.results["protocol"]
    in_a, in_b = np.isin(users_a, both), np.isin(users_b, both)
    copies, of_b_copies = a.copies(of_a), b.copies(of_b)
    if copies is not None and of_b_copies is not None:
        copies, of_b_copies = copies[in_a], of_b_copies[in_b]
        if not np.array_equal(copies, of_b_copies):
            raise InputError(f"{a.folder} and {b.folder} know different copies of the same items: {MEND}")
    options = protocol["bootstrap"], protocol["seed"], protocol["mrr_cut"], copies
    return {"users": len(both), "metrics": paired_bootstrap(ranks_a[in_a], ranks_b[in_b], *options)}


def refuse_unlike(a: Evaluation, b: Evaluation) -> None:
    """Raises InputError unless both are of the same data and protocol."""
    prints = [run.results["domain"]["fingerprint"] for run in (a, b)]
    of_a, of_b = a.results["protocol"], b.results["protocol"]
    if prints[0] != prints[1]:
        seeds = ""
        if of_a["seed"] != of_b["seed"]:
            seeds = f"; `seed` {of_a['seed']} and {of_b['seed']}, which is part of the data: training has `optim.seed`"
        raise InputError(
            f"{a.folder} and {b.folder} measured different data (fingerprints {prints[0][:12]} and {prints[1][:12]}"
            f"{seeds}): {MEND}"
        )
    for key in sorted((of_a.keys() | of_b.keys()) - set(DRAW)):
        if of_a.get(key) != of_b.get(key):
            raise InputError(
                f"{a.folder} and {b.folder} were measured by different protocols "
                f"({key}: {of_a.get(key)} and {of_b.get(key)}): evaluate both by the same one"
            )
