"""The cells of an ablation: each a complete recipe, made by leaving out stages or changing keys."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calrec_lite.errors import InputError
from calrec_lite.recipe import Ablate, Recipe, Stage, resolved
from calrec_lite.recipe.deciding import SECTIONS, without_free
from calrec_lite.recipe.file import check_recipe

FULL = "full"  # the recipe as it stands
CROSSED = ("no_tt", "no_ut", "no_contrast")  # by default: the paper has its stages with and without them
VARIANT_SECTIONS = ("base", "text", "stages", "loss", "optim")  # a variant may change these: not data or protocol


@dataclass(frozen=True)
class Cell:
    """One cell: what is trained, and the recipe that does it.

    Attributes:
        variant: `full`, or the name of a variant.
        stages: names of the stages that are trained, none for the untouched base.
        seed: of training.
        recipe: its `name` is the cell's folder.
    """

    variant: str
    stages: tuple[str, ...]
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def system(self) -> str:
        """The name of the cell's model among the systems of its evaluation."""
        return "final" if self.stages else "base"

    @property
    def keys(self) -> list[str]:
        """See `stage_keys`; empty for the untouched base."""
        return stage_keys(self.recipe) if self.stages else []


def plan(recipe: Recipe) -> list[Cell]:
    """The cells of `recipe.ablate`, in the order in which they are run: first the untouched base, then the full cell.

    With `evaluate.base: false` there is no untouched base, and the full cell measures the baselines.

    Raises:
        InputError: a variant has no such key, or changes what all cells must share.
    """
    ablate = recipe.ablate
    full = tuple(stage.name for stage in recipe.stages)
    subsets = [tuple(subset) for subset in ablate.stages] if ablate.stages is not None else _default_subsets(full)
    if not recipe.evaluate.base:
        subsets = [subset for subset in subsets if subset]
    rows = [(FULL, full), *((FULL, subset) for subset in subsets)]
    crossed = CROSSED if ablate.crossed is None else ablate.crossed
    rows += [(name, subset) for name in ablate.variants if name in crossed for subset in (full, *subsets) if subset]
    rows += [(name, full) for name in ablate.variants if name not in crossed]
    cells: dict[str, Cell] = {}  # by what decides its weights: two that would get the same weights are one cell
    if () in subsets:
        cells["untouched"] = Cell(FULL, (), recipe.training_seed, _untouched_recipe(recipe))
    for seed in ablate.seeds or [recipe.training_seed]:
        for variant, stages in rows:
            if stages:
                baselines = [] if cells else recipe.evaluate.baselines  # with the first cell
                cell = Cell(variant, stages, seed, _cell_recipe(recipe, variant, stages, seed, baselines))
                cells.setdefault(cell.keys[-1], cell)
    return list(cells.values())


def described(cells: Sequence[Cell], recipe: Recipe) -> list[str]:
    """A line for each cell: which stages it trains by itself and how long, which it shares, what it changes."""
    trained: set[str] = set()
    lines = []
    for cell in cells:
        parts = []
        for stage, key in zip(cell.recipe.stages, cell.keys):
            shared = key in trained
            trained.add(key)
            parts.append(f"{stage.name} as before" if shared else f"{stage.name} {_length(stage)}")
        changes = recipe.ablate.variants.get(cell.variant, {})
        changed = "; ".join(f"{key} = {value}" for key, value in changes.items())
        lines.append(f"{cell.name}: {', '.join(parts) or 'trains nothing'}{f'; {changed}' if changed else ''}")
    return lines


def to_train(cells: Sequence[Cell]) -> str:
    """What all cells cost together, each shared stage once: steps, passes and minutes."""
    stages = {key: stage for cell in cells for key, stage in zip(cell.keys, cell.recipe.stages)}.values()
    units = (("steps", "max_steps"), ("passes", "epochs"), ("minutes", "minutes"))
    sums = {unit: sum(getattr(stage, field) or 0 for stage in stages) for unit, field in units}
    return " and ".join(f"{total:,g} {unit}" for unit, total in sums.items() if total) or "nothing"


def _length(stage: Stage) -> str:
    if stage.max_steps:
        return f"{stage.max_steps:,} steps"
    return f"{stage.minutes:g} minutes" if stage.minutes else f"{stage.epochs:g} passes"


def stage_keys(recipe: Recipe) -> list[str]:
    """A key for each stage: stages with equal keys get equal weights, so one of them is trained and the others copy it.

    The weights of a stage depend on the base, the wording, the loss, the optimiser, both seeds, and on length, domains
    and hand-over of this stage and those before it; names, memory settings and later stages do not matter.
    """
    sources, values = resolved(recipe)["domains"], without_free(resolved(recipe))
    shared = {key: values[key] for key in SECTIONS if key not in ("stages", "domains")}
    shared["optim"] = {**values["optim"], "seed": recipe.training_seed}
    shared["validated"] = recipe.target  # changes no weights, but what is measured while training
    chain: list[dict[str, Any]] = []
    keys = []
    for stage in values["stages"]:
        deciding = {k: v for k, v in stage.items() if k != "name" and (k != "handover" or chain)}
        chain.append({**deciding, "domains": {d: sources[d] for d in stage["domains"]}})
        keys.append(hashlib.sha256(json.dumps([shared, chain]).encode()).hexdigest())
    return keys


