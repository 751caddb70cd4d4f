"""The cells of an ablation: a recipe with stages left out and keys changed, each a whole recipe of its own."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calrec_lite.errors import InputError
from calrec_lite.recipe import Ablate, Recipe, resolved
from calrec_lite.recipe.deciding import SECTIONS, without_free
from calrec_lite.recipe.file import check_recipe

FULL = "full"  # the recipe as it stands
CROSSED = ("no_tt", "no_ut", "no_contrast")  # by default: the paper has its stages with and without them
ROOMS = ("base", "text", "stages", "loss", "optim")  # what a variant may change: data and protocol stay the same


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
        """What its evaluation calls the cell's own lists."""
        return "final" if self.stages else "base"

    @property
    def keys(self) -> list[str]:
        """See `stage_keys`; empty for the untouched base."""
        return stage_keys(self.recipe) if self.stages else []


def plan(recipe: Recipe) -> list[Cell]:
    """The cells of `recipe.ablate`, in the order in which they are run: first the untouched base, then the full cell.

    Raises:
        InputError: a variant has no such key, or changes what all cells must share.
    """
    ablate = recipe.ablate
    every = tuple(stage.name for stage in recipe.stages)
    chosen = [tuple(c) for c in ablate.stages] if ablate.stages is not None else _each_and_all(every)
    rows = [(FULL, every), *((FULL, c) for c in chosen)]
    crossed = CROSSED if ablate.crossed is None else ablate.crossed
    rows += [(name, c) for name in ablate.variants if name in crossed for c in (every, *chosen) if c]
    rows += [(name, every) for name in ablate.variants if name not in crossed]
    cells: dict[str, Cell] = {}  # by what its weights are: what would give the same weights twice is one cell
    if () in chosen:
        cells["untouched"] = Cell(FULL, (), recipe.training_seed, _untouched(recipe))
    for seed in ablate.seeds or [recipe.training_seed]:
        for variant, stages in rows:
            if stages:
                cell = Cell(variant, stages, seed, _trained(recipe, variant, stages, seed))
                cells.setdefault(cell.keys[-1], cell)
    return list(cells.values())


def stage_keys(recipe: Recipe) -> list[str]:
    """A key for each stage: stages with equal keys end in equal weights, so they need be trained only once.

    What decides the weights of a stage is the base, the wording, the loss, the optimiser, both seeds, and length,
    domains and hand-over of this stage and those before it; names, memory and what comes after do not matter.
    """
    sources, values = resolved(recipe)["domains"], without_free(resolved(recipe))
    shared = {key: values[key] for key in SECTIONS if key not in ("stages", "domains")}
    shared["optim"] = {**values["optim"], "seed": recipe.training_seed}
    shared["validated"] = recipe.target  # not the weights, but what is measured while training
    chain: list[dict[str, Any]] = []
    keys = []
    for stage in values["stages"]:
        deciding = {k: v for k, v in stage.items() if k != "name" and (k != "handover" or chain)}
        chain.append({**deciding, "domains": {d: sources[d] for d in stage["domains"]}})
        keys.append(hashlib.sha256(json.dumps([shared, chain]).encode()).hexdigest())
    return keys


def _each_and_all(stages: tuple[str, ...]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys([(), *((s,) for s in stages), stages]))


def _untouched(recipe: Recipe) -> Recipe:
    values = _shared(recipe)
    values["name"] = "untouched"
    values["evaluate"]["base"] = True
    return check_recipe(values)


def _trained(recipe: Recipe, variant: str, stages: tuple[str, ...], seed: int) -> Recipe:
    values = _shared(recipe)
    values["name"] = ".".join([variant, *stages, f"seed{seed}"])  # no part has a dot, so no two cells share a name
    values["optim"]["seed"] = seed
    # Baselines and the untouched base are measured once, in a cell of their own.
    values["evaluate"] |= {"base": False, "every_stage": False, "baselines": []}
    for key, value in recipe.ablate.variants.get(variant, {}).items():
        _set(values, key, value, f"ablate.variants.{variant}: {key}")
    values["stages"] = [stage for stage in values["stages"] if stage["name"] in stages]
    _limit(values["stages"], recipe.ablate)
    try:
        return check_recipe(values)
    except InputError as error:
        raise InputError(f"ablate.variants.{variant}: {str(error).removeprefix('recipe: ')}") from None


def _shared(recipe: Recipe) -> dict[str, Any]:
    values = resolved(recipe)
    del values["ablate"]
    values["evaluate"]["domain"] = recipe.target  # without its last stage a recipe would have another
    if part := recipe.evaluate.model_users:  # every difference is paired: all systems on the same users
        values["evaluate"] |= {"users": min(part, recipe.evaluate.users or part), "model_users": None}
    return values


def _set(values: Any, key: str, value: Any, where: str) -> None:
    """Set `a.b.c`, or `a.*.c` in every entry of the list a."""
    *way, last = key.split(".")
    if not way or way[0] not in ROOMS:
        raise InputError(f"{where}: a variant may change keys of {', '.join(ROOMS)} only, such as loss.tau")
    for here in _walk(values, way, where):
        if not isinstance(here, dict) or last not in here:
            raise InputError(f"{where}: there is no such key")
        here[last] = value


def _walk(values: Any, way: list[str], where: str) -> Iterator[Any]:
    if not way:
        yield values
    elif way[0] == "*" and isinstance(values, list):
        for entry in values:
            yield from _walk(entry, way[1:], where)
    elif isinstance(values, list) and way[0].isdigit() and int(way[0]) < len(values):
        yield from _walk(values[int(way[0])], way[1:], where)
    elif isinstance(values, dict) and way[0] in values:
        yield from _walk(values[way[0]], way[1:], where)
    else:
        raise InputError(f"{where}: there is no such key")


def _limit(stages: list[dict[str, Any]], ablate: Ablate) -> None:
    """Divide the cell's budget over its stages, as their own lengths stand to each other where all are in one unit."""
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
    now = resolved(cell.recipe)
    if "auto" in (measured["base"]["dtype"], now["base"]["dtype"]):  # whatever it came to, the cell was measured in it
        now["base"]["dtype"] = measured["base"]["dtype"]
    return {**without_free(measured), "export": None} == {**without_free(now), "export": None}


def data_changed(folder: Path, domain: str) -> InputError:
    """What to say where cells would not be of the same data."""
    return InputError(
        f"{folder}: the data of `{domain}` has changed since the first cells were measured; "
        "restore the files, or remove that folder"
    )
