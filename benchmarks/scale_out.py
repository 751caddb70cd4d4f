"""Whether several processes do what one does, and how much faster (docs/training.md, docs/recommending.md).

    python benchmarks/scale_out.py [--only training lists ray many] [--steps 20] [--users 60] [--data ../shared/data]

`training`: a random Llama of 4 layers in fp32 (what is compared is arithmetic, not what it learns), so many steps in
one process, in two, in two that hold half of each layer (FSDP2), and in two of which one is killed on the way, so that
one process goes on to the end.
`lists`: of the trained model by beam search, of a file of histories in one process and in three parts, merged; and an
evaluation in one and in two parts. `ray`: lists by the dense head from one worker, from two, and from two of which one
is killed; give it `--users 4000` for a throughput. `many`: a file of synthetic users, as `--users 10000000`, by two
workers and the smallest model there is, so that what surrounds a model is measured; killed on the way and gone on with.
Needs the shared data. Each part is a function in PARTS that gives a
record, and adds its figures to `ratios` in the result; parts that are not asked for keep theirs.
"""

import argparse
import filecmp
import gzip
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from datetime import datetime, timezone
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
import yaml
from amazon import WORDING, domain
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from calrec_lite.cli import group
from calrec_lite.evaluate.store import hardware, versions
from calrec_lite.files import atomic_path, write_json
from calrec_lite.model.base import base_folder
from calrec_lite.model.tokenizer import load_tokenizer
from calrec_lite.recipe.file import load_recipe

ROOT = Path(__file__).parents[1]
DATA = "amazon18_giftcards"
BATCH = 8
CHUNK = 100_000  # synthetic users drawn at once
LIST_BLOCK = 8  # lines
RAY_PARTS = 32
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALLEST = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
MANY_PARTS = 128
KILLED_AT = 0.2  # of the parts
MOST_ITEMS = 12  # of a synthetic history
Ratios = dict[str, float]
Part = Callable[[argparse.Namespace], tuple[dict[str, Any], Ratios]]


def run(*words: object) -> float:
    """Run a command in this process; seconds, without the seconds that libraries take to be imported."""
    start = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        group.main([str(word) for word in words], standalone_mode=False)
    return time.perf_counter() - start


def started(*words: object) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "calrec_lite", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def base(options: argparse.Namespace) -> Path:
    """The random model, with the demo's tokenizer."""
    folder = options.work / "base"
    if not folder.is_dir():
        tokenizer = load_tokenizer(base_folder(load_recipe("demo").base))
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), **options.sizes, tie_word_embeddings=True, initializer_range=0.1
        )
        with atomic_path(folder) as temporary:
            LlamaForCausalLM(config).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


def recipe(options: argparse.Namespace) -> Path:
    """Written into the work folder."""
    values = {
        "name": "giftcards",
        "base": {"model": str(base(options)), "load_in_4bit": False, "dtype": "float32"},
        "domains": {"giftcards": domain(options.data, DATA)},
        "text": {**WORDING, "max_items": 4, "max_item_tokens": 16},
        "stages": [{"name": "target", "domains": ["giftcards"], "max_steps": options.steps}],
        "optim": {"batch_size": BATCH, "micro_batch_size": 4, "save_every": 5, "valid_users": 50},
        "recommend": {"strategy": "beam"},
        "evaluate": {"users": options.users, "baselines": ["popularity"], "base": False},
    }
    file = options.work / "recipe.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def adapter(options: argparse.Namespace, name: str) -> dict[str, Any]:
    return load_file(options.work / name / "giftcards" / "1-target" / "adapter" / "adapter_model.safetensors")


