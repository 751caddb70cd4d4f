"""serve: an export behind HTTP."""

from pathlib import Path

import click

from calrec_lite.cli.options import COUNT, quiet_libraries, quiet_notices
from calrec_lite.errors import InputError

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("model")
@click.option("--run", type=FOLDER, help="The run it was exported from: shows known users and what they took next.")
@click.option(
    "--strategy", "strategies", multiple=True, help="How lists are made; may be repeated. Default: the export's own."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--token", envvar="CALREC_LITE_TOKEN", help="Who asks must send it; better set CALREC_LITE_TOKEN.")
@click.option("--batch", type=COUNT, default=16, show_default=True, help="Requests worked on together.")
@click.option("--queue", type=COUNT, default=256, show_default=True, help="Requests that may wait.")
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True, help="Seconds.")
@click.option("--4bit", "quantised", is_flag=True, help="Load the model in 4 bits.")
def serve(
    model: str,
    run: Path | None,
    strategies: tuple[str, ...],
    host: str,
    port: int,
    token: str | None,
    batch: int,
    queue: int,
    timeout: float,
    quantised: bool,
) -> None:
    """Serve an exported MODEL (folder or Hub id): lists as JSON, and a page to try them on."""
    quiet_notices()
    try:
        from calrec_lite.serve import server
    except ImportError as error:
        raise InputError(f"serve needs its extra ({error}): pip install 'calrec-lite[serve]'") from None
    server.require_safe(host, token)
    opened = server.bound(host, port)
    quiet_libraries()
    from calrec_lite.run import Run
    from calrec_lite.serve.app import Settings
    from calrec_lite.serve.known import KnownUsers
    from calrec_lite.serve.lists import Lists

    click.echo(f"loading {model}", err=True)
    lists = Lists.open(model, strategies, quantised)
    known = KnownUsers.of(Run.open(run), lists.package) if run else None
    lists.warm()
    hosts = [] if token or not server.is_loopback(host) else server.names_of(host)
    settings = Settings(token, hosts, batch, queue, timeout)

    def started() -> None:
        users = f", {len(known):,} known users" if known else ""
        click.echo(f"{len(lists.package.ids):,} items, lists by {', '.join(lists.strategies)}{users}")
        address = server.address_of(opened)
        click.echo(f"-> {address} (a page), {address}docs (OpenAPI); Ctrl+C ends it")

    click.echo(f"ended; {server.serve(lists, opened, settings, known, started):,} lists made")