def _default_subsets(stages: tuple[str, ...]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys([(), *((s,) for s in stages), stages]))


def _untouched_recipe(recipe: Recipe) -> Recipe:
    values = _shared_values(recipe)
    values["name"] = "untouched"
    return check_recipe(values)


def _cell_recipe(recipe: Recipe, variant: str, stages: tuple[str, ...], seed: int, baselines: Sequence[str]) -> Recipe:
    values = _shared_values(recipe)
    values["name"] = ".".join([variant, *stages, f"seed{seed}"])  # no part has a dot, so no two cells share a name
    values["optim"]["seed"] = seed
    # Baselines and the untouched base are measured once.
    values["evaluate"] |= {"base": False, "every_stage": False, "baselines": list(baselines)}
    for key, value in recipe.ablate.variants.get(variant, {}).items():
        _set_key(values, key, value, f"ablate.variants.{variant}: {key}")
    values["stages"] = [stage for stage in values["stages"] if stage["name"] in stages]
    _divide_budget(values["stages"], recipe.ablate)
    try:
        return check_recipe(values)
    except InputError as error:
        raise InputError(f"ablate.variants.{variant}: {str(error).removeprefix('recipe: ')}") from None


def _shared_values(recipe: Recipe) -> dict[str, Any]:
    values = resolved(recipe)
    del values["ablate"]
    values["evaluate"]["domain"] = recipe.target  # without its last stage a recipe would have another target
    if model_users := recipe.evaluate.model_users:  # every difference is paired: all systems on the same users
        values["evaluate"] |= {"users": min(model_users, recipe.evaluate.users or model_users), "model_users": None}
    return values


def _set_key(values: Any, key: str, value: Any, where: str) -> None:
    """Set the key `a.b.c`, or `a.*.c`: key c in every entry of the list a."""
    *path, last_key = key.split(".")
    if not path or path[0] not in VARIANT_SECTIONS:
        raise InputError(f"{where}: a variant may change keys of {', '.join(VARIANT_SECTIONS)} only, such as loss.tau")
    for parent in _values_at(values, path, where):
        if not isinstance(parent, dict) or last_key not in parent:
            raise InputError(f"{where}: there is no such key")
        parent[last_key] = value


def _values_at(values: Any, path: list[str], where: str) -> Iterator[Any]:
    if not path:
        yield values
    elif path[0] == "*" and isinstance(values, list):
        for entry in values:
            yield from _values_at(entry, path[1:], where)
    elif isinstance(values, list) and path[0].isdigit() and int(path[0]) < len(values):
        yield from _values_at(values[int(path[0])], path[1:], where)
    elif isinstance(values, dict) and path[0] in values:
        yield from _values_at(values[path[0]], path[1:], where)
    else:
        raise InputError(f"{where}: there is no such key")


def _divide_budget(stages: list[dict[str, Any]], ablate: Ablate) -> None:
    """Divide the cell's budget over its stages: by their lengths if all are given in one unit, else in equal parts."""
    budget = ablate.steps or ablate.minutes
    if budget is None:
        return
    unit = next((u for u in ("max_steps", "minutes") if all(s[u] for s in stages)), None)
    weights = [s[unit] if unit else 1 for s in stages]
    ends = [budget * sum(weights[: i + 1]) / sum(weights) for i in range(len(weights))]
    if ablate.steps:
        ends = [round(end) for end in ends]
    for stage, start, end in zip(stages, [0, *ends[:-1]], ends):
        length = {"max_steps": end - start, "minutes": None} if ablate.steps else {"minutes": end - start}
        stage |= {"epochs": None, "max_steps": None, **length}


def finished(cell: Cell, folder: Path) -> bool:
    """Whether the cell was measured with this recipe; what only changes memory or speed may differ."""
    file = folder / cell.name / "cell.json"
    if not file.is_file():
        return False
    measured = resolved(check_recipe(json.loads(file.read_text(encoding="utf-8"))["recipe"]))  # keys it lacks: defaults
    planned = resolved(cell.recipe)
    if "auto" in (measured["base"]["dtype"], planned["base"]["dtype"]):  # it was measured in what auto chose
        planned["base"]["dtype"] = measured["base"]["dtype"]
    return {**without_free(measured), "export": None} == {**without_free(planned), "export": None}


def data_changed(folder: Path, domain: str) -> InputError:
    """The error where the cells of one ablation would be of different data."""
    return InputError(
        f"{folder}: the data of `{domain}` has changed since the first cells were measured; "
        "restore the files, or remove that folder"
    )


def refuse_unknown(cells: Sequence[Cell], only: Sequence[str]) -> None:
    """Raises InputError where `only` names a cell that is not there."""
    names = [cell.name for cell in cells]
    if unknown := [name for name in only if name not in names]:
        raise InputError(f"no cell {', '.join(unknown)}; there are: {', '.join(names)}")
