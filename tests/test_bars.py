"""Bars over waits: what a person at a terminal sees of them, and that a pipe sees nothing."""

import fcntl
import os
import pty
import queue
import re
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path

import pytest
import torch

from calrec_lite import bars
from calrec_lite.files import file_sha256
from calrec_lite.fitting.weights import fit_weights
from calrec_lite.model.base import load_model
from calrec_lite.recipe import Base


@contextmanager
def a_terminal() -> Iterator[Callable[[], str]]:
    """Standard error is a terminal meanwhile; what was written to it since the last call."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))  # else it has no columns
    seen: queue.Queue[str] = queue.Queue()

    def watch() -> None:  # a terminal holds a few kilobytes that nobody reads, then its writer waits
        with suppress(OSError):
            while data := os.read(ours, 1 << 16):
                seen.put(data.decode(errors="replace"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()

    def read() -> str:
        terminal.write("<end>")
        terminal.flush()
        said = ""
        while not said.endswith("<end>"):
            said += seen.get(timeout=60)
        return said.removesuffix("<end>")

    with open(theirs, "w") as terminal, redirect_stderr(terminal):
        yield read
    watcher.join(timeout=60)
    os.close(ours)


def fit() -> None:
    scores = torch.rand(60, 8, generator=torch.Generator().manual_seed(0))
    fit_weights({"a": scores, "b": -scores}, scores.argmax(1), torch.ones(60, 8, dtype=torch.bool))


def test_a_model_that_is_loaded_its_check_and_a_fit_have_bars(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "DELAY", 0)
    name = re.escape(tiny_folder.name)
    with a_terminal() as seen:
        load_model(tiny_folder, Base(model=str(tiny_folder), dtype="float32"))
        said = seen()
        assert re.search(rf"load {name}: .*0/[1-9]\d* \[.*tensor/s", said), said
        assert re.search(rf"check {name}: .*0/[1-9]\d* \[.*tensor/s", said), said
        assert "Loading weights" not in said
        fit()
        assert re.search(r"weights, at most: .*/125 \[.*step/s", seen())
        file_sha256(tiny_folder / "model.safetensors")
        assert re.search(r"read model.safetensors: .*B/s", seen())


def test_short_waits_and_pipes_show_none(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with a_terminal() as seen:
        monkeypatch.setattr(bars, "DELAY", 60)
        file_sha256(tiny_folder / "model.safetensors")
        assert seen() == ""
    monkeypatch.setattr(bars, "DELAY", 0)
    fit()
    assert capfd.readouterr().err == ""


def test_where_the_first_unit_may_take_long_the_bar_is_there_at_once() -> None:
    with a_terminal() as seen:
        with bars.wait_bar("likelihood", 40, "user", at_once=True):
            assert "likelihood" in seen()
        with bars.wait_bar("lists", 40, "user"):
            assert "lists" not in seen()
