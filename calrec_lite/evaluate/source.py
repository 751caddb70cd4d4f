"""Whose baselines are measured before training: a recipe's data, a run's, or a prepared domain's alone. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from calrec_lite.claim import claimed
from calrec_lite.data.domain import Domain, read_info
from calrec_lite.errors import InputError
from calrec_lite.recipe import Recipe
from calrec_lite.recipe.file import check_recipe, load_recipe
from calrec_lite.run import Run


@dataclass(frozen=True)
class Measurable:
    """Where results go, how is measured, and the data."""

    place: Path
    recipe: Recipe
    domain: Domain

    @classmethod
    def open(cls, source: str, overrides: Iterable[str], runs: Path) -> "Measurable":
        """Open what was named; the data of a recipe are prepared where they are not yet.

        Args:
            source: of a recipe file, or the name of one; a run's folder; or that of a prepared domain.
            overrides: `key.sub=value` of a recipe file.
            runs: the folder that holds the runs.

        Raises:
            InputError: it is none of these, or its data cannot be had.
        """
        folder, overrides = Path(source), list(overrides)
        if not folder.is_dir():
            recipe = load_recipe(source, overrides)
            run = Run(recipe, runs / recipe.name)
            with claimed(run.folder):
                return cls(run.folder, recipe, run.prepare(recipe.target))
        if overrides:
            raise InputError("--set: for a recipe file; a run and a prepared domain are measured as they stand")
        if not (folder / "domain.json").is_file():
            run = Run.open(folder)
            return cls(folder, run.recipe, run.domain(run.recipe.target))
        owner, in_run = folder.resolve().parents[1], folder.resolve().parent.name == "domains"
        if in_run and (owner / "recipe.yaml").is_file() and Run.open(owner).recipe.target == folder.name:
            return cls(owner, Run.open(owner).recipe, Domain.open(folder))
        return cls(owner if in_run else folder, recipe_of_domain(folder), Domain.open(folder))


def recipe_of_domain(folder: Path) -> Recipe:
    """The defaults of a recipe around a prepared domain alone: how its baselines are measured where no recipe says.

    Raises:
        InputError: the folder holds no prepared domain.
    """
    info = read_info(folder)
    options = dict(info["options"])
    seed, name = options.pop("seed"), info["name"]
    stage = {"name": "none", "domains": [name], "max_steps": 1}
    return check_recipe(
        {"name": name, "seed": seed, "base": {"model": "none"}, "domains": {name: options}, "stages": [stage]}
    )
