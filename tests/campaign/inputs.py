"""Inputs, most of them bad: each a command, the files it reads, and where it can be said what a right answer is."""

import csv
import gzip
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.random import Generator, default_rng

from tests.campaign.odd import SNIPPETS, VALUES, broken_bytes, broken_lines, broken_value, one, places
from tests.campaign.world import World

Judge = Callable[[str], str | None]  # standard output of a command that ended with 0 -> what is wrong with it


@dataclass
class Case:
    """One input.

    Attributes:
        command: arguments of calrec-lite.
        done: what was broken, in a few words.
        judge: of what came out; None: nobody can say.
        guarded: files that the command may read and never change.
        right: nothing is wrong with it, so that to refuse it is a fault.
    """

    command: list[str]
    done: str
    judge: Judge | None = None
    guarded: list[Path] = field(default_factory=list)
    right: bool = False


def make(world: World, folder: Path, seed: int, number: int, kinds: Sequence[str] = ()) -> tuple[str, Case]:
    """The input `number` of a seed, made in the empty `folder`, and its kind: one of `kinds`, default: of all.

    "recipe", "set" and "table" need no trained world.
    """
    makers: dict[str, tuple[float, Callable[[World, Path, Generator], Case]]] = {
        "recipe": (0.25, recipe_case),
        "set": (0.25, set_case),
        "table": (0.22, table_case),
        "users": (0.1, users_case),
        "model": (0.09, model_case),
        "run": (0.06, run_case),
        "typed": (0.03, typed_case),
    }
    random = default_rng([seed, number])
    shares = {kind: share for kind, (share, _) in makers.items() if not kinds or kind in kinds}
    kind = str(random.choice(list(shares), p=[share / sum(shares.values()) for share in shares.values()]))
    return kind, makers[kind][1](world, folder, random)


def recipe_case(world: World, folder: Path, random: Generator) -> Case:
    values = _recipe(world)
    text = yaml.safe_dump(values, sort_keys=False)
    file = folder / "recipe.yaml"
    judge, content, done = None, b"", "its bytes"
    kind = int(random.integers(5))
    if kind == 0:
        content = broken_bytes(random, text.encode())
    elif kind in (1, 2):
        for _ in range(int(random.integers(1, 3))):
            text = broken_lines(random, text)
        content, done = text.encode("utf-8", "surrogatepass"), "its lines"
    elif kind == 3:
        changed = broken_value(random, values)
        content, done = (
            yaml.safe_dump(changed, allow_unicode=bool(random.integers(2))).encode("utf-8", "surrogatepass"),
            "a value",
        )
    else:
        flow = yaml.safe_dump(values, sort_keys=bool(random.integers(2)), default_flow_style=True, width=40)
        content, done = one(random, [flow, "# é\n" + text, json.dumps(values), "\ufeff" + text]).encode(), "nothing"
        judge = _same_recipe(values)
    file.write_bytes(content)
    if random.random() < 0.1:  # reached by another file
        (folder / "above.yaml").write_text(
            f"extends: {one(random, ['recipe.yaml', '[recipe.yaml]', './recipe.yaml'])}\n"
        )
        judge, file = None, folder / "above.yaml"
    return Case([*_reading(random, file, folder, judge)], f"a recipe: {done}", judge, [file], kind == 4)


def set_case(world: World, folder: Path, random: Generator) -> Case:
    values = _recipe(world)
    resolved = _resolved(values)
    path = one(random, [path for path in places(resolved) if path])
    key = ".".join(map(str, path))
    if random.random() < 0.15:
        key = one(
            random,
            [
                f"{key}.x",
                f"{key}.0",
                key[:-1],
                "stages.².epochs",
                "stages.9.epochs",
                "",
                ".",
                f"{key}.",
                "é",
                key.upper(),
            ],
        )
    value = one(random, VALUES)
    if random.random() < 0.3:  # what may well be right
        now: Any = reduce(getitem, path, resolved)
        value = one(random, [now, now * 2, now + 1, now / 2]) if isinstance(now, int | float) else now
    text = one(random, SNIPPETS) if random.random() < 0.3 else value if isinstance(value, str) else json.dumps(value)
    override = f"{key}={text}" if random.random() < 0.97 else one(random, [key, "=", "", f"={text}"])
    if "\0" in override:  # no argument of a process can hold one
        override = override.replace("\0", "\\0")
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    judge = _says_number(key, text) if override == f"{key}={text}" else None
    command = _reading(random, file, folder, judge)
    return Case([*command, f"--set={override}"], f"--set {override[:60]}", judge, [file])


