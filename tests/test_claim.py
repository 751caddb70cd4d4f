"""One process at a time: who holds what, what a dead process held, and what is waited for."""

import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from calrec_lite import claim
from calrec_lite.claim import SILENT, claimed, refuse_claimed
from calrec_lite.errors import InputError
from calrec_lite.evaluate.baselines.cache import cached
from calrec_lite.files import file_sha256
from calrec_lite.model.base import base_folder
from calrec_lite.recipe import Base
from calrec_lite.recommend.bulk import Bulk

HOLD = """
import sys, time
from pathlib import Path
from calrec_lite import claim
with getattr(claim, sys.argv[1])(Path(sys.argv[2])):
    print("claimed", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@contextmanager
def holder(how: str, target: Path, seconds: float = 60) -> Iterator[subprocess.Popen[str]]:
    """Another process that claims `target`."""
    command = [sys.executable, "-c", HOLD, how, str(target), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("how", "name"), [("claimed", "run"), ("claimed_file", "o.jsonl")])
def test_a_second_process_learns_who_is_at_work(tmp_path: Path, how: str, name: str) -> None:
    target, by = tmp_path / name, getattr(claim, how)
    says = "process {} is at work on it"
    with holder(how, target) as process, pytest.raises(InputError, match=says.format(process.pid)), by(target):
        pass
    with by(target), by(target):  # what a killed process held is free; who holds it may claim it again
        pass
    assert not list(tmp_path.rglob("*process.json"))
    assert target.exists() == (how == "claimed")  # made by the other process


def test_a_folder_of_which_nothing_came_is_not_left(tmp_path: Path) -> None:
    with claimed(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_of_another_machine_time_decides(tmp_path: Path) -> None:
    lock = tmp_path / "process.json"
    lock.write_text(json.dumps({"host": "faraway", "pid": 1, "started": 0.0}))
    with pytest.raises(InputError, match="process 1 of faraway is at work"):
        refuse_claimed(tmp_path)
    os.utime(lock, (time.time() - SILENT - 1,) * 2)
    with claimed(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_lock_is_free_after_a_moment(tmp_path: Path, content: str) -> None:
    lock = tmp_path / "process.json"
    lock.write_text(content)
    with pytest.raises(InputError, match="another process is at work"):
        refuse_claimed(tmp_path)  # it may be being written
    os.utime(lock, (time.time() - 60,) * 2)
    with claimed(tmp_path):
        pass


def test_a_claim_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT", 0.01)
    with claimed(tmp_path):
        os.utime(tmp_path / "process.json", (1e9, 1e9))
        time.sleep(0.2)
        assert time.time() - (tmp_path / "process.json").stat().st_mtime < 60


def test_of_many_that_come_at_once_one_alone_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    n = 6
    for number in range(5):
        begin, tried, won = context.Barrier(n), context.Barrier(n), context.Value("i", 0)
        folder = tmp_path / str(number)
        folder.mkdir()
        dead = {"host": platform.node(), "pid": os.getpid(), "started": 1.0}  # an id that was given anew
        (folder / "process.json").write_text(json.dumps(dead))

        def attempt(folder: Path = folder, begin=begin, tried=tried, won=won) -> None:
            begin.wait(20)
            try:
                with claimed(folder):
                    with won.get_lock():
                        won.value += 1
                    tried.wait(20)
            except InputError:
                tried.wait(20)

        children = [context.Process(target=attempt) for _ in range(n)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert won.value == 1
        assert not list(folder.iterdir())


def test_a_second_bulk_output_of_the_same_name_is_refused(tmp_path: Path) -> None:
    users, out = tmp_path / "u.jsonl", tmp_path / "o.jsonl"
    users.write_text('{"history": []}\n')
    with holder("claimed_file", out) as process, pytest.raises(InputError, match=f"o.jsonl: process {process.pid} is"):
        Bulk(users, out, {}).run(lambda histories, _: [[] for _ in histories], progress=False)
    assert not (tmp_path / "o.jsonl.state.json").exists()
    assert Bulk(users, out, {}).run(lambda histories, _: [[] for _ in histories], progress=False).users == 1


def test_what_another_makes_for_the_cache_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path))
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        np.save(folder / "scores.npy", np.zeros(3))

    place = cached("test", {"a": 1}, make)
    place.rename(tmp_path / "made")
    with holder("claimed_file", place) as process:
        later = threading.Timer(0.7, lambda: ((tmp_path / "made").rename(place), process.kill(), process.wait()))
        later.start()
        assert cached("test", {"a": 1}, make) == place
        later.join()
    assert f"being made by process {process.pid}; waiting for it" in capsys.readouterr().out
    assert len(made) == 1


def test_a_base_that_another_unpacks_is_waited_for(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path))
    packed = tmp_path / "tiny.gguf"
    packed.write_bytes(b"no GGUF: whoever unpacked it again would fail")
    place = tmp_path / "bases" / f"tiny-{file_sha256(packed)[:16]}"
    shutil.copytree(tiny_folder, tmp_path / "made")
    with holder("claimed_file", place) as process:
        later = threading.Timer(0.7, lambda: ((tmp_path / "made").rename(place), process.kill(), process.wait()))
        later.start()
        assert base_folder(Base(model=str(packed))) == place
        later.join()
    assert f"being made by process {process.pid}; waiting for it" in capsys.readouterr().out
