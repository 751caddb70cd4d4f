"""All finished cells of an ablation in one table: their metrics, and their differences from the full cell."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calrec_lite.ablation.grid import FULL, Cell, data_changed, finished
from calrec_lite.evaluate.baselines import BASELINE_NAMES
from calrec_lite.evaluate.compare import Evaluation, refuse_unlike
from calrec_lite.evaluate.store import hardware, versions
from calrec_lite.evaluate.tables import caption, difference_cell, interval_cell
from calrec_lite.measure.metrics import METRICS, Copies, Ranks, paired_bootstrap, summarise
from calrec_lite.recipe import Recipe
from calrec_lite.table import markdown


def summary(recipe: Recipe, folder: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """All finished cells: metrics with intervals over users, and the paired difference from the full cell.

    With several seeds a user's value is the mean over them; a difference takes the seeds that both cells have.

    Raises:
        InputError: the data or the protocol changed between two cells.
    """
    finished_cells = [cell for cell in cells if finished(cell, folder)]
    evaluated = {cell.name: Evaluation.open(folder / cell.name / "evaluation") for cell in finished_cells}
    first_results = next(iter(evaluated.values())).results
    _refuse_changed_data(finished_cells, evaluated, folder)
    ranks = {cell.name: evaluated[cell.name].ranks(cell.system)[1] for cell in finished_cells}
    copies = evaluated[finished_cells[0].name].copies(finished_cells[0].system)  # of the targets, which all cells share
    all_stages = [stage.name for stage in recipe.stages]
    cells_by_row: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
    for cell in finished_cells:
        cells_by_row.setdefault((cell.variant, cell.stages), []).append(cell)
    full = {cell.seed: ranks[cell.name] for cell in cells_by_row.get((FULL, tuple(all_stages)), [])}
    rows = []
    for (variant, stages), row_cells in cells_by_row.items():
        row_ranks = {cell.seed: ranks[cell.name] for cell in row_cells}
        if not stages:  # the untouched base has no seed of training: the same ranks for each
            row_ranks = dict.fromkeys(full or row_ranks, ranks[row_cells[0].name])
        is_full = (variant, list(stages)) == (FULL, all_stages)
        rows.append(
            {
                "variant": variant,
                "stages": list(stages),
                "changes": recipe.ablate.variants.get(variant, {}),
                **_row_metrics(row_ranks, {} if is_full else full, first_results["protocol"], copies),
                **_by_seed(row_cells, folder),
            }
        )
    return {
        "name": recipe.name,
        "date": time.strftime("%Y-%m-%d"),
        "domain": first_results["domain"],
        "protocol": first_results["protocol"],
        "recommend": first_results.get("recommend"),
        "dtype": first_results.get("dtype"),
        "quantised": any(run.results.get("quantised") for run in evaluated.values()),
        "full": all_stages,
        "budget": {"steps": recipe.ablate.steps, "minutes": recipe.ablate.minutes},
        "cells": {"finished": len(finished_cells), "planned": len(cells)},
        "rows": rows,
        "baselines": _baselines(finished_cells, evaluated, full, copies),
        "versions": versions(),
        "hardware": hardware(),  # of the machine that wrote this; each cell records the one it ran on
    }


def _refuse_changed_data(finished_cells: Sequence[Cell], evaluated: dict[str, Evaluation], folder: Path) -> None:
    """Raises InputError unless all cells were trained on, and measured by, the same data, and by one protocol."""
    fingerprints: dict[str, str] = {}
    for cell in finished_cells:
        refuse_unlike(evaluated[finished_cells[0].name], evaluated[cell.name])  # `evaluate` may have changed one since
        facts = json.loads((folder / cell.name / "cell.json").read_text(encoding="utf-8"))
        target_domain = evaluated[cell.name].results["domain"]
        for name, fingerprint in {**facts.get("data", {}), target_domain["name"]: target_domain["fingerprint"]}.items():
            if fingerprints.setdefault(name, fingerprint) != fingerprint:
                raise data_changed(folder, name)


def _row_metrics(
    row_ranks: dict[int, Ranks], full: dict[int, Ranks], protocol: dict[str, Any], copies: Copies | None
) -> dict[str, Any]:
    """Metrics of a row, and their differences from the full cell's; the ranks of both by seed."""
    options = protocol["bootstrap"], protocol["seed"], protocol["mrr_cut"], copies
    seeds = [seed for seed in row_ranks if seed in full]
    difference = None
    if seeds:
        full_shared, row_shared = (np.stack([ranks[seed] for seed in seeds]) for ranks in (full, row_ranks))  # (R, U)
        difference = paired_bootstrap(full_shared, row_shared, *options)
    return {"metrics": summarise(np.stack(list(row_ranks.values())), *options), "minus_full": difference}


def _by_seed(row_cells: Sequence[Cell], folder: Path) -> dict[str, Any]:
    fields = ("steps", "train_seconds", "valid_nats", "metrics", "hardware", "versions")
    seeds: dict[str, Any] = {}
    for cell in row_cells:
        facts = json.loads((folder / cell.name / "cell.json").read_text(encoding="utf-8"))
        seeds[str(cell.seed)] = {"folder": cell.name, **{key: facts[key] for key in fields}}
    return {"seeds": seeds}


def _baselines(
    finished_cells: Sequence[Cell], evaluated: dict[str, Evaluation], full: dict[int, Ranks], copies: Copies | None
) -> dict[str, dict[str, Any]]:
    """The baselines, measured with the first cell; they have no seed of training, so their ranks serve for each.

    With the untouched base also what its lists are made of.
    """
    rows: dict[str, dict[str, Any]] = {}
    for cell in finished_cells:
        results = evaluated[cell.name].results
        for name in results["systems"]:
            if name in BASELINE_NAMES or (not cell.stages and name != cell.system):
                ranks = evaluated[cell.name].ranks(name)[1]
                rows[name] = _row_metrics(dict.fromkeys(full or [cell.seed], ranks), full, results["protocol"], copies)
    return rows


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
        training_length = f"every trained cell had {budget['steps']:,} steps in all"
    elif budget["minutes"]:
        training_length = f"every trained cell had {budget['minutes']:g} minutes of training in all"
    else:
        training_length = "each stage is as long as the recipe says, so cells of more stages trained longer"
    seeds = max(len(row["seeds"]) for row in results["rows"])
    seeds_note = f" Mean of {seeds} seeds of training; intervals are over users, not over seeds." if seeds > 1 else ""
    unfinished = cells["planned"] - cells["finished"]
    progress = f" {unfinished} of {cells['planned']} cells are not finished yet." if unfinished else ""
    return f"Cell minus full cell by paired bootstrap; {training_length}.{seeds_note}{progress} {caption(results)}"