def table_case(world: World, folder: Path, random: Generator) -> Case:
    rows = list(csv.DictReader(world.table.open(encoding="utf-8")))
    name = one(random, ["csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.gz"])
    file = folder / f"{one(random, ['events', 'events', 'ev*', 'a[1]', 'user=7', 'é', 'x y'])}.{name}"
    before = {path: path.read_bytes() for path in [_decoy(folder, file, rows)] if path}
    same, done = False, "a cell"
    kind = int(random.integers(4))
    if kind == 0:
        same, done = True, "nothing"
    elif kind in (1, 2):
        for _ in range(int(random.integers(1, 4))):
            row, column = one(random, rows), one(random, list(rows[0]))
            row[column] = one(random, VALUES)
        if random.random() < 0.3:
            column = one(random, list(rows[0]))
            done, odd = f"the column {column}", _column(random, len(rows))
            for row, value in zip(rows, odd):
                row[column] = value
    content = _table(random, rows, name)
    if kind == 3:
        content, done = broken_bytes(random, content), "its bytes"
    file.write_bytes(content)
    values = _recipe(world)
    values["domains"]["shop"]["interactions"] = str(file)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    judge = _same_domain(world, folder / "runs") if same else None
    command = ["prepare", str(folder / "recipe.yaml"), "--runs", str(folder / "runs")]
    return Case(command, f"{file.name}: {done}", judge, [file, *before], same)


def users_case(world: World, folder: Path, random: Generator) -> Case:
    titles = [
        json.loads(line)["fields"]["Title"] for line in (world.export / "catalogue.jsonl").read_text().splitlines()
    ]
    users = [
        {"user": f"u{n}", "history": [one(random, titles) for _ in range(int(random.integers(0, 5)))]}
        for n in range(12)
    ]
    name = one(random, ["jsonl", "jsonl", "jsonl.gz", "parquet"])
    file, out = folder / f"users.{name}", folder / f"lists.{one(random, ['jsonl', 'jsonl.gz', 'parquet'])}"
    kind, judge, done = int(random.integers(4)), None, "values"
    if kind == 0:
        done, judge = "nothing", _as_many(out, len(users))
    elif kind in (1, 2):
        users = [broken_value(random, user) if random.random() < 0.4 else user for user in users]
    content = _users(users, name)
    if kind == 3:
        content, done = broken_bytes(random, content), "bytes"
    file.write_bytes(content)
    command = ["recommend", str(world.export), "--users", str(file), "--out", str(out)]
    strategy, plain = one(random, ["fast", "fast", "fused", "beam", "dense", "x"]), len(command)
    command += ["--strategy", strategy]
    if random.random() < 0.2:
        (folder / "list.txt").write_bytes(broken_bytes(random, "\n".join(titles[:9]).encode()))
        command += [one(random, ["--allow", "--deny"]), str(folder / "list.txt")]
    if random.random() < 0.1:
        command += [
            one(random, ["-k", "--block"]),
            one(random, ["0", "1", "-1", "1000000", "999999999999999999999", "x"]),
        ]
    right = kind == 0 and strategy != "x" and len(command) == plain + 2
    return Case(command, f"users.{name}: {done}", judge, [file], right)


def model_case(world: World, folder: Path, random: Generator) -> Case:
    source = world.export if random.random() < 0.75 else world.base
    copy = _linked(source, folder / "model")
    judge, done = None, ""
    if random.random() < 0.25:
        done = _broken_weights(random, copy / "model.safetensors")
        judge = _never(f"{done}, and nothing was said")
    else:
        done = _broken_file(random, one(random, sorted(f for f in copy.rglob("*") if f.is_file())))
    if source == world.base:
        if random.random() < 0.5:
            adapter = world.run / "1-target" / "adapter"
            return Case(["merge", str(copy), str(adapter), str(folder / "merged")], f"a base: {done}", judge)
        recipe = folder / "recipe.yaml"
        values = _recipe(world)
        values["base"]["model"] = str(copy)
        recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
        return Case(["train", str(recipe), "--runs", str(folder / "runs")], f"a base: {done}", judge)
    strategy = one(random, ["fast", "fused", "beam", "sample", "dense", "rerank"])
    if strategy == "fast":  # does not look at the LLM
        judge = None
    return Case(["recommend", str(copy), "red pen", "--strategy", strategy], f"an export: {done}", judge)


