"""recommend: titles typed, a known user, or a file of histories."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calrec_lite import __version__
from calrec_lite.cli.options import COUNT, open_run, quiet_libraries, settings_option
from calrec_lite.errors import InputError

if TYPE_CHECKING:
    from calrec_lite.recommend.bulk import Progress

INPUT = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("model")
@click.argument("titles", nargs=-1)
@click.option(
    "--users",
    help="Histories as .jsonl, .jsonl.gz or .parquet, one user a line: "
    '{"user": "u1", "history": ["title or, where none reads so, item id", ...]}, oldest first; '
    '"candidates": [...] limits that user\'s list to some items. With --engine ray also a folder, a pattern, s3://, gs://.',
)
@click.option("--user", metavar="ID", help="A user of the data; of an export give --domain, too.")
@click.option("--domain", type=FOLDER, help="A prepared domain (RUN/domains/NAME) that knows the --user.")
@click.option(
    "--out", help="Lists as .jsonl, .jsonl.gz or .parquet; with --engine ray a folder. Started again, it goes on."
)
@click.option("-k", "--k", type=COUNT, help="Length of a list; default: the recipe's.")
@click.option("--strategy", help="How lists are made; default: the recipe's.")
@click.option("--allow", type=INPUT, help="Recommend these items only: a title or id a line.")
@click.option("--deny", type=INPUT, help="Never recommend these items: a title or id a line.")
@click.option("--strict", is_flag=True, help="Refuse histories with items that the catalogue lacks.")
@click.option("--engine", type=click.Choice(["transformers", "vllm", "ray"]), default="transformers", show_default=True)
@click.option("--block", type=COUNT, default=1024, show_default=True, help="Users ranked together.")
@click.option("--shard", metavar="I/N", help="The I-th of N parts of --users; merge-lists puts them together.")
@click.option(
    "--workers", type=COUNT, help="Of --engine ray: processes, each with a model; a GPU each where there are some."
)
@click.option("--address", help="Of --engine ray: of a cluster; default: RAY_ADDRESS, or this machine alone.")
@click.option("--parts", type=COUNT, help="Of --engine ray: of each file; default: 16 of a single one, 1 of many.")
@click.option("--4bit", "quantised", is_flag=True, help="Load the model in 4 bits.")
@settings_option("recommend.beams=50")
def recommend(
    model: str,
    titles: tuple[str, ...],
    users: str | None,
    user: str | None,
    domain: Path | None,
    out: str | None,
    k: int | None,
    strategy: str | None,
    allow: Path | None,
    deny: Path | None,
    strict: bool,
    engine: str,
    block: int,
    shard: str | None,
    workers: int | None,
    address: str | None,
    parts: int | None,
    quantised: bool,
    overrides: tuple[str, ...],
) -> None:
    """Recommend after the TITLES of one history, for a --user of the data, or for a file of users.

    MODEL is an export (a folder, or its Hub id), or, but for files of users, a trained run.
    """
    if sum(map(bool, (titles, users, user))) != 1:
        raise InputError("recommend: give titles (oldest first), --user ID, or --users FILE")
    if users and not out:
        raise InputError("recommend: --users needs --out FILE")
    if out and not users:
        raise InputError("recommend: --out is for --users FILE; other lists are shown")
    if shard and not users:
        raise InputError("--shard: is for --users FILE")
    if domain and not user:
        raise InputError("recommend: --domain is for --user ID")
    if engine == "ray" and (not users or shard):
        raise InputError("--engine ray: is for --users FILE, without --shard")
    if engine != "ray" and (workers or address or parts):
        raise InputError("--workers, --address, --parts: are for --engine ray")
    if engine == "vllm" and quantised:
        raise InputError("--engine vllm: not together with --4bit")
    limits: dict[str, Any] = {name: _read_list(name, path) for name, path in (("allow", allow), ("deny", deny)) if path}
    from calrec_lite.package.layout import fingerprint, locate, read_info, with_strategy
    from calrec_lite.recipe.file import with_recommend
    from calrec_lite.show.source import Engine, is_run, open_export, source_of_export, source_of_run

    how = Engine(strategy, overrides, engine, quantised)
    if not users:
        if is_run(model):
            source = source_of_run(open_run(Path(model), overrides), user, how)
        else:
            source = source_of_export(model, user, domain, how)
        quiet_libraries()
        from calrec_lite.show.lists import one_list

        text, notes = one_list(source, titles, k, limits, strict)
        for note in notes:
            click.echo(note, err=True)
        click.echo(text)
        return
    if is_run(model):
        raise InputError(f"{model}: is a run; for files of users export it: calrec-lite export {model}")
    assert out is not None
    folder = locate(model)
    asked = with_strategy(read_info(folder, model).recommend, strategy)
    with_recommend(asked, overrides)  # what is wrong is said before anything is loaded
    options: dict[str, Any] = {"k": k, "strategy": strategy, "engine": engine, "4bit": quantised}
    options |= {"model": fingerprint(folder), "version": __version__}
    options |= {name: hashlib.sha256("\n".join(items).encode()).hexdigest() for name, items in limits.items()}
    options |= {"set": sorted(overrides)} if overrides else {}
    quiet_libraries()
    if engine == "ray":
        opening = {"quantised": quantised, "strategy": strategy, "settings": overrides}
        identity = options | {"strict": strict, "block": block}
        from calrec_lite.cluster.lists import ListsJob, recommend_by_ray

        where = str(folder.resolve()) if Path(model).is_dir() else model
        spread = ListsJob(where, opening, out, identity, users, k, limits, strict, block)
        _report(recommend_by_ray(spread, workers, address, parts), out, f"{out}/_rejected")
        return
    from calrec_lite.model.device import described_device, dtype_here
    from calrec_lite.recommend.bulk import Bulk, begun_option
    from calrec_lite.recommend.shards import Shard

    part = Shard.parsed(shard) if shard else Shard.of_environment()
    source_file, lists = Path(users), Path(out)
    # A list begun in one number type ends in it, also where another machine goes on.
    choice = dtype_here(folder, begun_option(part.path(lists) if part else lists, "dtype") or "auto")
    options["dtype"] = choice.dtype
    job = Bulk(source_file, lists, options, block, strict, part)
    recommender = open_export(folder, how, choice.dtype)
    click.echo(described_device(choice, folder), err=True)

    def rank(histories: list[list[str]], candidates: list[list[str] | None]) -> Any:
        restriction: dict[str, Any] = {"candidates": candidates} if any(c is not None for c in candidates) else {}
        return recommender.recommend(histories, k, **limits, **restriction)

    _report(job.run(rank, lambda name: recommender.find(name) is not None), job.out, job.rejects)
    if part:
        click.echo(f"part {part}; when all are done: calrec-lite merge-lists {out}")


def _report(done: "Progress", out: Path | str, rejects: Path | str) -> None:
    rejected = f"; {done.rejected} lines rejected -> {rejects}" if done.rejected else ""
    if done.unknown:
        share = f"{done.unknown:,} of {done.items:,} items in their histories are not in the catalogue"
        click.echo(f"{share}; --strict rejects such lines, and names the items", err=True)
    click.echo(f"{done.users} users -> {out}{rejected}")


def _read_list(name: str, path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--{name} {path}: cannot be read ({error})") from None
    if not any(lines):
        raise InputError(f"--{name} {path}: names no item; write a title or id a line")
    return [line for line in lines if line]
