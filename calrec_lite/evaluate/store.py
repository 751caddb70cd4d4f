"""The files of an evaluation, written and read: metrics.json and rankings.parquet."""

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
from calrec_lite.evaluate.protocol import Protocol, SystemResult, slices
from calrec_lite.files import atomic_path, write_json
from calrec_lite.measure.cases import Cases
from calrec_lite.stored import MANIFEST, require_unchanged, write_manifest

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numpy", "duckdb", "cornac")
RESULTS = ("metrics.json", "rankings.parquet")
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
    measured on) and `users_per_second` are by system too. `versions`, `hardware` and `date` are those of the last
    writing.

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
            _other_systems_rankings(folder, set(previous.get("systems", {})) - set(systems)),
            *(_system_rankings(name, domain, system) for name, system in systems.items()),
        ]
    )
    # The rankings go first: even after a kill between the two, every system in metrics.json has its rankings.
    with atomic_path(folder / "rankings.parquet") as temporary:
        pq.write_table(rankings, temporary, compression="zstd")
    write_json(folder / "metrics.json", results)
    if (folder / MANIFEST).is_file():  # of an evaluation that was complete
        write_manifest(folder, RESULTS)
    return results


def previous_results(folder: Path, domain: Domain, protocol: Protocol, cases: Cases) -> dict[str, Any]:
    """The metrics.json in `folder`; empty if there is none. Call it before long work whose results could not be added.

    Raises:
        InputError: it was measured on other data or by another protocol, so nothing can be added to it.
    """
    if not (folder / "metrics.json").is_file():
        return {}
    results = read_metrics(folder)
    remedy = "remove that folder or write into another one"
    if results["domain"]["fingerprint"] != domain.fingerprint:
        raise InputError(f"{folder / 'metrics.json'}: measured on other data than domain `{domain.name}`; {remedy}")
    current, stored = protocol.record(cases), results["protocol"]
    for key in sorted(current.keys() | stored.keys()):
        if current.get(key) != stored.get(key):
            raise InputError(
                f"{folder / 'metrics.json'}: measured by another protocol "
                f"({key}: {stored.get(key)}, now {current.get(key)}); {remedy}"
            )
    return results


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics.json in `folder`. Raises InputError if it is missing or not what was written."""
    path = folder / "metrics.json"
    if not path.is_file() or not (folder / "rankings.parquet").is_file():
        raise InputError(
            f"{folder}: no evaluation (metrics.json and rankings.parquet) there; make one with `calrec-lite evaluate`"
        )
    require_unchanged(folder, remedy="evaluate again")
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
        return pq.read_table(folder / "rankings.parquet", columns=columns, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder / 'rankings.parquet'}: not readable ({reason}); evaluate again") from None


def versions() -> dict[str, str | None]:
    """Versions of what a result may depend on; null for what is not installed."""
    by_package: dict[str, str | None] = {"calrec_lite": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:
            by_package[package] = None
    return by_package


def hardware() -> dict[str, Any]:
    """The machine on which users_per_second was measured; `gpu` is null on a CPU."""
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


def _other_systems_rankings(folder: Path, systems: set[str]) -> pa.Table:
    if not systems:
        return RANKINGS.empty_table()
    rankings = read_rankings(folder, RANKINGS.names)
    return rankings.filter(pc.is_in(rankings["system"], pa.array(sorted(systems)))).cast(RANKINGS)


def _system_rankings(name: str, domain: Domain, system: SystemResult) -> pa.Table:
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
