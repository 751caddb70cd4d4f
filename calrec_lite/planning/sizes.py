"""How much a stage trains, by the numbers of its domains alone; and how numbers are told."""

import math
from dataclasses import dataclass

from calrec_lite.data.domain import Domain
from calrec_lite.recipe import Recipe, Stage


@dataclass(frozen=True)
class StageSize:
    """How much a stage trains, by its rows alone.

    Attributes:
        rows: of a pass. a_pass: steps of one. steps: of the stage; None where minutes end it.
        validated: users of its validation loss.
    """

    stage: Stage
    rows: int
    a_pass: int
    steps: int | None
    validated: int

    def __str__(self) -> str:
        of = f"{self.rows:,} rows of {', '.join(self.stage.domains)}"
        steps = f"{self.steps:,} steps" if self.steps else f"{self.stage.minutes:g} minutes"
        passes = self.steps / self.a_pass if self.steps else 0
        told = f" ({passes:.2g} pass{'' if passes == 1 else 'es'})" if passes else ""
        return f"{of}, {steps}{told}; {self.validated:,} validation users"


def count_rows(domain: Domain, recipe: Recipe) -> int:
    """Rows of a pass over a domain, as `method.rows.training_rows` makes them, without a tokenizer."""
    lengths = domain.sequences.train_lengths
    targets = lengths[lengths >= 2] - 1
    if recipe.text.windows == "last":
        return len(targets)
    stride = 1 if recipe.loss.targets == "last" else recipe.text.max_items - 1
    return int((-(-targets // stride)).sum())


def stage_size(stage: Stage, domains: dict[str, Domain], recipe: Recipe) -> StageSize:
    """What a stage trains, by its domains."""
    rows = [count_rows(domains[name], recipe) for name in stage.domains]
    a_pass = sum(-(-n // recipe.optim.batch_size) for n in rows)
    steps = stage.max_steps or (math.ceil((stage.epochs or 1) * a_pass) if not stage.minutes else None)
    measured = [recipe.target] if recipe.target in stage.domains else stage.domains
    users = (len(domains[name].sequences.held_out("validation")[0]) for name in measured)
    return StageSize(stage, sum(rows), a_pass, steps, sum(min(n, recipe.optim.valid_users) for n in users))


def in_gb(count: float) -> str:
    """In GB of 10^9, or in MB, with as many digits as are worth saying."""
    if count < 1e8:
        return f"{math.ceil(count / 1e6):,} MB"
    return f"{count / 1e9:.2g} GB" if count < 1e10 else f"{count / 1e9:,.0f} GB"


def in_time(seconds: float) -> str:
    """Seconds in the unit that a person would take."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
