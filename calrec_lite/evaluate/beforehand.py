"""Baselines measured before anything is trained, on all users: what they come to, and what `evaluate` takes of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from calrec_lite import __version__
from calrec_lite.claim import claimed
from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines import BASELINE_NAMES, baseline_settings, build_baseline, telling_baselines
from calrec_lite.evaluate.baselines.counting import BASELINES
from calrec_lite.evaluate.baselines.sasrec import require_cornac
from calrec_lite.evaluate.protocol import Protocol, SystemResult, evaluate_system, judged
from calrec_lite.evaluate.store import RESULTS, previous_results, read_metrics, read_rankings, write_results
from calrec_lite.measure.cases import Cases, build_cases
from calrec_lite.recipe import Recipe
from calrec_lite.stored import MANIFEST, write_manifest

FOLDER = "baselines"  # of a run; beside a prepared domain that belongs to none
OF_LISTS = ("split", "exclude_seen", "k", "seed")  # keys of the protocol that decide what a baseline's lists are


def chosen_baselines(recipe: Recipe, everything: bool) -> list[str]:
    """Those that only count, and those that the recipe names; or all there are.

    Raises:
        InputError: the recipe names one that needs what is not installed.
    """
    named = recipe.evaluate.baselines
    if "sasrec" in named:
        require_cornac()  # before the others are measured
    chosen = [name for name in BASELINE_NAMES if everything or name in (*BASELINES, *named)]
    options = recipe.evaluate.model_copy(update={"baselines": chosen})
    return telling_baselines(recipe.model_copy(update={"evaluate": options}))


def measure_baselines(place: Path, domain: Domain, recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    """Measure baselines on every user that has a case; returns and writes a `metrics.json`, as `evaluate` does.

    Each is kept as soon as it is measured. Those that the recipe does not name are left out, with a line, where they
    cannot be had.

    Args:
        place: folder of the run, or of the prepared domain; it gets a folder `baselines`.

    Raises:
        InputError: no user has a case, a baseline that the recipe names cannot be had, or another process is at work
            on it.
    """
    folder = place / FOLDER
    protocol = _on_all_users(recipe)
    cases = build_cases(domain, protocol.split, None, protocol.seed)
    with claimed(folder):
        known = _kept(folder, domain, protocol, cases)
        settings = dict(known.get("settings", {}))
        for name in names:
            current = _settings(name, recipe)
            if name in known.get("systems", {}) and settings.get(name) == current:
                print(f"{name}: measured already")
                continue
            print(f"{name}: measuring on {len(cases.users):,} users", flush=True)
            try:
                system = evaluate_system(build_baseline(name, domain, recipe), cases, protocol)
            except InputError as error:
                if name in recipe.evaluate.baselines:
                    raise
                print(f"{name}: left out: {error}")
                continue
            settings[name] = current
            write_results(folder, domain, protocol, cases, {name: system}, {"settings": settings})
        write_manifest(folder, RESULTS)
        return read_metrics(folder)


def kept_baseline(name: str, place: Path, domain: Domain, recipe: Recipe, cases: Cases) -> SystemResult | None:
    """A baseline on these users as `measure_baselines` measured it; None where it did not, or by other settings.

    Metrics and intervals are made anew of the users' lists, so they are those that measuring again would give.
    """
    protocol, folder = Protocol.of(recipe), place / FOLDER
    try:
        results = read_metrics(folder)
        rankings = read_rankings(folder, ["system", "user", "list"])
    except InputError:
        return None
    same = results["domain"]["fingerprint"] == domain.fingerprint
    same &= all(results["protocol"].get(key) == getattr(protocol, key) for key in OF_LISTS)
    if not same or name not in results["systems"] or results.get("settings", {}).get(name) != _settings(name, recipe):
        return None
    own = rankings.filter(pc.equal(rankings["system"], name))
    place_of = {user: i for i, user in enumerate(own["user"].to_pylist())}
    index = {item: i for i, item in enumerate(domain.catalogue.ids)}
    lists = np.full((len(cases.users), protocol.k), -1, np.int32)
    for row, user in zip(lists, cases.users):
        found = place_of.get(domain.sequences.users[user])
        if found is None:
            return None
        items = [index[item] for item in own["list"][found].as_py()]
        row[: len(items)] = items
    return judged(lists, len(lists) / results["users_per_second"][name], cases, protocol)


def _on_all_users(recipe: Recipe) -> Protocol:
    return replace(Protocol.of(recipe), users=None, model_users=None)


def _settings(name: str, recipe: Recipe) -> dict[str, Any]:
    return {"version": __version__, **baseline_settings(name, recipe)}


def _kept(folder: Path, domain: Domain, protocol: Protocol, cases: Cases) -> dict[str, Any]:
    """What was measured here before; of other data or by another protocol it is removed: it takes minutes at most."""
    try:
        return previous_results(folder, domain, protocol, cases)
    except InputError:
        for name in (MANIFEST, *RESULTS):
            (folder / name).unlink(missing_ok=True)
        return {}
