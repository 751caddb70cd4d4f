"""demo: the whole way on real data and real weights."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from calrec_lite.cli.options import in_one_process, quiet_libraries, require_text, runs_option

if TYPE_CHECKING:
    from calrec_lite.run import Run

SHOWN = 3  # users whose lists are printed
LATEST = 8  # titles of their histories


@click.command()
@runs_option
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=require_text,
    help="Override a value of recipes/demo.yaml.",
)
def demo(runs: Path, overrides: tuple[str, ...]) -> None:
    """Train, evaluate and export a recommender of films on real data, in a quarter of an hour on two CPU cores."""
    in_one_process("demo")
    from calrec_lite.data.report import describe
    from calrec_lite.recipe.file import load_recipe
    from calrec_lite.run import Run

    run = Run.start(load_recipe("demo", overrides), runs)
    click.echo("the demo: loading PyTorch and transformers")
    quiet_libraries()
    from calrec_lite.evaluate.evaluate_run import evaluate_run
    from calrec_lite.evaluate.tables import table
    from calrec_lite.export.bundle import export_run
    from calrec_lite.training.stage import train_run

    for name in run.recipe.domains:
        click.echo(f"{describe(run.domain(name))}\n")
    train_run(run)
    results = evaluate_run(run)
    exported = export_run(run, run.export)
    click.echo(f"\n{table(results)}\n")
    _show(run, exported)
    for label, path in (
        ("metrics", run.evaluation / "metrics.json"),
        ("every list", run.evaluation / "rankings.parquet"),
        ("training log", run.log),
        ("the model", exported),
    ):
        click.echo(f"{label:>14}: {path}")
    click.echo(f'      try it: calrec-lite recommend {exported} "Toy Story" "Fargo"')


def _show(run: "Run", exported: Path) -> None:
    """Three held-out users: what they took, what is recommended, what they really took next."""
    import numpy as np

    from calrec_lite.measure.cases import build_cases
    from calrec_lite.recommend import Recommender

    recipe = run.recipe
    domain = run.domain(recipe.target)
    titles = domain.catalogue.titles
    cases = build_cases(domain, "test", None, recipe.seed)
    eligible = np.flatnonzero(~cases.repeats) if recipe.recommend.exclude_seen else np.arange(len(cases.users))
    shown = np.random.default_rng(recipe.seed).permutation(eligible)[:SHOWN]  # whose next item may be recommended
    recommender = Recommender.from_pretrained(exported)
    histories = [[recommender.catalogue.texts[item] for item in cases.histories[i]] for i in shown]
    for i, recommended in zip(shown, recommender.recommend(histories, 10)):
        user, history, target = cases.users[i], cases.histories[i], cases.targets[i]
        click.echo(
            f"user {domain.sequences.users[user]} took, last: {'; '.join(titles[item] for item in history[-LATEST:])}"
        )
        for rank, item in enumerate(recommended, 1):
            mark = "  <- took this next" if item.item == domain.catalogue.ids[target] else ""
            click.echo(f"  {rank:2d}. {item.title}{mark}")
        click.echo(f"  really took next: {titles[target]}\n")
