"""tune."""

from pathlib import Path

import click

from calrec_lite.cli.options import quiet_libraries


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--users", type=click.IntRange(min=1), default=500, show_default=True, help="Validation users.")
def tune(run: Path, users: int) -> None:
    """Say which `recommend.fusion` serves a trained RUN best with `strategy: rerank`, by validation users only."""
    quiet_libraries()
    from calrec_lite.evaluate.fusion import tune_fusion
    from calrec_lite.evaluate.protocol import build_cases
    from calrec_lite.evaluate.results import markdown
    from calrec_lite.evaluate.systems import open_recommender
    from calrec_lite.train.run import Run

    opened = Run.open(run)
    recipe = opened.recipe
    recommender = open_recommender(opened, opened.final())
    cases = build_cases(opened.domain(recipe.target), "validation", users, recipe.seed)
    tried = tune_fusion(recommender, cases, recipe.recommend.exclude_seen)
    rows = [[f"{t.fusion:g}", f"{t.recall10:.4f}", f"{t.ndcg10:.4f}"] for t in sorted(tried, key=lambda t: t.fusion)]
    click.echo(markdown(["fusion", "R@10", "N@10"], rows))
    click.echo(
        f"\n{len(cases.users):,} validation users, the {recipe.recommend.rerank} closest items of each. Best: "
        f"--set recommend.strategy=rerank --set recommend.fusion={tried[0].fusion:g}"
    )
