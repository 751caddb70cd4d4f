"""export, merge."""

from pathlib import Path
from typing import Literal

import click

from calrec_lite.cli.options import quiet_libraries

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--to", type=FOLDER, help="The new folder; default: RUN/export, or RUN/export-adapter.")
@click.option("--adapter", is_flag=True, help="The last stage's adapter alone.")
def export(run: Path, to: Path | None, adapter: bool) -> None:
    """Write RUN's model as one folder for transformers, vLLM and `calrec-lite recommend`, with its model card."""
    quiet_libraries()
    from calrec_lite.export.bundle import export_adapter, export_run
    from calrec_lite.run import Run

    opened = Run.open(run)
    if adapter:
        written = export_adapter(opened, to or opened.folder / "export-adapter")
    else:
        written = export_run(opened, to or opened.export)
    click.echo(f"-> {written}")


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
    from calrec_lite.errors import InputError
    from calrec_lite.model.merge import merge_adapter

    if not (base / "config.json").is_file():
        raise InputError(f"{base}: holds no config.json, so it is no model folder")
    if to.exists():
        raise InputError(f"{to}: is there already; name a new folder")
    click.echo(f"{merge_adapter(base, adapter, to, onto)} layers merged -> {to}")
