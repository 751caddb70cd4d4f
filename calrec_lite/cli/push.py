"""push."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the new repository private.")
@click.option("--revision", metavar="BRANCH", help="Push to this branch, made if not there; default: main.")
def push(folder: Path, repo: str, private: bool, revision: str | None) -> None:
    """Upload the export or Space in DIR to the Hugging Face Hub. Started again after a stop, it sends what is missing.

    The token comes from `hf auth login` or HF_TOKEN. Only the files of an export are sent, its catalogue among them
    if it holds one (`export.catalogue`); anything else in DIR is left out, and named.
    """
    from calrec_lite.package.hub import push_folder

    click.echo(f"-> {push_folder(folder, repo, private, revision)}")
