"""`calrec-lite ablate`: every cell of the grid trained and measured, each stage trained once, one table at the end."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calrec_lite.errors import InputError
from calrec_lite.evaluate import compare
from calrec_lite.evaluate.metrics import METRICS, Copies, Ranks, paired_bootstrap, summarise
from calrec_lite.evaluate.results import caption, difference_cell, hardware, interval_cell, markdown, versions
from calrec_lite.evaluate.systems import evaluate_run
from calrec_lite.files import atomic_path, write_json
from calrec_lite.model.device import Choice
from calrec_lite.recipe import Recipe, resolved
from calrec_lite.recipe_file import check_recipe
from calrec_lite.train.cells import FULL, Cell, plan, stage_keys
from calrec_lite.train.run import FREE, Run
from calrec_lite.train.stage import train_run


def ablation_folder(recipe: Recipe, root: Path) -> Path:
    """Where an ablation lies: `runs/NAME-ablation`, a run a cell in it."""
    return root / f"{recipe.name}-ablation"


def ablate(recipe: Recipe, root: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Train and measure every cell of `recipe.ablate`; returns and writes `ablation.json`, and the table `ablation.md`.

    Started again after a stop it goes on: finished cells are kept, and so is every stage that another cell has trained
    already. Of a finished cell all stays but its merged weights, which `train` makes again from the adapters.

    Args:
        only: names of the cells to run now; none: all. Several processes may run different cells side by side, where
            one small model does not fill a GPU.

    Raises:
        InputError: the grid names a key that is not there; `only` a cell that is not there; or a cell's folder holds
            a run of another recipe.
        RunError: as `train_run`; the ablation can be started again.
    """
    folder = ablation_folder(recipe, root)
    cells = plan(recipe)
    refuse_unknown(cells, only)
    results: dict[str, Any] = {}
    for number, cell in enumerate(cells, 1):
        if only and cell.name not in only:
            continue
        if _finished(cell, folder):
            _refuse_other_data(cell, folder)
            print(f"cell {number} of {len(cells)}, {cell.name}: done already")
        else:
            print(f"cell {number} of {len(cells)}, {cell.name}")
            _run_cell(cell, folder, cells)
        remove_weights(folder / cell.name)
        results = _write_summary(recipe, folder, cells)
    return results


def refuse_unknown(cells: Sequence[Cell], only: Sequence[str]) -> None:
    """Raises InputError where `only` names a cell that is not there."""
    names = [cell.name for cell in cells]
    if unknown := [name for name in only if name not in names]:
        raise InputError(f"no cell {', '.join(unknown)}; there are: {', '.join(names)}")


def _finished(cell: Cell, folder: Path) -> bool:
    """Whether the cell was measured with this recipe; what only changes memory or speed may differ."""
    file = folder / cell.name / "cell.json"
    if not file.is_file():
        return False
    measured = resolved(check_recipe(json.loads(file.read_text(encoding="utf-8"))["recipe"]))  # keys it lacks: defaults
    now = resolved(cell.recipe)
    if "auto" in (measured["base"]["dtype"], now["base"]["dtype"]):  # whatever it came to, the cell was measured in it
        now["base"]["dtype"] = measured["base"]["dtype"]
    return _deciding(measured) == _deciding(now)


def _refuse_other_data(cell: Cell, folder: Path) -> None:
    """Raises InputError where the sources of a finished cell's data have changed since."""
    run, facts = Run.open(folder / cell.name), json.loads((folder / cell.name / "cell.json").read_text("utf-8"))
    for name, fingerprint in facts.get("data", {}).items():
        if run.domain(name).fingerprint != fingerprint:
            raise _changed(folder, name)


def _changed(folder: Path, domain: str) -> InputError:
    return InputError(
        f"{folder}: the data of `{domain}` has changed since the first cells were measured; "
        "restore the files, or remove that folder"
    )