def largest_difference(options: argparse.Namespace, a: str, b: str) -> float:
    """Between two runs' trained weights."""
    first, second = adapter(options, a), adapter(options, b)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def killed(file: Path, runs: Path) -> dict[str, Any]:
    """Two processes, of which the second one is killed after a checkpoint: how the command ends."""
    command = started("train", file, "--runs", runs, "--nproc", 2)
    while not list(runs.glob("giftcards/1-target/checkpoints/checkpoint-*/trainer_state.json")):
        if command.poll() is not None:
            raise SystemExit("the run that should be killed ended by itself")
        time.sleep(0.05)
    children = psutil.Process(command.pid).children()
    next(child for child in children if child.environ().get("RANK") == "1").send_signal(signal.SIGKILL)
    _, said = command.communicate()
    return {"exit_code": command.returncode, "said": said.strip().splitlines()[-1]}


def training(options: argparse.Namespace) -> tuple[dict[str, Any], Ratios]:
    file, work = recipe(options), options.work
    run("train", file, "--runs", work / "one")
    together = started("train", file, "--runs", work / "two", "--nproc", 2)
    if together.communicate() and together.returncode:
        raise SystemExit("the run in two processes failed")
    split = started("train", file, "--runs", work / "split", "--nproc", 2, "--set", "optim.fsdp=true")
    if split.communicate() and split.returncode:
        raise SystemExit("the run of which each process holds a half failed")
    ending = killed(file, work / "killed")
    run("train", file, "--runs", work / "killed")  # on in one process
    largest = max(float(value.abs().max()) for value in adapter(options, "one").values())
    record = {"steps": options.steps, "batch_size": BATCH, "largest_weight": largest, "killed": ending}
    return record, {
        "ddp2_equals_single": largest_difference(options, "one", "two"),
        "ddp2_killed_then_one_equals_single": largest_difference(options, "one", "killed"),
        "fsdp2_equals_single": largest_difference(options, "one", "split"),
    }


def histories(options: argparse.Namespace) -> Path:
    """As many users as are asked for: those of the data, again and again."""
    file = options.work / "users.jsonl"
    with gzip.open(options.data / DATA / "seqs.jsonl.gz", "rt", encoding="utf-8") as lines:
        users = [json.loads(line) for line in lines]
    with file.open("w") as out:
        for n, user in zip(range(options.users), cycle(users), strict=False):
            out.write(json.dumps({"user": f"{user['user']}-{n}", "history": user["items"][:-1]}) + "\n")
        out.write("no JSON\n")  # rejected lines have to be the same, too
    return file


def exported(options: argparse.Namespace) -> Path:
    """The export of a run in one process, made where there is none yet."""
    trained = options.work / "one" / "giftcards"
    if not trained.is_dir():
        run("train", recipe(options), "--runs", options.work / "one")
    export = trained / "export"
    if not export.is_dir():
        run("export", trained)
    return export


def lists(options: argparse.Namespace) -> tuple[dict[str, Any], Ratios]:
    export = exported(options)
    trained = export.parent
    users, equal, seconds = histories(options), [], {}
    for suffix in ("jsonl", "jsonl.gz", "parquet"):
        whole, parts = (options.work / f"{name}.{suffix}" for name in ("whole", "parts"))
        seconds[suffix] = run("recommend", export, "--users", users, "--out", whole, "--block", LIST_BLOCK)
        for number in range(1, 4):
            shard = ("--block", LIST_BLOCK, "--shard", f"{number}/3")
            run("recommend", export, "--users", users, "--out", parts, *shard)
        run("merge-lists", parts)
        equal += [filecmp.cmp(whole, parts, shallow=False)]
        equal += [filecmp.cmp(f"{whole}.rejected.jsonl", f"{parts}.rejected.jsonl", shallow=False)]
    again = options.work / "sharded"
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(trained, again / "giftcards")
    run("evaluate", trained)
    for number in (1, 2):
        run("evaluate", again / "giftcards", "--shard", f"{number}/2")
    run("merge-lists", again / "giftcards" / "evaluation.shards")
    ours, theirs = (folder / "evaluation" for folder in (again / "giftcards", trained))
    equal += [filecmp.cmp(ours / "rankings.parquet", theirs / "rankings.parquet", shallow=False)]
    metrics = [
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["systems"] for folder in (ours, theirs)
    ]
    equal += [metrics[0] == metrics[1]]
    record = {"users": options.users, "seconds": seconds, "files_compared": len(equal)}
    return record, {"shards_equal_single": sum(equal) / len(equal)}


