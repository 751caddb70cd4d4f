"""ablate."""

from pathlib import Path

import click

from calrec_lite.cli.options import in_one_process, quiet_libraries, recipe_arguments, runs_option


@click.command()
@recipe_arguments
@runs_option
@click.option("--cell", "only", multiple=True, help="Run only this cell; repeatable. Default: all that are not done.")
@click.option("--dry-run", is_flag=True, help="List the cells, what each changes and costs, and stop.")
def ablate(recipe: str, overrides: tuple[str, ...], runs: Path, only: tuple[str, ...], dry_run: bool) -> None:
    """Train and measure RECIPE with stages left out and keys changed, as its section `ablate` says.

    Stages that cells share are trained once. Started again after a stop, it goes on. On a GPU that one cell does not
    fill, start it several times, each with other cells.
    """
    in_one_process("ablate")
    from calrec_lite.ablation.grid import described, plan, refuse_unknown, to_train
    from calrec_lite.recipe.file import load_recipe

    loaded = load_recipe(recipe, overrides)
    cells = plan(loaded)
    refuse_unknown(cells, only)
    keys = {key for cell in cells for key in cell.keys}
    click.echo(f"{len(cells)} cells, {len(keys)} different stages to train, {to_train(cells)} in all:")
    for line in described(cells, loaded):
        click.echo(f"  {line}")
    if dry_run:
        return
    quiet_libraries()
    from calrec_lite.ablation.run import ablate as run_ablation
    from calrec_lite.ablation.run import ablation_folder
    from calrec_lite.ablation.table import ablation_table

    results = run_ablation(loaded, runs, only)
    click.echo(f"\n{ablation_table(results)}\n\n-> {ablation_folder(loaded, runs) / 'ablation.json'}")
