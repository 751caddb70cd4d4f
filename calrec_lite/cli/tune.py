"""tune."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from calrec_lite.cli.options import COUNT, quiet_libraries

if TYPE_CHECKING:
    from calrec_lite.run import Run


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--users", type=COUNT, help="Validation users; default: the recipe's, or 500.")
def tune(run: Path, users: int | None) -> None:
    """Fit the weights of a trained RUN's lists anew, by validation users only.

    With `strategy: fused` or `fast` they are written into the run. With another strategy it says which
    `recommend.fusion` and `.transitions` serve best with `strategy: rerank`, and nothing is changed.
    """
    quiet_libraries()
    from calrec_lite.claim import claimed
    from calrec_lite.run import Run

    opened = Run.open(run)
    if opened.recipe.recommend.fits:
        with claimed(opened.folder):
            _fit_weights(opened, users)
    else:
        _try_weights(opened, users or 500)


def _fit_weights(run: "Run", users: int | None) -> None:
    from calrec_lite.evaluate.tables import weights_table
    from calrec_lite.fitting.opening import refit

    fusion = refit(run, users)
    strategy, facts = run.recipe.recommend.strategy, fusion.facts
    weights, fit = fusion.weights(strategy), facts[f"{strategy}_fit"]
    click.echo(weights_table(weights, fit["intervals"]))
    click.echo(
        f"\n{fit['users']:,} validation users, whose next item is among the candidates; without the likelihood N@10 is "
        f"{facts['fast_fit']['valid_ndcg']:.4f} on validation. Written into the run; next: "
        f"calrec-lite evaluate {run.folder}"
    )


def _try_weights(opened: "Run", users: int) -> None:
    from calrec_lite.evaluate.tables import markdown
    from calrec_lite.evaluate.tune import FUSION, TRANSITIONS, tune_fusion
    from calrec_lite.fitting.opening import open_recommender
    from calrec_lite.measure.cases import build_cases

    recipe = opened.recipe
    recommender = open_recommender(opened, opened.final(), transitions=True)
    cases = build_cases(opened.domain(recipe.target), "validation", users, recipe.seed)
    tried = tune_fusion(recommender, cases, recipe.recommend.exclude_seen)
    ndcg = {(t.fusion, t.transitions): t.ndcg10 for t in tried}
    rows = [[f"{f:g}", *(f"{ndcg[f, t]:.4f}" for t in TRANSITIONS)] for f in FUSION]
    click.echo(markdown(["N@10: fusion", *(f"transitions {t:g}" for t in TRANSITIONS)], rows))
    best = tried[0]
    click.echo(
        f"\n{len(cases.users):,} validation users; candidates are the {recipe.recommend.rerank} closest items of each "
        f"and, with transitions, as many that these put first. Best: N@10 {best.ndcg10:.4f}, R@10 {best.recall10:.4f} "
        f"with --set recommend.strategy=rerank --set recommend.fusion={best.fusion:g} "
        f"--set recommend.transitions={best.transitions:g}"
    )
