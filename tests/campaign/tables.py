"""Broken tables of purchases, and broken files of histories."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.random import Generator

from tests.campaign.case import Case, Judge
from tests.campaign.odd import VALUES, broken_bytes, broken_value, one
from tests.campaign.world import World


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
    values = world.values()
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
        texts = [v.encode("utf-8", "replace").decode() for v in values]
        return pa.array(texts, pa.string()).cast(one(random, kinds))
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