def workers_at_work(command: subprocess.Popen[str]) -> list[psutil.Process]:
    """Those that are doing a part, by the names that Ray gives its processes; waits for one."""
    found: list[psutil.Process] = []
    while not found:
        if command.poll() is not None:
            raise SystemExit("the run of which a worker should be killed was done too soon; give it more --users")
        for child in psutil.Process(command.pid).children(recursive=True):
            with suppress(psutil.Error):
                if "MapWorker" in (title := " ".join(child.cmdline())) and "submit" in title:
                    found.append(child)
    return found


def by_ray(options: argparse.Namespace, export: Path, users: Path, workers: int, kill: bool = False) -> dict[str, Any]:
    """Lists of a file by so many workers, of which one is killed after the first part; users a second once all work."""
    out = options.work / f"ray_{workers}{'_killed' * kill}"
    shutil.rmtree(out, ignore_errors=True)
    words = (
        "--engine",
        "ray",
        "--workers",
        workers,
        "--parts",
        RAY_PARTS,
        "--block",
        LIST_BLOCK,
        "--strategy",
        "dense",
    )
    command = started("recommend", export, "--users", users, "--out", out, *words)
    while kill and not list(out.glob("_state/part-*.json")):
        if command.poll() is not None:
            raise SystemExit(f"the run of which a worker should be killed ended by itself: {command.communicate()[1]}")
        time.sleep(0.02)
    if kill:
        workers_at_work(command)[0].kill()
    _, said = command.communicate()
    if command.returncode:
        raise SystemExit(said)
    states = sorted(out.glob("_state/part-*.json"), key=lambda file: file.stat().st_mtime_ns)
    seconds = (states[-1].stat().st_mtime_ns - states[workers - 1].stat().st_mtime_ns) / 1e9
    ranked = sum(json.loads(file.read_text(encoding="utf-8"))["users"] for file in states[workers:])
    rows = [row for file in sorted(out.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return {"rows": rows, "users_per_second": ranked / max(seconds, 1e-9)}


def spread(options: argparse.Namespace) -> tuple[dict[str, Any], Ratios]:
    export = exported(options)
    users, whole = histories(options), options.work / "dense.parquet"
    run("recommend", export, "--users", users, "--out", whole, "--block", LIST_BLOCK, "--strategy", "dense")
    rows = pq.read_table(whole).to_pylist()
    one, two = by_ray(options, export, users, 1), by_ray(options, export, users, 2)
    killed_once = by_ray(options, export, users, 2, kill=True)
    equal = [lists == rows for lists in (one["rows"], two["rows"], killed_once["rows"])]
    speeds = {"1": one["users_per_second"], "2": two["users_per_second"]}
    return {"users": len(rows), "parts": RAY_PARTS, "users_per_second_of_workers": speeds}, {
        "ray_equals_builtin": sum(equal) / len(equal),
        "ray_2_workers_vs_1": speeds["2"] / speeds["1"],
        "rows_lost_after_worker_kill": len(
            {row["user"] for row in rows} - {row["user"] for row in killed_once["rows"]}
        ),
    }


def synthetic(options: argparse.Namespace, file: Path) -> None:
    """So many users: histories of 1 to 12 items, drawn as often as they are bought."""
    with gzip.open(options.data / DATA / "seqs.jsonl.gz", "rt", encoding="utf-8") as lines:
        bought = np.array([item for line in lines for item in json.loads(line)["items"]])
    draw = np.random.default_rng(0)
    with atomic_path(file) as temporary, temporary.open("w") as out:
        for first in range(0, options.users, CHUNK):
            lengths = draw.integers(1, MOST_ITEMS + 1, min(CHUNK, options.users - first))
            items = np.split(draw.choice(bought, lengths.sum()), lengths.cumsum()[:-1])
            for n, history in enumerate(items, first):
                out.write(f'{{"user": "{n}", "history": {json.dumps(history.tolist())}}}\n')


def watched(command: subprocess.Popen[str], until: Callable[[], bool]) -> float:
    """Wait until something is so, or a command ends; the most memory (bytes) that it and its processes held."""
    most = 0.0
    while command.poll() is None and not until():
        with suppress(psutil.Error):
            family = [psutil.Process(command.pid), *psutil.Process(command.pid).children(recursive=True)]
            most = max(most, sum(process.memory_full_info().pss for process in family))
        time.sleep(2)
    return most


def many(options: argparse.Namespace) -> tuple[dict[str, Any], Ratios]:
    small = argparse.Namespace(**{**vars(options), "work": options.work / "small", "sizes": SMALLEST, "steps": 1})
    small.work.mkdir(exist_ok=True)
    export, users, out = exported(small), small.work / f"{options.users}.jsonl", small.work / "many"
    if not users.is_file():
        synthetic(options, users)
    shutil.rmtree(out, ignore_errors=True)
    words = ["--engine", "ray", "--workers", 2, "--parts", MANY_PARTS, "--strategy", "dense", "--k", 10]
    given = "recommend", export, "--users", users, "--out", out, *words
    done = partial(out.glob, "_state/part-*.json")
    command, start = started(*given), time.perf_counter()
    most = watched(command, lambda: len(list(done())) >= KILLED_AT * MANY_PARTS)
    for process in [*psutil.Process(command.pid).children(recursive=True), psutil.Process(command.pid)]:
        with suppress(psutil.Error):
            process.kill()
    command.wait()
    kept = {file: file.stat().st_mtime_ns for file in done()}
    command = started(*given)
    most = max(most, watched(command, lambda: False))
    if command.wait():
        raise SystemExit(command.communicate()[1])
    seconds = time.perf_counter() - start
    files = f"read_parquet('{out}/*.parquet')"
    rows, distinct = duckdb.sql(f"SELECT count(*), count(DISTINCT user) FROM {files}").fetchall()[0]
    times = sorted(file.stat().st_mtime_ns / 1e9 for file in done())[len(kept) :]
    each, quarter = options.users / MANY_PARTS, len(times) // 4
    speeds = [(quarter - 1) * each / (part[-1] - part[0]) for part in (times[:quarter], times[-quarter:])]
    return {
        "users": options.users,
        "workers": 2,
        "parts": MANY_PARTS,
        "seconds": seconds,
        "parts_before_the_kill": len(kept),
        "of_these_made_again": sum(file.stat().st_mtime_ns != when for file, when in kept.items()),
        "users_per_second_of_first_and_last_quarter": speeds,
        "most_bytes_of_all_processes": most,
        "bytes_of_users_and_lists": [users.stat().st_size, sum(file.stat().st_size for file in out.glob("*.parquet"))],
    }, {"many_rows_lost": options.users - distinct, "many_rows_twice": rows - distinct}


PARTS: dict[str, Part] = {"training": training, "lists": lists, "ray": spread, "many": many}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=["training", "lists", "ray"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path("scale_out_work"), help="runs and files of lists; kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scale_out.json")
    options = parser.parse_args(namespace=argparse.Namespace(sizes=SIZES))
    options.work.mkdir(parents=True, exist_ok=True)
    options.work, options.data = options.work.resolve(), options.data.resolve()
    for name in options.only:
        record, ratios = PARTS[name](options)
        known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
        about = {
            "command": f"python benchmarks/scale_out.py --only {name} --steps {options.steps} --users {options.users}",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": hardware(),
        }
        parts = {**known.get("parts", {}), name: {**record, **about}}
        write_json(options.out, {"parts": parts, "ratios": {**known.get("ratios", {}), **ratios}})
        print(name, record, ratios, flush=True)


if __name__ == "__main__":
    main()
