"""Time and peak memory of ranking all of 100,000 items for 100,000 users, and of preparing up to 100 million events.

    python benchmarks/scale.py [--users 100000] [--items 100000] [--out benchmarks/results/scale_cpu.json]
    python benchmarks/scale.py --data FOLDER [--events 1000000 10000000 100000000] [--out ...]
    python benchmarks/scale.py --data FOLDER --catalogue 1000000 [--out ...]

`scores`: ranks of the targets from a dense model's scores (vectors of 32 numbers), with ten excluded items a user.
`lists`: the baseline `transitions` through the evaluator, from fitting to metrics with intervals. Each in a process of
its own; the memory is that process's peak, Python and libraries included.
`prepare`: from a CSV file to a prepared domain, of so many copies of the users in FOLDER (`*/seqs.jsonl.gz` with times
and `items.jsonl.gz` beside them) as make the number of events; each copy's users have ids of their own. FOLDER's data
are not part of the project. The disk needs some 150 bytes an event, in the folder for temporary files (TMPDIR).
`catalogue`: one list by beam over so many items, by the command `calrec-lite recommend`, the first time (it tokenises
the items and keeps their trie) and the second. The model is SmolLM2-135M after one step; the titles are halves of two
of FOLDER's.
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from calrec_lite.data.domain import Catalogue, Domain, Sequences
from calrec_lite.data.prepare import prepare_to
from calrec_lite.files import write_json
from calrec_lite.measure.cases import build_cases
from calrec_lite.measure.metrics import ranks_in_chunks, summarise
from calrec_lite.recipe import DomainSpec

ROOT = Path(__file__).parents[1]
EVENTS = 10
RECIPE = {  # the least that makes a model of a catalogue: one step of SmolLM2-135M
    "extends": "base/smollm2-135m-instruct-pypi.yaml",
    "name": "large",
    "base": {"load_in_4bit": False},
    "domains": {
        "shop": {
            "interactions": "events.csv",
            "items": "items.jsonl",
            "fields": {"Title": "title"},
            "min_item_events": 1,
            "columns": {"time_format": "seconds"},
        }
    },
    "text": {"max_items": 3, "max_item_tokens": 64},
    "stages": [{"name": "one", "domains": ["shop"], "max_steps": 1}],
    "optim": {"batch_size": 2, "valid_users": 2},
    "recommend": {"strategy": "beam"},
}


def scores(users: int, items: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    of_users, of_items = (random.normal(size=(n, 32)).astype(np.float32) for n in (users, items))
    targets = random.integers(items, size=users)
    seen = list(random.integers(items, size=(users, EVENTS)))
    ranks = ranks_in_chunks(lambda part: of_users[part] @ of_items.T, targets, items, seen)
    return dict(summarise(ranks, 2000, 0))


def lists(users: int, items: int) -> dict[str, Any]:
    from calrec_lite.evaluate.baselines.counting import TransitionsBaseline
    from calrec_lite.evaluate.protocol import Protocol, evaluate_system

    random = np.random.default_rng(0)
    names = [str(n) for n in range(items)]
    events = (items * random.random(users * EVENTS) ** 3).astype(np.int32)  # some items far more often than others
    domain = Domain(
        "large",
        Catalogue(names, [{"Title": name} for name in names], {name: n for n, name in enumerate(names)}),
        Sequences([str(u) for u in range(users)], events, np.arange(users + 1) * EVENTS, None),
        {"fingerprint": "0" * 64},
    )
    cases = build_cases(domain, "test", None, 0)
    return dict(evaluate_system(TransitionsBaseline(domain, 0), cases, Protocol()).metrics)


def write_events(data: Path, folder: Path, events: int) -> dict[str, Any]:
    """Make events.csv and items.jsonl of copies of the users below `data`."""
    folders = [path.parent for path in sorted(data.glob("*/seqs.jsonl.gz"))]
    connection = duckdb.connect()
    connection.execute("CREATE TABLE events (user VARCHAR, item VARCHAR, time BIGINT)")
    connection.execute("CREATE TABLE items (item VARCHAR, title VARCHAR)")
    for prefix, place in zip("abcdefghijklmnopqrstuvwxyz", folders, strict=False):
        columns = "{user: 'VARCHAR', items: 'VARCHAR[]', ts: 'BIGINT[]'}"
        connection.execute(
            f"INSERT INTO events SELECT '{prefix}' || user, '{prefix}' || unnest(items), unnest(ts) "
            f"FROM read_json('{place}/seqs.jsonl.gz', columns={columns}) WHERE ts IS NOT NULL;"
            f"INSERT INTO items SELECT '{prefix}' || item, title "
            f"FROM read_json('{place}/items.jsonl.gz', columns={{item: 'VARCHAR', title: 'VARCHAR'}})"
        )
    once = connection.execute("SELECT count(*) FROM events").fetchall()[0][0]
    copies = -(-events // once)
    connection.execute(
        f"COPY (SELECT n || user AS user, item, time FROM range({copies}) AS copies(n), events "
        f"LIMIT {events}) TO '{folder}/events.csv' (HEADER);"
        f"COPY items TO '{folder}/items.jsonl' (FORMAT json)"
    )
    return {"copies": copies}


def prepare(folder: Path) -> dict[str, Any]:
    spec = DomainSpec(interactions=f"{folder}/events.csv", items=f"{folder}/items.jsonl", html=True)
    domain = prepare_to("large", spec, 0, folder / "prepared")
    return {**domain.info["statistics"], "fingerprint": domain.fingerprint}


def write_catalogue(data: Path, folder: Path, items: int) -> dict[str, Any]:
    """Make an export of a model with so many items, by the commands a user has; a title of them is in title.txt."""
    titles: list[str] = []
    for path in sorted(data.glob("*/items.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            titles += [" ".join(json.loads(line)["title"].split())[:150] for line in lines]
    random, made = np.random.default_rng(0), dict[str, None]()
    while len(made) < items:
        first, last = (titles[i].split() for i in random.integers(len(titles), size=2))
        made[" ".join([*first[: 1 + len(first) // 2], *last[len(last) // 2 :]])] = None
    order = random.permutation(list(made))
    rows = [f"{n // EVENTS},{n},{n % EVENTS}\n" for n in range(items)]  # each item once, ten a user
    (folder / "events.csv").write_text("user,item,time\n" + "".join(rows), encoding="utf-8")
    with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"item": n, "title": title}) + "\n" for n, title in enumerate(order))
    (folder / "title.txt").write_text(order[0], encoding="utf-8")
    (folder / "large.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")  # JSON is YAML
    for command in (["train", "large.yaml", "--runs", "."], ["export", "large", "--to", "export"]):
        subprocess.run([sys.executable, "-m", "calrec_lite", *command], cwd=folder, check=True)
    return {"items": len(made)}


def listed(folder: Path) -> dict[str, Any]:
    """One list by beam, as the command makes it, in this process."""
    from calrec_lite.cli import group

    title = (folder / "title.txt").read_text(encoding="utf-8")
    group(["recommend", str(folder / "export"), title, "--strategy", "beam"], standalone_mode=False)
    return {"cpu_seconds": time.process_time()}


def large(data: Path, items: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        measured("--only", "catalogue", "--data", str(data), "--items", str(items), "--folder", folder)
        found = {when: measured("--only", "listed", "--folder", folder) for when in ("first", "second")}
        return {"items": items, **found}


def measured(*arguments: str) -> dict[str, Any]:
    """What a process of its own says, and its peak memory."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(*arguments, {key: found[key] for key in ("seconds", "peak_memory_bytes")}, flush=True)
    return found