def _deciding(values: dict[str, Any]) -> dict[str, Any]:
    optim = {key: value for key, value in values["optim"].items() if key not in FREE}
    return {**values, "optim": optim, "export": None}


def _run_cell(cell: Cell, folder: Path, cells: Sequence[Cell]) -> None:
    run = Run.start(cell.recipe, folder)
    _share_domains(run, folder)
    _share_dtype(run, folder, cells)
    if cell.stages:
        _borrow(cell, run, folder, cells)
        train_run(run)
        _correct_handovers(run)
    results = evaluate_run(run, trained=bool(cell.stages))
    stages = run.stage_metrics()
    facts = {
        "variant": cell.variant,
        "stages": list(cell.stages),
        "seed": cell.seed,
        "steps": sum(s["steps"] for s in stages.values()),
        "train_seconds": round(sum(s["train_seconds"] for s in stages.values()), 1),
        "valid_nats": list(stages.values())[-1]["valid_nats_merged"] if stages else None,
        "metrics": results["systems"][_system(cell)],
        "hardware": hardware(),
        "versions": versions(),
        "recipe": resolved(cell.recipe),
        "data": {name: run.domain(name).fingerprint for name in _domains(cell)},
    }
    write_json(run.folder / "cell.json", facts)  # last: from here on the cell is finished


def _domains(cell: Cell) -> list[str]:
    """What the cell's result depends on: the target and all that was trained on."""
    trained = [d for stage in cell.recipe.stages if cell.stages for d in stage.domains]
    return list(dict.fromkeys([cell.recipe.target, *trained]))


def _share_domains(run: Run, folder: Path) -> None:
    """One prepared copy of each domain for all cells: their data is the same."""
    (folder / "domains").mkdir(exist_ok=True)
    link = run.folder / "domains"
    if not link.is_symlink():
        link.symlink_to(Path("..") / "domains", target_is_directory=True)


def _share_dtype(run: Run, folder: Path, cells: Sequence[Cell]) -> None:
    """One number type for all cells whose recipe leaves it open: what differs between them is their recipes.

    Not float16, which not every cell would be tried in.
    """
    if run.recipe.base.dtype != "auto" or run.kept_dtype:
        return
    for cell in cells:
        if (folder / cell.name / "recipe.yaml").is_file() and cell.recipe.base.dtype == "auto":
            known = Run.open(folder / cell.name).came_to  # of an older cell by its recipe alone
            if known != "auto":
                run.keep_dtype(Choice(known, "as of the first cell"))
                return
    if run.dtype.dtype == "float16":
        run.keep_dtype(Choice("float32", "float16 is not tried in every cell"))


def _borrow(cell: Cell, run: Run, folder: Path, cells: Sequence[Cell]) -> None:
    """Copy the stages that another cell has finished: adapter, measures and log."""
    for i, (key, own) in enumerate(zip(cell.keys, run.stages)):
        if own.metrics.is_file() or not (donor := _donor(key, i, folder, cells)):
            continue
        print(f"stage {own.folder.name}: as trained in cell {donor.recipe.name}")
        _copy_log(donor, run, i)
        data = {d: donor.domain(d).fingerprint for d in donor.recipe.stages[i].domains}
        run.note(own.folder.name, "done", data=data, trained_in=donor.recipe.name)
        with atomic_path(own.folder) as temporary:  # last: from here on the stage is done
            theirs = donor.stages[i].folder
            shutil.copytree(theirs, temporary, ignore=shutil.ignore_patterns("merged", "checkpoints", ".*"))


def _donor(key: str, index: int, folder: Path, cells: Sequence[Cell]) -> Run | None:
    """A run that has trained this stage: by the recipe in its folder, for cells may have been planned anew since."""
    for other in cells:
        try:
            run = Run.open(folder / other.name)
        except InputError:  # not begun, or of no use any more
            continue
        # A key is of a whole chain of stages, so an equal one stands at the same place.
        if key in stage_keys(run.recipe)[index : index + 1] and run.stages[index].metrics.is_file():
            return run
    return None


