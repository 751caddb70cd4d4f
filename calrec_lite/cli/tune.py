"""tune."""

from pathlib import Path

import click

from calrec_lite.cli.options import quiet_libraries


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--users", type=click.IntRange(min=1), default=500, show_default=True, help="Validation users.")
def tune(run: Path, users: int) -> None:
    """Say which `recommend.fusion` and `.transitions` serve a trained RUN best with `strategy: rerank`.

    By validation users only. Nothing is changed.
    """
    quiet_libraries()
    from calrec_lite.evaluate.tables import markdown
    from calrec_lite.evaluate.tune import FUSION, TRANSITIONS, tune_fusion
    from calrec_lite.fitting.opening import open_recommender
    from calrec_lite.measure.cases import build_cases
    from calrec_lite.run import Run

    opened = Run.open(run)
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
