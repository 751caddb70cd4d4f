"""What an evaluation leaves behind: metrics.json, rankings.parquet, and a table with its protocol in the caption."""

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calrec_lite import __version__
from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.evaluate.metrics import METRICS
from calrec_lite.evaluate.protocol import SAME, Cases, Protocol, SystemResult, slices
from calrec_lite.files import atomic_path, write_json

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numpy", "duckdb", "cornac")
BY_SYSTEM = ("systems", "slices", "users", "users_per_second")
RANKINGS = pa.schema(
    [
        ("system", pa.string()),
        ("user", pa.string()),
        ("target", pa.string()),
        ("rank", pa.int32()),  # null: the target is not in the list; with duplicates: expected, the best it may have
        ("copies", pa.int64()),  # original items of the target's text, itself among them
        ("list", pa.list_(pa.string())),
    ]
)


def write_results(
    folder: Path,
    domain: Domain,
    protocol: Protocol,
    cases: Cases,
    systems: Mapping[str, SystemResult],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `metrics.json` and `rankings.parquet` into `folder`, and return what metrics.json holds.

    Systems measured there before by the same protocol are kept, those of the same name replaced: so stages can be
    evaluated one after the other. `systems` is {name: {metric: {value, low, high}}}; `slices`, `users` (how many it was
    measured on) and `users_per_second` stand beside it, by system too. `versions`, `hardware` and `date` are those of
    the last writing.

    Args:
        folder: made if it does not exist.
        extra: further keys of metrics.json.

    Raises:
        InputError: the folder holds results on other data or by another protocol (see `previous_results`).
    """
    previous = previous_results(folder, domain, protocol, cases)
    results: dict[str, Any] = {
        "domain": {"name": domain.name, "fingerprint": domain.fingerprint},
        "protocol": protocol.record(cases),
        "seed": protocol.seed,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(),
        "systems": {name: system.metrics for name, system in systems.items()},
        "slices": {name: slices(domain, system.cases, system.ranks, protocol) for name, system in systems.items()},
        "users": {name: len(system.ranks) for name, system in systems.items()},
        "users_per_second": {name: system.users_per_second for name, system in systems.items()},
    }
    for key in BY_SYSTEM:
        results[key] = {**previous.get(key, {}), **results[key]}
    results = {**results, **previous, **extra, **results}
    rankings = pa.concat_tables(
        [
            _kept_rankings(folder, set(previous.get("systems", {})) - set(systems)),
            *(_rankings(name, domain, system) for name, system in systems.items()),
        ]
    )
    # The rankings go first: whatever system metrics.json names has its rankings, killed between the two or not.
    with atomic_path(folder / "rankings.parquet") as temporary:
        pq.write_table(rankings, temporary, compression="zstd")
    write_json(folder / "metrics.json", results)
    return results


def previous_results(folder: Path, domain: Domain, protocol: Protocol, cases: Cases) -> dict[str, Any]:
    """The metrics.json in `folder`; empty if there is none. Call it before long work on what `folder` may refuse.

    Raises:
        InputError: it was measured on other data or by another protocol, so nothing can be added to it.
    """
    if not (folder / "metrics.json").is_file():
        return {}
    results = read_metrics(folder)
    mend = "remove that folder or write into another one"
    if results["domain"]["fingerprint"] != domain.fingerprint:
        raise InputError(f"{folder / 'metrics.json'}: measured on other data than domain `{domain.name}`; {mend}")
    ours, theirs = protocol.record(cases), results["protocol"]
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise InputError(
                f"{folder / 'metrics.json'}: measured by another protocol "
                f"({key}: {theirs.get(key)}, now {ours.get(key)}); {mend}"
            )
    return results


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics.json in `folder`. Raises InputError if it is missing or not what `write_results` writes."""
    path = folder / "metrics.json"
    if not path.is_file() or not (folder / "rankings.parquet").is_file():
        raise InputError(
            f"{folder}: no evaluation (metrics.json and rankings.parquet) there; make one with `calrec-lite evaluate`"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        missing = {"domain", "protocol", "systems"} - results.keys()
    except (ValueError, AttributeError):
        raise InputError(f"{path}: not the metrics of an evaluation; evaluate again") from None
    if missing:
        raise InputError(f"{path}: has no `{min(missing)}`; evaluate again")
    return dict(results)


def read_rankings(folder: Path, columns: list[str]) -> pa.Table:
    """Columns of the rankings.parquet in `folder`. Raises InputError if it is damaged."""
    try:
        return pq.read_table(folder / "rankings.parquet", columns=columns)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder / 'rankings.parquet'}: not readable ({reason}); evaluate again") from None


def versions() -> dict[str, str | None]:
    """Versions of what a result may depend on; null for what is not installed."""
    found: dict[str, str | None] = {"calrec_lite": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """The machine that users_per_second is of; `gpu` is null on a CPU."""
    # Here, not above: reading results and comparing them needs no torch, which takes seconds to import.
    import torch

    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # the instructions that torch's own kernels use
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def table(results: Mapping[str, Any]) -> str:
    """The contents of a metrics.json as a Markdown table, its protocol as the caption below."""
    speeds, users = results["users_per_second"], measured_on(results)
    apart = len(set(users.values())) > 1
    head = ["system", *(["users"] if apart else []), "R@1", "R@10", "N@10"]
    head += [f"MRR@{results['protocol']['mrr_cut']}", *([f"N@10, same {min(users.values()):,}"] if apart else [])]
    head += ["users/s"]
    rows = [
        [
            name,
            *([f"{users[name]:,}"] if apart else []),
            *(interval_cell(metrics[metric]) for metric in METRICS),
            *([interval_cell(results["slices"][name][SAME]["ndcg@10"])] if apart else []),
            f"{speeds[name]:.{0 if speeds[name] >= 100 else 1}f}",
        ]
        for name, metrics in results["systems"].items()
    ]
    return f"{markdown(head, rows)}\n\n{caption(results)}"


def measured_on(results: Mapping[str, Any]) -> dict[str, int]:
    """How many users each system was measured on; before that was written down, all were measured on all."""
    return dict.fromkeys(results["systems"], results["protocol"]["users"]) | results.get("users", {})


def caption(results: Mapping[str, Any]) -> str:
    """One line that says how the results were measured."""
    protocol, domain = results["protocol"], results["domain"]
    seen = "seen items masked" if protocol["exclude_seen"] else "seen items may be recommended"
    if protocol["unreachable"]:
        seen += f" (the target of {protocol['unreachable_share']:.1%} of users is one: a miss for every system)"
    # Results written before these keys were there are leave-one-out with canonical items.
    texts = {"canonical": "same text, one item", "expected": "items of the same text in random order, expected credit"}
    same = texts[protocol.get("duplicates", "canonical")]
    tied = protocol.get("tied_share")
    ties = "no times: events in the file's order"
    if tied is not None:
        ties = f"{tied:.1%} of targets tied in time (order drawn by the seed)"
    made = f", models' lists by {made_by(results)}" if results.get("recommend") else ""
    part = protocol.get("model_users")
    users = f"{protocol['users']:,} users"
    if part and part < protocol["users"]:
        users += f" (models: {part:,} of them)"
    return (
        f"{domain['name']} ({domain['fingerprint'][:12]}), {protocol['split']}, "
        f"{protocol.get('holdout', 'leave-one-out')}, full catalogue of {protocol['items']:,} items ({same}), "
        f"{users}, {ties}, {seen}, MRR cut at {protocol['mrr_cut']}{made}; "
        f"[95% bootstrap interval over users], seed {protocol['seed']}."
    )


def made_by(results: Mapping[str, Any]) -> str:
    """How the models' lists of an evaluation were made, in a few words."""
    recommend = results.get("recommend")
    if not recommend:
        return "an unknown strategy"
    made = f"`{recommend['strategy']}`"
    if recommend["strategy"] == "rerank":
        made += f" (fusion {recommend['fusion']:g}, transitions {recommend['transitions']:g})"
    if dtype := results.get("dtype"):  # older results do not say it
        made += f" in {dtype}"
    return f"{made}, quantised as in training (too large for the GPU)" if results.get("quantised") else made


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that also reads well as plain text: first column left, the others right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in [head, *rows]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def interval_cell(interval: Mapping[str, float]) -> str:
    """A metric with its interval, as all tables have it."""
    return f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"


def difference_cell(difference: Mapping[str, float]) -> str:
    """A paired difference with its interval and p-value, as all tables have it."""
    d = difference
    return f"{d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}] p={d['p']:.3g}"


def _kept_rankings(folder: Path, names: set[str]) -> pa.Table:
    if not names:
        return RANKINGS.empty_table()
    rankings = read_rankings(folder, RANKINGS.names)
    return rankings.filter(pc.is_in(rankings["system"], pa.array(sorted(names)))).cast(RANKINGS)


def _rankings(name: str, domain: Domain, system: SystemResult) -> pa.Table:
    ids, cases = domain.catalogue.ids, system.cases
    return pa.table(
        [
            [name] * len(cases.users),
            [domain.sequences.users[u] for u in cases.users],
            [ids[target] for target in cases.targets],
            [int(rank) if np.isfinite(rank) else None for rank in system.ranks],
            cases.copies[cases.targets],
            [[ids[item] for item in row if item >= 0] for row in system.lists],
        ],
        schema=RANKINGS,
    )