def run_case(world: World, folder: Path, random: Generator) -> Case:
    copy = _linked(world.run, folder / "runs" / "tiny")
    file = one(random, sorted(f for f in copy.rglob("*") if f.is_file()))
    done = f"{file.relative_to(copy)}: {_broken_file(random, file)}"
    commands = [
        ["evaluate", str(copy), "--users", "5"],
        ["report", str(copy), "--no-reasons"],
        ["compare", str(copy), str(world.run)],
        ["export", str(copy), "--to", str(folder / "export")],
        ["export", str(copy), "--to", str(folder / "export"), "--adapter"],
        ["tune", str(copy), "--users", "20"],
        ["train", str(world.recipe), "--runs", str(copy.parent)],
        ["prepare", str(world.recipe), "--runs", str(copy.parent)],
    ]
    return Case(one(random, commands), f"a run: {done}")


def typed_case(world: World, folder: Path, random: Generator) -> Case:
    typed = [
        one(random, [v for v in VALUES if isinstance(v, str)]).replace("\0", "")
        for _ in range(int(random.integers(1, 4)))
    ]
    if random.random() < 0.3:
        typed[0] = os.fsdecode(random.bytes(6).replace(b"\0", b"x"))
    commands = [
        ["recommend", str(world.export), *typed],
        ["recommend", *typed],
        ["recommend", str(world.export), "red pen", "--strategy", *typed[:1]],
        ["recommend", str(world.export), "red pen", "-k", *typed[:1]],
        ["prepare", typed[0], "--runs", str(folder / "runs")],
        ["train", typed[0], "--dry-run"],
        ["evaluate", typed[0]],
        ["export", typed[0], "--to", str(folder / "x")],
        ["compare", *(typed * 2)[:2]],
        ["merge", *(typed * 3)[:3]],
        ["report", typed[0]],
        ["push", *(typed * 2)[:2]],
    ]
    return Case(one(random, commands), "what is typed")


def _recipe(world: World) -> dict[str, Any]:
    return dict(yaml.safe_load(world.recipe.read_text(encoding="utf-8")))


def _reading(random: Generator, file: Path, folder: Path, judge: Judge | None) -> list[str]:
    """A command that reads a recipe; the one that prints it where somebody judges that."""
    if judge or random.random() < 0.7:
        return ["train", str(file), "--dry-run"]
    if random.random() < 0.5:
        return ["ablate", str(file), "--dry-run"]
    return ["prepare", str(file), "--runs", str(folder / "runs")]


def _resolved(values: Any) -> Any:
    from calrec_lite.recipe import resolved
    from calrec_lite.recipe.file import check_recipe

    return resolved(check_recipe(values))


def _same_recipe(values: Any) -> Judge:
    def judge(out: str) -> str | None:
        return None if yaml.safe_load(out) == _resolved(values) else "another recipe than was written"

    return judge


def _says_number(key: str, text: str) -> Judge | None:
    """A number that is accepted must be the one its digits say."""
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
        return None

    def judge(out: str) -> str | None:
        value = yaml.safe_load(out)
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        right = value is None or isinstance(value, bool) or str(value) == text or float(value) == float(text)
        return None if right else f"{text} was read as {value!r}"

    return judge


def _same_domain(world: World, runs: Path) -> Judge:
    """The prepared domain holds the same items and sequences as that of the world."""

    def judge(out: str) -> str | None:
        made, known = (
            json.loads((folder / "domains" / "shop" / "domain.json").read_text(encoding="utf-8"))["fingerprint"]
            for folder in (runs / "tiny", world.run)
        )
        return None if made == known else "other data than were written"

    return judge


def _as_many(out: Path, users: int) -> Judge:
    def judge(said: str) -> str | None:
        if out.suffix == ".parquet":
            count = pq.read_metadata(out).num_rows
        else:
            content = gzip.decompress(out.read_bytes()) if out.suffix == ".gz" else out.read_bytes()
            count = content.count(b"\n")
        return None if count == users else f"{count} lists for {users} users"

    return judge


def _never(problem: str) -> Judge:
    return lambda out: problem


def _decoy(folder: Path, file: Path, rows: list[dict[str, Any]]) -> Path | None:
    """Another file that the name would match as a pattern."""
    if "*" not in file.name and "[" not in file.name:
        return None
    decoy = folder / file.name.replace("*", "er").replace("[1]", "1")
    decoy.write_bytes(b"user,item,time,title\n1,1,1,x\n")
    return decoy


