"""export, merge."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from calrec_lite.cli.options import open_run, quiet_libraries, settings_option
from calrec_lite.errors import InputError

if TYPE_CHECKING:
    from calrec_lite.run import Run

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--to", type=FOLDER, help="The new folder; default: RUN/export, RUN/export-adapter or RUN/space.")
@click.option("--adapter", is_flag=True, help="The last stage's adapter alone.")
@click.option("--space", is_flag=True, help="A Hugging Face Space: a page to try the model on, with the model in it.")
@click.option("--model", metavar="OWNER/NAME", help="With --space: the Hub's export that the Space loads instead.")
@settings_option("recommend.k=20")
def export(
    run: Path, to: Path | None, adapter: bool, space: bool, model: str | None, overrides: tuple[str, ...]
) -> None:
    """Write RUN's model as one folder for transformers, vLLM and `calrec-lite recommend`, with its model card.

    The card shows an evaluation by the same settings alone: `calrec-lite evaluate RUN` with the same --set makes one.
    """
    if (adapter and space) or (model and not space):
        raise InputError("--space goes without --adapter, and --model with --space")
    from calrec_lite.package.layout import refuse_foreign

    opened = open_run(run, overrides)
    opened.final()
    if space:
        _export_space(opened, to or opened.folder / "space", model)
        return
    place = to or (opened.folder / "export-adapter" if adapter else opened.export)
    refuse_foreign(place)
    quiet_libraries()
    from calrec_lite.export.bundle import export_adapter, export_run

    click.echo(f"-> {export_adapter(opened, place) if adapter else export_run(opened, place)}")


def _export_space(run: "Run", to: Path, model: str | None) -> None:
    if model:
        from calrec_lite.package.hub import check_name

        check_name(model)
    quiet_libraries()
    from calrec_lite.export.space import export_space

    click.echo(f"-> {export_space(run, to, model)}")


@click.command()
@click.argument("base", type=FOLDER)
@click.argument("adapter", type=FOLDER)
@click.argument("to", type=FOLDER)
@click.option(
    "--base",
    "onto",
    type=click.Choice(["original", "dequantized"]),
    default="original",
    show_default=True,
    help="Add to the original weights, or to what NF4 leaves of them.",
)
def merge(base: Path, adapter: Path, to: Path, onto: Literal["original", "dequantized"]) -> None:
    """Add a LoRA ADAPTER to the unquantised weights in BASE and write full weights to the new folder TO."""
    if not (base / "config.json").is_file():
        raise InputError(f"{base}: holds no config.json, so it is no model folder")
    if to.exists():
        raise InputError(f"{to}: is there already; name a new folder")
    from calrec_lite.model.merge import merge_adapter

    click.echo(f"{merge_adapter(base, adapter, to, onto)} layers merged -> {to}")
