"""Inputs, most of them bad: each a command, the files it reads, and where it can be said what a right answer is."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from numpy.random import Generator, default_rng

from tests.campaign.case import Case
from tests.campaign.folders import model_case, run_case
from tests.campaign.odd import VALUES, one
from tests.campaign.recipes import recipe_case, set_case
from tests.campaign.tables import table_case, users_case
from tests.campaign.world import World


def make(world: World, folder: Path, seed: int, number: int, kinds: Sequence[str] = ()) -> tuple[str, Case]:
    """The input `number` of a seed, made in the empty `folder`, and its kind: one of `kinds`, default: of all.

    "recipe", "set" and "table" need no trained world.
    """
    makers: dict[str, tuple[float, Callable[[World, Path, Generator], Case]]] = {
        "recipe": (0.25, recipe_case),
        "set": (0.25, set_case),
        "table": (0.22, table_case),
        "users": (0.1, users_case),
        "model": (0.09, model_case),
        "run": (0.06, run_case),
        "typed": (0.03, typed_case),
    }
    random = default_rng([seed, number])
    shares = {kind: share for kind, (share, _) in makers.items() if not kinds or kind in kinds}
    kind = str(random.choice(list(shares), p=[share / sum(shares.values()) for share in shares.values()]))
    return kind, makers[kind][1](world, folder, random)


def typed_case(world: World, folder: Path, random: Generator) -> Case:
    typed = [
        one(random, [v for v in VALUES if isinstance(v, str)]).replace("\0", "")
        for _ in range(int(random.integers(1, 4)))
    ]
    if random.random() < 0.3:
        typed[0] = os.fsdecode(random.bytes(6).replace(b"\0", b"x"))
    commands = [
        ["recommend", str(world.export), *typed],
        ["recommend", *typed],
        ["recommend", str(world.export), "red pen", "--strategy", *typed[:1]],
        ["recommend", str(world.export), "red pen", "-k", *typed[:1]],
        ["prepare", typed[0], "--runs", str(folder / "runs")],
        ["train", typed[0], "--dry-run"],
        ["evaluate", typed[0]],
        ["export", typed[0], "--to", str(folder / "x")],
        ["compare", *(typed * 2)[:2]],
        ["merge", *(typed * 3)[:3]],
        ["report", typed[0]],
        ["push", *(typed * 2)[:2]],
    ]
    return Case(one(random, commands), "what is typed")
