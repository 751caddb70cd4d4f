"""recommend: titles typed, or a file of histories."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from calrec_lite.cli.options import quiet_libraries
from calrec_lite.errors import InputError

if TYPE_CHECKING:
    from calrec_lite.recommend import Recommendation


@click.command()
@click.argument("model")
@click.argument("titles", nargs=-1)
@click.option(
    "--users",
    type=click.Path(path_type=Path, dir_okay=False),
    help='Histories, one user a line: {"user": "u1", "history": ["title or, where none reads so, item id", ...]}.',
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Lists as .jsonl or .parquet.")
@click.option("-k", type=click.IntRange(min=1), help="Length of a list; default: the recipe's.")
@click.option("--4bit", "quantised", is_flag=True, help="Load the model in 4 bits.")
def recommend(
    model: str, titles: tuple[str, ...], users: Path | None, out: Path | None, k: int | None, quantised: bool
) -> None:
    """Recommend with an exported MODEL (folder or Hub id), after the TITLES of one history or for a file of users."""
    if bool(titles) == bool(users):
        raise InputError("recommend: give titles (oldest first), or --users FILE")
    if users and not out:
        raise InputError("recommend: --users needs --out FILE")
    if out and out.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"--out {out}: the name must end in .jsonl or .parquet")
    quiet_libraries()
    from calrec_lite.recommend import Recommender

    names, histories = read_histories(users) if users else (["you"], [list(titles)])
    lists = Recommender.from_pretrained(model, quantised).recommend(histories, k, progress=users is not None)
    if out:
        _write(out, names, lists)
        click.echo(f"-> {out}")
        return
    for place, item in enumerate(lists[0], 1):
        click.echo(f"{place:3d}. {item.title}   ({item.why})")


def read_histories(path: Path) -> tuple[list[str], list[list[str]]]:
    """Users and histories of a JSON-lines file. Raises InputError naming the line."""
    names, histories = [], []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--users {path}: cannot be read ({error})") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            history = entry["history"]
            if not isinstance(history, list) or not all(isinstance(t, str) for t in history):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise InputError(f'{path}:{number}: not {{"user": ..., "history": [titles]}}') from None
        names.append(str(entry.get("user", number)))
        histories.append(history)
    if not histories:
        raise InputError(f"{path}: holds no user")
    return names, histories


def _write(out: Path, names: list[str], lists: "list[list[Recommendation]]") -> None:
    from calrec_lite.files import atomic_path

    rows = [{"user": user, "items": [asdict(item) for item in own]} for user, own in zip(names, lists)]
    with atomic_path(out) as temporary:
        if out.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), temporary)
        else:
            temporary.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