def _copy_log(donor: Run, own: Run, index: int) -> None:
    theirs, name = donor.stages[index].folder.name, own.stages[index].folder.name
    kept = [entry for entry in own.log_entries() if entry["stage"] != name]
    taken = [{**entry, "stage": name} for entry in donor.log_entries() if entry["stage"] == theirs]
    with atomic_path(own.log) as temporary:
        temporary.write_text("".join(json.dumps(e) + "\n" for e in [*kept, *taken]), encoding="utf-8")


def _correct_handovers(run: Run) -> None:
    """What a borrowed stage loses on the way to the next one depends on that one, and is what that one starts with."""
    facts, target = run.stage_metrics(), run.recipe.target
    for i in range(len(run.stages) - 1):
        stage, following = run.stages[i], run.stages[i + 1].folder.name
        if all(target in run.recipe.stages[j].domains for j in (i, i + 1)):  # else they validate on different users
            handed_on = facts[following]["valid_nats_before"]
            write_json(stage.metrics, {**facts[stage.folder.name], "valid_nats_handed_on": handed_on})


def remove_weights(cell: Path) -> None:
    """Remove what a finished cell needs no more: merged weights, checkpoints, and what a kill left half-written."""
    for pattern in ("*/merged", "*/checkpoints", "*/.*.tmp", "*/.*.old"):
        for path in cell.glob(pattern):
            if not path.parent.is_symlink():  # the domains are all cells', and another process may prepare one
                shutil.rmtree(path, ignore_errors=True)


def _write_summary(recipe: Recipe, folder: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    results = summary(recipe, folder, cells)
    write_json(folder / "ablation.json", results)
    with atomic_path(folder / "ablation.md") as temporary:
        temporary.write_text(ablation_table(results) + "\n", encoding="utf-8")
    return results


def summary(recipe: Recipe, folder: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """All finished cells: metrics with intervals over users, and the paired difference from the full cell.

    With several seeds a user counts with the mean of the seeds; a difference is of the seeds that both cells have.

    Raises:
        InputError: the data or the protocol changed between two cells.
    """
    done = [cell for cell in cells if _finished(cell, folder)]
    evaluated = {cell.name: compare.Run.open(folder / cell.name / "evaluation") for cell in done}
    first = next(iter(evaluated.values())).results
    _refuse_changed_data(done, evaluated, folder)
    ranks = {cell.name: evaluated[cell.name].ranks(_system(cell))[1] for cell in done}
    copies = evaluated[done[0].name].copies(_system(done[0]))  # of the targets, which all cells share
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


def _refuse_changed_data(done: Sequence[Cell], evaluated: dict[str, compare.Run], folder: Path) -> None:
    """Raises InputError unless all cells were trained on, and measured by, the same data, and by one protocol."""
    known: dict[str, str] = {}
    for cell in done:
        compare.refuse_unlike(evaluated[done[0].name], evaluated[cell.name])  # `evaluate` may have run on one since
        facts = json.loads((folder / cell.name / "cell.json").read_text(encoding="utf-8"))
        measured = evaluated[cell.name].results["domain"]
        for name, fingerprint in {**facts.get("data", {}), measured["name"]: measured["fingerprint"]}.items():
            if known.setdefault(name, fingerprint) != fingerprint:
                raise _changed(folder, name)


def _system(cell: Cell) -> str:
    return "final" if cell.stages else "base"


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
    done: Sequence[Cell], evaluated: dict[str, compare.Run], full: dict[int, Ranks], copies: Copies | None
) -> dict[str, dict[str, Any]]:
    """The baselines, measured with the untouched base; a baseline knows no seed of training."""
    found: dict[str, dict[str, Any]] = {}
    for cell in done:
        results = evaluated[cell.name].results
        for name in results["systems"] if not cell.stages else []:
            if name != _system(cell):
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
