"""Ray on this machine, its workers killed on the way: what comes out is what the built-in engine makes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from calrec_lite.cli import group
from calrec_lite.cluster.lists import ListsJob, Ranker
from calrec_lite.cluster.parts import parts_of
from calrec_lite.cluster.ray_engine import _failed
from calrec_lite.errors import InputError, RunError
from tests.cluster.conftest import same_rows

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
TIMES = 8  # the lines of the file: a part has to take long enough to be stopped in it
PARTS = 12
BLOCK = 4
PATIENCE = 300.0  # seconds; on a machine that does nothing else a twentieth of it
SETTINGS = {
    "RAY_worker_niceness": "0",  # else the workers starve where tests run side by side
    "RAY_AUTH_MODE": "disabled",  # a cluster that a process starts for itself keeps its token to itself
    "RAY_USAGE_STATS_ENABLED": "0",
}
ENVIRONMENT = {**os.environ, **SETTINGS}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of this machine, for all commands but the one that starts Ray itself: a start takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        import ray

        context = ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield context.address_info["address"]
        ray.shutdown()


def command(package: Path, users: Path, out: Path, *more: object) -> list[str]:
    words = ["recommend", package, "--users", users, "--out", out, "-k", 5, "--block", BLOCK, *more]
    return [sys.executable, "-m", "calrec_lite", *map(str, words)]


def started(package: Path, users: Path, out: Path, *more: object) -> subprocess.Popen[str]:
    """Two workers."""
    words = command(package, users, out, "--engine", "ray", "--workers", 2, "--parts", PARTS, *more)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for(what, process: subprocess.Popen[str]):
    """What `what()` gives as soon as that is something."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def at_work() -> list[psutil.Process]:
    """The workers of `cluster` that are doing a part, by the names that Ray gives its processes."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "MapWorker" in (title := " ".join(child.cmdline())) and "submit" in title:
                found.append(child)
    return found


def done(out: Path) -> list[Path]:
    return [path for path in out.glob("_state/part-*.json") if not path.name.startswith(".")]


def test_all_are_stopped_and_then_a_worker_is_killed_and_the_lists_are_those_of_the_built_in_engine(
    package: Path,
    users: Path,
    tmp_path: Path,
    cluster: str,
) -> None:
    users.write_bytes(b"\n".join([users.read_bytes()] * TIMES))
    whole, out = tmp_path / "whole.parquet", tmp_path / "lists"
    one = subprocess.run(command(package, users, whole), capture_output=True, text=True, check=True)
    first = started(package, users, out)
    wait_for(lambda: done(out), first)
    first.terminate()  # as an operator ends it
    first.communicate(timeout=PATIENCE)
    kept = {path: path.stat().st_mtime_ns for path in done(out)}
    assert 0 < len(kept) < PARTS
    second = started(package, users, out, "--address", cluster)
    wait_for(at_work, second)[0].kill()
    assert len(done(out)) < PARTS
    said, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, errors
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # not done again
    same = one.stdout.replace(f"{whole}.rejected.jsonl", f"{out}/_rejected").replace(str(whole), str(out))
    assert said.endswith(same)  # after what Ray says of the worker
    parts = sorted(out.glob("*.parquet"))
    assert len(parts) == len(done(out)) == PARTS
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert rows == pq.read_table(whole).to_pylist()
    rejected = b"".join(path.read_bytes() for path in sorted(out.glob("_rejected/*.jsonl")))
    assert rejected == Path(f"{whole}.rejected.jsonl").read_bytes()
    other = subprocess.run(
        command(package, users, out, "--engine", "ray", "--strict", "--parts", PARTS), capture_output=True, text=True
    )
    assert other.returncode == 2
    assert "begun with another strict; start with the same" in other.stderr


def test_the_commands_of_the_page_give_what_the_built_in_engine_gives(
    package: Path, users: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "export").symlink_to(package)
    monkeypatch.chdir(tmp_path)
    assert users == tmp_path / "users.jsonl"
    lines = [
        line.split()[1:] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("calrec-lite ")
    ]
    assert [line[0] for line in lines] == ["recommend", "index"]
    for line in lines:
        words = [sys.executable, "-m", "calrec_lite", *line, "--address", cluster, "--parts", "2"]
        subprocess.run(words, check=True, capture_output=True, env=ENVIRONMENT)
        out = line[line.index("--out" if "--out" in line else "--to") + 1]
        parts = sorted(Path(out).glob("*.parquet"))
        assert [part.name for part in parts] == ["part-00001-of-00002.parquet", "part-00002-of-00002.parquet"]
        alone = [word.replace(out, "alone.parquet") for word in line[: line.index("--engine")]]
        alone += ["--strategy", "dense"] if line[0] == "recommend" else []
        assert not CliRunner().invoke(group, alone, standalone_mode=False).exception
        rows, wanted = (
            [row for file in files for row in pq.read_table(file).to_pylist()]
            for files in (parts, [Path("alone.parquet")])
        )
        if line[0] == "index":
            same_rows(rows, wanted)
        else:
            assert [row["user"] for row in rows] == [row["user"] for row in wanted]
        Path("alone.parquet").unlink()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "ray", "--shard", "1/2"], "without --shard"),
        (["--workers", "2"], "are for --engine ray"),
    ],
)
def test_options_that_do_not_go_together(
    package: Path, users: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    ended = subprocess.run(command(package, users, tmp_path / "x.jsonl", *words), capture_output=True, text=True)
    assert ended.returncode == 2
    assert said in ended.stderr


@pytest.mark.parametrize(("limits", "kind"), [({"allow": ["no such item"]}, InputError), ({}, RunError)])
def test_what_the_user_has_to_mend_is_told_from_what_may_go_better_the_next_time(
    package: Path, users: Path, tmp_path: Path, limits: dict[str, list[str]], kind: type[Exception]
) -> None:
    """By an actor in this process."""
    out = tmp_path / "out"
    parts = parts_of([str(users)], 2)
    ranker = Ranker(ListsJob(str(package), {}, str(out), {}, str(users), 5, limits, False, BLOCK, parts=parts))
    if not limits:
        out.touch()  # where a folder should be
    told = ranker({"number": np.arange(len(parts))})
    error = _failed(list(zip(told["fault"], told["input"])), len(parts))
    assert type(error) is kind, error
    if limits:
        assert "allow: the catalogue has no title or id no such item" in str(error).replace("'", "")


def test_states_are_json(tmp_path: Path) -> None:
    from calrec_lite.cluster.parts import Place

    place = Place(str(tmp_path / "out"))
    assert place.read("_state/x.json") is None
    place.write("_state/x.json", {"users": 1})
    assert place.read("_state/x.json") == json.loads((tmp_path / "out" / "_state" / "x.json").read_text())
