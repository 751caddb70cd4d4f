"""index."""

from pathlib import Path

import click

from calrec_lite import __version__
from calrec_lite.cli.options import COUNT, quiet_libraries
from calrec_lite.errors import InputError


@click.command()
@click.argument("model", metavar="EXPORT")
@click.option(
    "--to",
    required=True,
    metavar="STORE",
    help="lancedb://FOLDER#TABLE, qdrant://HOST:6333#COLLECTION, qdrant://FOLDER#COLLECTION, or FILE.parquet; "
    "with --engine ray a folder, here or s3://, gs://.",
)
@click.option("--engine", type=click.Choice(["transformers", "vllm", "ray"]), default="transformers", show_default=True)
@click.option(
    "--workers", type=COUNT, help="Of --engine ray: processes, each with a model; a GPU each where there are some."
)
@click.option("--address", help="Of --engine ray: of a cluster; default: RAY_ADDRESS, or this machine alone.")
@click.option("--parts", type=COUNT, help="Of --engine ray: files of the folder; default: 16.")
@click.option("--4bit", "quantised", is_flag=True, help="Load the model in 4 bits.")
def index(
    model: str, to: str, engine: str, workers: int | None, address: str | None, parts: int | None, quantised: bool
) -> None:
    """Put the item vectors of EXPORT (a folder, or its Hub id) into a vector database or a file.

    Called again, it encodes and writes items that are new or changed, and removes those that are gone.
    """
    if engine != "ray" and (workers or address or parts):
        raise InputError("--workers, --address, --parts: are for --engine ray")
    if engine == "vllm" and quantised:
        raise InputError("--engine vllm: not together with --4bit")
    from calrec_lite.package.layout import fingerprint, locate, read_info

    folder = locate(model)
    read_info(folder, model)  # what is wrong is said before anything is loaded
    if engine == "ray":
        from calrec_lite.cluster.ray_engine import Job
        from calrec_lite.cluster.vectors import index_by_ray
        from calrec_lite.package.layout import open_package

        quiet_libraries()
        where, items = str(folder.resolve()) if Path(model).is_dir() else model, len(open_package(model).ids)
        identity = {"model": fingerprint(folder), "version": __version__, "4bit": quantised}
        job = Job(where, {"quantised": quantised, "strategy": "dense"}, to, identity, option="--to")
        index_by_ray(job, items, workers, address, parts)
        click.echo(f"{items:,} items -> {to}")
        return
    from calrec_lite.stores.store import open_store

    store = open_store(to)
    try:
        quiet_libraries()
        from calrec_lite.stores.index import index_items

        done = index_items(folder, store, to, quantised, engine == "vllm")
    finally:
        store.close()
    counts = {"new": len(done.new), "changed": len(done.changed), "removed": len(done.gone), "as they were": done.same}
    click.echo(f"{', '.join(f'{count:,} {name}' for name, count in counts.items())} -> {to}")