def _column(random: Generator, n: int) -> list[Any]:
    """A column of one odd kind."""
    base = int(one(random, [0, 1_600_000_000, 1_600_000_000_000, 20240131, -5, 10**17]))
    kinds: list[list[Any]] = [
        [base + i for i in range(n)],
        [float(base + i) for i in range(n)],
        [f"2020-01-{i % 28 + 1:02d}" for i in range(n)],
        [one(random, VALUES) for _ in range(n)],
        [bool(i % 2) for i in range(n)],
        [None] * n,
        [[i, i + 1] for i in range(n)],
        [{"a": i} for i in range(n)],
    ]
    return one(random, kinds)


def _table(random: Generator, rows: list[dict[str, Any]], name: str) -> bytes:
    kind = name.partition(".")[0]
    if kind == "parquet":
        columns = {c: [row.get(c) for row in rows] for c in rows[0]}
        table = pa.table({c: _typed(random, values) for c, values in columns.items()})
        out = pa.BufferOutputStream()
        pq.write_table(table, out)
        return bytes(out.getvalue().to_pybytes())
    if kind == "jsonl":
        content = "".join(json.dumps(row, ensure_ascii=bool(random.integers(2))) + "\n" for row in rows)
    else:
        text = io.StringIO()
        quoting = one(random, [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if kind == "tsv" else ",", quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue()
    encoded = content.encode("utf-8", "surrogatepass")
    return gzip.compress(encoded) if name.endswith(".gz") else encoded


def _typed(random: Generator, values: list[Any]) -> pa.Array:
    """Values in their own Arrow type, a rarer one that can hold them, or as text."""
    kinds = [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
    if all(isinstance(v, str) for v in values):
        return pa.array(values, pa.string()).cast(one(random, kinds))
    try:
        array = pa.array(values)
        rarer = [
            pa.timestamp("us", "UTC"),
            pa.timestamp("s"),
            pa.duration("s"),
            pa.float16(),
            pa.decimal128(38, 2),
            pa.date64(),
        ]
        return array.cast(one(random, rarer)) if random.random() < 0.3 else array
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return pa.array([str(v).encode("utf-8", "replace").decode() for v in values])


def _users(users: list[Any], name: str) -> bytes:
    if name == "parquet":
        out = pa.BufferOutputStream()
        columns = {key: [u.get(key) if isinstance(u, dict) else u for u in users] for key in ("user", "history")}
        try:
            table = pa.table(columns)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            table = pa.table({key: [repr(v) for v in values] for key, values in columns.items()})
        pq.write_table(table, out)
        return bytes(out.getvalue().to_pybytes())
    content = "".join(json.dumps(user) + "\n" for user in users).encode("utf-8", "surrogatepass")
    return gzip.compress(content) if name.endswith(".gz") else content


def _linked(source: Path, to: Path) -> Path:
    """A copy whose files are hard links: none but a log is ever written into."""
    return Path(
        shutil.copytree(
            source, to, copy_function=lambda a, b: (shutil.copy2 if "log" in Path(a).name else os.link)(a, b)
        )
    )


def _broken_file(random: Generator, file: Path) -> str:
    """Break one file of a folder, as what it is; returns what was done."""
    if random.random() < 0.06:
        file.unlink()
        return f"{file.name} removed"
    content, done = file.read_bytes(), "bytes"
    try:
        if file.suffix != ".json" or random.random() < 0.2:
            raise ValueError
        content, done = json.dumps(broken_value(random, json.loads(content))).encode(), "a value"
    except ValueError:
        content = broken_bytes(random, content)
    file.unlink()
    file.write_bytes(content)
    return f"{file.name}: {done}"


def _broken_weights(random: Generator, file: Path) -> str:
    """Weights that are not all there, or no numbers."""
    from safetensors.numpy import load_file, save_file

    content = file.read_bytes()
    tensors = load_file(file)
    name = one(random, sorted(tensors))
    file.unlink()
    kind = int(random.integers(5))
    if kind == 0:
        file.write_bytes(content[: len(content) // 2])
        return "half of the weights"
    if kind == 1:
        tensors[f"{name}x"] = tensors.pop(name)
    elif kind == 2:
        del tensors[name]
    elif kind == 3:
        tensors[name] = tensors[name] * float("nan")
    else:
        tensors[name] = tensors[name][:-1]
    save_file(tensors, file, {"format": "pt"})
    return f"{name} {('', 'renamed', 'taken out', 'no numbers', 'of another shape')[kind]}"