def prepared(data: Path, events: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: a peak counts for the processes that are started after it as well.
        measured("--only", "events", "--data", str(data), "--events", str(events), "--folder", folder)
        size = (Path(folder) / "events.csv").stat().st_size
        return {"events": events, "file_bytes": size, **measured("--only", "prepare", "--folder", folder)}


def about(options: str) -> dict[str, Any]:
    """How and where it was measured. Called last: torch, which it imports, would count for the processes started."""
    from calrec_lite.evaluate.store import hardware, versions

    return {
        "command": f"python benchmarks/scale.py{options}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scale_cpu.json")
    parser.add_argument("--data", type=Path, help="measure `prepare` on copies of what is here")
    parser.add_argument("--events", type=int, nargs="+", default=[10**6, 10**7, 10**8])
    parser.add_argument("--catalogue", type=int, help="measure a list by beam over so many items")
    parser.add_argument(
        "--only",
        choices=["scores", "lists", "events", "prepare", "catalogue", "listed"],
        help="do it here, and print what it took",
    )
    parser.add_argument("--folder", type=Path, help="of what `--only` makes or reads")
    options = parser.parse_args()
    if options.only:
        start = time.perf_counter()
        metrics = {
            "scores": lambda: scores(options.users, options.items),
            "lists": lambda: lists(options.users, options.items),
            "events": lambda: write_events(options.data, options.folder, *options.events),
            "prepare": lambda: prepare(options.folder),
            "catalogue": lambda: write_catalogue(options.data, options.folder, options.items),
            "listed": lambda: listed(options.folder),
        }[options.only]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": time.perf_counter() - start, "peak_memory_bytes": peak, "metrics": metrics}))
        return
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    if options.catalogue:
        found["catalogue"] = {**large(options.data, options.catalogue), **about(" --data FOLDER --catalogue N")}
    elif options.data:
        rows = [prepared(options.data, events) for events in options.events]
        found["prepare"] = {**about(" --data FOLDER"), "rows": rows}
    else:
        size = ["--users", str(options.users), "--items", str(options.items)]
        lines = {what: measured(*size, "--only", what) for what in ("scores", "lists")}
        found |= {**about(""), "users": options.users, "items": options.items, **lines}
    write_json(options.out, found)


if __name__ == "__main__":
    main()
