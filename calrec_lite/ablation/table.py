"""All finished cells of an ablation beside each other: their metrics, and what they are more than the full cell."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calrec_lite.ablation.grid import FULL, Cell, data_changed, finished
from calrec_lite.evaluate.compare import Evaluation, refuse_unlike
from calrec_lite.evaluate.metrics import METRICS, Copies, Ranks, paired_bootstrap, summarise
from calrec_lite.evaluate.store import hardware, versions
from calrec_lite.evaluate.tables import caption, difference_cell, interval_cell, markdown
from calrec_lite.recipe import Recipe


def summary(recipe: Recipe, folder: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """All finished cells: metrics with intervals over users, and the paired difference from the full cell.

    With several seeds a user counts with the mean of the seeds; a difference is of the seeds that both cells have.

    Raises:
        InputError: the data or the protocol changed between two cells.
    """
    done = [cell for cell in cells if finished(cell, folder)]
    evaluated = {cell.name: Evaluation.open(folder / cell.name / "evaluation") for cell in done}
    first = next(iter(evaluated.values())).results
    _refuse_changed_data(done, evaluated, folder)
    ranks = {cell.name: evaluated[cell.name].ranks(cell.system)[1] for cell in done}
    copies = evaluated[done[0].name].copies(done[0].system)  # of the targets, which all cells share
    every = [stage.name for stage in recipe.stages]
    groups: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
    for cell in done:
        groups.setdefault((cell.variant, cell.stages), []).append(cell)
    full = {cell.seed: ranks[cell.name] for cell in groups.get((FULL, tuple(every)), [])}
    rows = []
    for (variant, stages), members in groups.items():
        own = {cell.seed: ranks[cell.name] for cell in members}
        if not stages:  # the untouched base knows no seed of training
            own = dict.fromkeys(full or own, ranks[members[0].name])
        is_full = (variant, list(stages)) == (FULL, every)
        rows.append(
            {
                "variant": variant,
                "stages": list(stages),
                "changes": recipe.ablate.variants.get(variant, {}),
                **_measured(own, {} if is_full else full, first["protocol"], copies),
                **_by_seed(members, folder),
            }
        )
    return {
        "name": recipe.name,
        "date": time.strftime("%Y-%m-%d"),
        "domain": first["domain"],
        "protocol": first["protocol"],
        "recommend": first.get("recommend"),
        "dtype": first.get("dtype"),
        "quantised": any(run.results.get("quantised") for run in evaluated.values()),
        "full": every,
        "budget": {"steps": recipe.ablate.steps, "minutes": recipe.ablate.minutes},
        "cells": {"finished": len(done), "planned": len(cells)},
        "rows": rows,
        "baselines": _baselines(done, evaluated, full, copies),
        "versions": versions(),
        "hardware": hardware(),  # of who wrote this; each cell has its own
    }


def _refuse_changed_data(done: Sequence[Cell], evaluated: dict[str, Evaluation], folder: Path) -> None:
    """Raises InputError unless all cells were trained on, and measured by, the same data, and by one protocol."""
    known: dict[str, str] = {}
    for cell in done:
        refuse_unlike(evaluated[done[0].name], evaluated[cell.name])  # `evaluate` may have run on one since
        facts = json.loads((folder / cell.name / "cell.json").read_text(encoding="utf-8"))
        measured = evaluated[cell.name].results["domain"]
        for name, fingerprint in {**facts.get("data", {}), measured["name"]: measured["fingerprint"]}.items():
            if known.setdefault(name, fingerprint) != fingerprint:
                raise data_changed(folder, name)


def _measured(
    own: dict[int, Ranks], full: dict[int, Ranks], protocol: dict[str, Any], copies: Copies | None
) -> dict[str, Any]:
    """Metrics of a row, and what they are more than the full cell's; both by seed."""
    options = protocol["bootstrap"], protocol["seed"], protocol["mrr_cut"], copies
    shared = [seed for seed in own if seed in full]
    difference = None
    if shared:
        of_full, of_own = (np.stack([of[seed] for seed in shared]) for of in (full, own))  # (R, U)
        difference = paired_bootstrap(of_full, of_own, *options)
    return {"metrics": summarise(np.stack(list(own.values())), *options), "minus_full": difference}


def _by_seed(members: Sequence[Cell], folder: Path) -> dict[str, Any]:
    kept = ("steps", "train_seconds", "valid_nats", "metrics", "hardware", "versions")
    seeds: dict[str, Any] = {}
    for cell in members:
        facts = json.loads((folder / cell.name / "cell.json").read_text(encoding="utf-8"))
        seeds[str(cell.seed)] = {"folder": cell.name, **{key: facts[key] for key in kept}}
    return {"seeds": seeds}


def _baselines(
    done: Sequence[Cell], evaluated: dict[str, Evaluation], full: dict[int, Ranks], copies: Copies | None
) -> dict[str, dict[str, Any]]:
    """The baselines, measured with the untouched base; a baseline knows no seed of training."""
    found: dict[str, dict[str, Any]] = {}
    for cell in done:
        results = evaluated[cell.name].results
        for name in results["systems"] if not cell.stages else []:
            if name != cell.system:
                ranks = evaluated[cell.name].ranks(name)[1]
                found[name] = _measured(dict.fromkeys(full or [cell.seed], ranks), full, results["protocol"], copies)
    return found


def ablation_table(results: dict[str, Any]) -> str:
    """`ablation.json` as one Markdown table: metrics [95% interval], and the paired difference from the full cell."""
    cut = results["protocol"]["mrr_cut"]
    head = ["stages", "change", "R@1", "R@10", "N@10", f"MRR@{cut}", "N@10 minus full", "steps", "minutes"]
    lines = []
    for row in results["rows"]:
        seeds = list(row["seeds"].values())
        steps, seconds = (np.mean([s[key] for s in seeds]) for key in ("steps", "train_seconds"))
        change = ", ".join(f"{key} = {value}" for key, value in row["changes"].items())
        lines.append(
            [" + ".join(row["stages"]) or "none", change or "-", *_cells(row), f"{steps:.0f}", f"{seconds / 60:.1f}"]
        )
    for name, row in results["baselines"].items():
        lines.append([f"({name})", "-", *_cells(row), "-", "-"])
    return f"{markdown(head, lines)}\n\n{_notes(results)}"


def _cells(row: dict[str, Any]) -> list[str]:
    values = [interval_cell(row["metrics"][metric]) for metric in METRICS]
    if row["minus_full"] is None:
        return [*values, "-"]
    return [*values, difference_cell(row["minus_full"]["ndcg@10"])]


def _notes(results: dict[str, Any]) -> str:
    budget, cells = results["budget"], results["cells"]
    if budget["steps"]:
        length = f"every trained cell had {budget['steps']:,} steps in all"
    elif budget["minutes"]:
        length = f"every trained cell had {budget['minutes']:g} minutes of training in all"
    else:
        length = "each stage is as long as the recipe says, so cells of more stages trained longer"
    seeds = max(len(row["seeds"]) for row in results["rows"])
    of_seeds = f" Mean of {seeds} seeds of training; intervals are over users, not over seeds." if seeds > 1 else ""
    unfinished = cells["planned"] - cells["finished"]
    still = f" {unfinished} of {cells['planned']} cells are not finished yet." if unfinished else ""
    return f"Cell minus full cell by paired bootstrap; {length}.{of_seeds}{still} {caption(results)}"
