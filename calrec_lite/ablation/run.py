"""`calrec-lite ablate`: every cell of the grid trained and measured, each stage trained once, one table at the end."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calrec_lite.ablation.grid import Cell, finished, plan, refuse_unknown, stage_keys
from calrec_lite.ablation.table import ablation_table, summary
from calrec_lite.errors import InputError
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.evaluate.store import hardware, versions
from calrec_lite.files import atomic_path, write_json
from calrec_lite.model.device import Choice
from calrec_lite.recipe import Recipe, resolved
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run


def ablation_folder(recipe: Recipe, root: Path) -> Path:
    """The folder of an ablation, `runs/NAME-ablation`: in it each cell is a run."""
    return root / f"{recipe.name}-ablation"


def ablate(recipe: Recipe, root: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Train and measure every cell of `recipe.ablate`; returns and writes `ablation.json`, and the table `ablation.md`.

    Started again after a stop it goes on: finished cells are kept, and so is every stage that another cell has trained
    already. A finished cell keeps everything but its merged weights, which `train` makes again from the adapters.

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
        if finished(cell, folder):
            _refuse_other_data(cell, folder)
            print(f"cell {number} of {len(cells)}, {cell.name}: done already")
        else:
            print(f"cell {number} of {len(cells)}, {cell.name}")
            _run_cell(cell, folder, cells)
        remove_weights(folder / cell.name)
        results = _write_summary(recipe, folder, cells)
    return results


def _refuse_other_data(cell: Cell, folder: Path) -> None:
    """Raises InputError where the sources of a finished cell's data, as they are named now, hold other data."""
    facts = json.loads((folder / cell.name / "cell.json").read_text("utf-8"))
    run = Run(cell.recipe, folder / cell.name)
    for name, fingerprint in facts.get("data", {}).items():
        run.prepare(name, fingerprint)


def _run_cell(cell: Cell, folder: Path, cells: Sequence[Cell]) -> None:
    run = Run.start(cell.recipe, folder)
    _share_domains(run, folder)
    _share_dtype(run, folder, cells)
    if cell.stages:
        _copy_trained_stages(cell, run, folder, cells)
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
        "metrics": results["systems"][cell.system],
        "hardware": hardware(),
        "versions": versions(),
        "recipe": resolved(cell.recipe),
        "data": {name: run.domain(name).fingerprint for name in _domains_used(cell)},
    }
    write_json(run.folder / "cell.json", facts)  # last: from here on the cell is finished


def _domains_used(cell: Cell) -> list[str]:
    """The domains that the cell's result depends on: the target and those that were trained on."""
    trained_on = [d for stage in cell.recipe.stages if cell.stages for d in stage.domains]
    return list(dict.fromkeys([cell.recipe.target, *trained_on]))


def _share_domains(run: Run, folder: Path) -> None:
    """One prepared copy of each domain for all cells: their data is the same."""
    (folder / "domains").mkdir(exist_ok=True)
    link = run.folder / "domains"
    if not link.is_symlink():
        link.symlink_to(Path("..") / "domains", target_is_directory=True)


def _share_dtype(run: Run, folder: Path, cells: Sequence[Cell]) -> None:
    """One number type for all cells whose recipe says `auto`, so that cells differ by their recipes alone.

    Not float16, which would not be tried out in every cell.
    """
    if run.recipe.base.dtype != "auto" or run.chosen_dtype:
        return
    for cell in cells:
        if (folder / cell.name / "recipe.yaml").is_file() and cell.recipe.base.dtype == "auto":
            dtype = Run.open(folder / cell.name).asked_or_chosen_dtype  # of an older cell by its recipe alone
            if dtype != "auto":
                run.remember_dtype(Choice(dtype, "as of the first cell"))
                return
    if run.dtype.dtype == "float16":
        run.remember_dtype(Choice("float32", "float16 is not tried in every cell"))


def _copy_trained_stages(cell: Cell, run: Run, folder: Path, cells: Sequence[Cell]) -> None:
    """Copy the stages that another cell has trained already: adapter, measures and log."""
    for i, (key, stage) in enumerate(zip(cell.keys, run.stages)):
        if stage.metrics.is_file() or not (donor := _find_donor(key, i, folder, cells)):
            continue
        print(f"stage {stage.folder.name}: as trained in cell {donor.recipe.name}")
        _copy_log(donor, run, i)
        data = {d: donor.domain(d).fingerprint for d in donor.recipe.stages[i].domains}
        run.note(stage.folder.name, "done", data=data, trained_in=donor.recipe.name)
        with atomic_path(stage.folder) as temporary:  # last: from here on the stage is done
            donor_folder = donor.stages[i].folder
            shutil.copytree(donor_folder, temporary, ignore=shutil.ignore_patterns("merged", "checkpoints", ".*"))


def _find_donor(key: str, index: int, folder: Path, cells: Sequence[Cell]) -> Run | None:
    """A run that has trained this stage, judged by the recipe in its folder: cells may have been planned anew since."""
    for other in cells:
        try:
            run = Run.open(folder / other.name)
        except InputError:  # not begun, or of no use any more
            continue
        # A key covers all stages up to its own, so an equal one is at the same index.
        if key in stage_keys(run.recipe)[index : index + 1] and run.stages[index].metrics.is_file():
            return run
    return None


def _copy_log(donor: Run, run: Run, index: int) -> None:
    donor_stage, run_stage = donor.stages[index].folder.name, run.stages[index].folder.name
    other_entries = [entry for entry in run.log_entries() if entry["stage"] != run_stage]
    donor_entries = [{**entry, "stage": run_stage} for entry in donor.log_entries() if entry["stage"] == donor_stage]
    with atomic_path(run.log) as temporary:
        temporary.write_text("".join(json.dumps(e) + "\n" for e in [*other_entries, *donor_entries]), encoding="utf-8")


def _correct_handovers(run: Run) -> None:
    """A copied stage's `valid_nats_handed_on` depends on the stage that follows here: that one starts with it."""
    facts, target = run.stage_metrics(), run.recipe.target
    for i in range(len(run.stages) - 1):
        stage, next_stage = run.stages[i], run.stages[i + 1].folder.name
        if all(target in run.recipe.stages[j].domains for j in (i, i + 1)):  # else they validate on different users
            handed_on = facts[next_stage]["valid_nats_before"]
            write_json(stage.metrics, {**facts[stage.folder.name], "valid_nats_handed_on": handed_on})


def remove_weights(cell: Path) -> None:
    """Remove what a finished cell needs no more: merged weights, checkpoints, and what a killed process left."""
    for pattern in ("*/merged", "*/checkpoints", "*/.*.tmp", "*/.*.old"):
        for path in cell.glob(pattern):
            if not path.parent.is_symlink():  # all cells share the domains, and another process may prepare one
                shutil.rmtree(path, ignore_errors=True)


def _write_summary(recipe: Recipe, folder: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    results = summary(recipe, folder, cells)
    write_json(folder / "ablation.json", results)
    with atomic_path(folder / "ablation.md") as temporary:
        temporary.write_text(ablation_table(results) + "\n", encoding="utf-8")
    return results
