"""recommend: titles typed, or a file of histories."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calrec_lite import __version__
from calrec_lite.cli.options import COUNT, quiet_libraries
from calrec_lite.errors import InputError

if TYPE_CHECKING:
    from calrec_lite.recommend import Recommender

INPUT = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("model")
@click.argument("titles", nargs=-1)
@click.option(
    "--users",
    type=INPUT,
    help="Histories as .jsonl, .jsonl.gz or .parquet, one user a line: "
    '{"user": "u1", "history": ["title or, where none reads so, item id", ...]}, oldest first; '
    '"candidates": [...] limits that user\'s list to some items.',
)
@click.option("--out", type=INPUT, help="Lists as .jsonl, .jsonl.gz or .parquet. Started again, it goes on.")
@click.option("-k", "--k", type=COUNT, help="Length of a list; default: the recipe's.")
@click.option("--strategy", help="How lists are made; default: the recipe's.")
@click.option("--allow", type=INPUT, help="Recommend these items only: a title or id a line.")
@click.option("--deny", type=INPUT, help="Never recommend these items: a title or id a line.")
@click.option("--strict", is_flag=True, help="Refuse histories with items that the catalogue lacks.")
@click.option("--engine", type=click.Choice(["transformers", "vllm"]), default="transformers", show_default=True)
@click.option("--block", type=COUNT, default=1024, show_default=True, help="Users ranked together.")
@click.option("--4bit", "quantised", is_flag=True, help="Load the model in 4 bits.")
def recommend(
    model: str,
    titles: tuple[str, ...],
    users: Path | None,
    out: Path | None,
    k: int | None,
    strategy: str | None,
    allow: Path | None,
    deny: Path | None,
    strict: bool,
    engine: str,
    block: int,
    quantised: bool,
) -> None:
    """Recommend with an exported MODEL (folder or Hub id), after the TITLES of one history or for a file of users."""
    if bool(titles) == bool(users):
        raise InputError("recommend: give titles (oldest first), or --users FILE")
    if users and not out:
        raise InputError("recommend: --users needs --out FILE")
    if out and not users:
        raise InputError("recommend: --out is for --users FILE; the lists of titles are shown")
    if engine == "vllm" and quantised:
        raise InputError("--engine vllm: not together with --4bit")
    limits: dict[str, Any] = {name: _read_list(name, path) for name, path in (("allow", allow), ("deny", deny)) if path}
    quiet_libraries()
    from calrec_lite.package.layout import fingerprint, locate

    if not users:
        _show(_open(model, engine, strategy, quantised), titles, k, limits, strict)
        return
    from calrec_lite.model.device import described_device, dtype_here
    from calrec_lite.recommend.bulk import Bulk, begun_option

    assert out is not None
    folder = locate(model)
    options: dict[str, Any] = {"k": k, "strategy": strategy, "engine": engine, "4bit": quantised}
    options |= {"model": fingerprint(folder), "version": __version__}
    options |= {name: hashlib.sha256("\n".join(items).encode()).hexdigest() for name, items in limits.items()}
    # A list begun in one number type ends in it, also where another machine goes on.
    choice = dtype_here(folder, begun_option(out, "dtype") or "auto")
    options["dtype"] = choice.dtype
    job = Bulk(users, out, options, block, strict)
    recommender = _open(folder, engine, strategy, quantised, choice.dtype)
    click.echo(described_device(choice, folder), err=True)

    def rank(histories: list[list[str]], candidates: list[list[str] | None]) -> Any:
        restriction: dict[str, Any] = {"candidates": candidates} if any(c is not None for c in candidates) else {}
        return recommender.recommend(histories, k, **limits, **restriction)

    result = job.run(rank, lambda name: recommender.find(name) is not None)
    rejected = f"; {result.rejected} lines rejected -> {job.rejects}" if result.rejected else ""
    if result.unknown:
        share = f"{result.unknown:,} of {result.items:,} items in their histories are not in the catalogue"
        click.echo(f"{share}; --strict rejects such lines, and names the items", err=True)
    click.echo(f"{result.users} users -> {out}{rejected}")


def _open(model: str | Path, engine: str, strategy: str | None, quantised: bool, dtype: Any = "auto") -> "Recommender":
    if engine == "vllm":
        from calrec_lite.recommend.vllm import vllm_recommender

        return vllm_recommender(model, strategy, dtype)
    from calrec_lite.recommend import Recommender

    return Recommender.from_pretrained(model, quantised, strategy, dtype)


def _show(
    recommender: "Recommender", titles: tuple[str, ...], k: int | None, limits: dict[str, Any], strict: bool
) -> None:
    lists = recommender.recommend([list(titles)], k, **limits, strict=strict)
    if names := recommender.unknown(titles):
        click.echo(f"{recommender.not_found(names)}; --strict refuses such a history", err=True)
    for rank, item in enumerate(lists[0], 1):
        click.echo(f"{rank:3d}. {item.title}   ({item.why})")


def _read_list(name: str, path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--{name} {path}: cannot be read ({error})") from None
    if not any(lines):
        raise InputError(f"--{name} {path}: names no item; write a title or id a line")
    return [line for line in lines if line]
