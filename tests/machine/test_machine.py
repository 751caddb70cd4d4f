"""What doctor and bases say, and which base is begun with."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from calrec_lite.machine import four_bits
from calrec_lite.machine.checks import checks
from calrec_lite.machine.fitting import Place, first_base, fits, needed, place_here
from calrec_lite.machine.hub import Hub
from calrec_lite.machine.listing import base_table
from calrec_lite.recipe.bases import BaseFile, base_files
from tests.conftest import run

BASES: dict[str, BaseFile] = {base.name: base for base in base_files()}


def gpu(gigabytes: float) -> Place:
    return Place("a card", True, int(gigabytes * 1e9), int(gigabytes * 1e9))


@pytest.mark.parametrize(
    ("place", "hub", "name"),
    [
        (gpu(80), True, "qwen3-8b"),
        (gpu(23), True, "qwen3-4b"),
        (gpu(11.7), True, "qwen3-1.7b"),
        (gpu(7.5), True, "qwen3-0.6b"),
        (gpu(1), True, "smollm2-135m"),
        (gpu(80), False, "smollm2-135m-instruct-pypi"),
        (Place("CPU", False, 10**11, 10**11), True, "smollm2-135m"),
    ],
)
def test_the_first_base_fits(place: Place, hub: bool, name: str) -> None:
    base = first_base(place, hub)
    assert base.name == name
    assert base.gated == "no"


def test_what_fits() -> None:
    assert [fits(BASES[name], gpu(8)) for name in ("qwen3-0.6b", "qwen3-4b", "llama-3.1-8b")] == [
        "yes",
        "checkpointing",
        "yes",  # its file sets checkpointing by itself
    ]
    assert fits(BASES["llama-3.1-8b"], gpu(6)) == "no"
    for base in BASES.values():
        assert needed(base, False)[0] > 4 * base.parameters
        assert needed(base, True)[1] <= needed(base, True)[0]


def test_the_table_has_every_base_and_fits_a_terminal() -> None:
    for place in (gpu(8), Place("CPU", False, 10**10, 10**10)):
        table = base_table(place).splitlines()
        assert [line.split()[0] for line in table[1 : 1 + len(BASES)]] == list(BASES)
        assert max(map(len, table)) <= 100
    assert "slow" in "\n".join(table[: 1 + len(BASES)])


def test_four_bits_on_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert four_bits.four_bits_error(torch.device("cpu")) == ""
    right = four_bits.dequantize_4bit
    monkeypatch.setattr(four_bits, "dequantize_4bit", lambda *given: right(*given).roll(1, 0))
    assert "do not come back" in four_bits.four_bits_error(torch.device("cpu"))
    monkeypatch.setattr(four_bits, "dequantize_4bit", lambda *given: 1.1 * right(*given))
    assert "not that of its weights" in four_bits.four_bits_error(torch.device("cpu"))


def test_each_check_says_something_and_what_is_wrong_has_a_remedy() -> None:
    found = list(checks(place_here(), Hub(why="nobody asked")))
    assert all(check.said for check in found)
    assert all(check.remedy for check in found if check.state != "ok")
    states = {check.name: check.state for check in found}
    assert states["Hub"] == "note"
    assert {states[name] for name in ("packages", "torch", "4 bits, CPU", "number type")} == {"ok"}


def test_what_is_needed_and_fails_is_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("a folder that has no room, /proc, is Linux's")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CALREC_LITE_CACHE", "/proc/no-room")
    assert run(["doctor"], monkeypatch) == 1
    said = capsys.readouterr()
    assert "fails  disk" in said.out
    assert "-> " in said.out
    assert re.search("doctor: needed, and fails: .*disk", said.err)  # and memory, on a machine that is busy


class Answers(http.server.BaseHTTPRequestHandler):
    """A Hub that knows one model and one token; models of the server `silent` take longer than anybody waits."""

    def do_GET(self) -> None:
        status, answer = 200, {"id": "HuggingFaceTB/SmolLM2-135M", "name": "ada"}
        if self.path.startswith("/api/whoami") and self.headers["Authorization"] != "Bearer hf_right":
            status = 401
        if getattr(self.server, "silent", False):
            time.sleep(3)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def asked(server: http.server.ThreadingHTTPServer, **environment: str) -> str:
    """What is known of that Hub; a process of its own, as the library reads the environment once."""
    code = "from calrec_lite.machine.hub import ask_hub; print(ask_hub(1.5))"
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NO_PROXY": "*", **settings, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_hub_is_asked(hub: http.server.ThreadingHTTPServer) -> None:
    assert "reached=True, why='', user='ada'" in asked(hub, HF_TOKEN="hf_right")
    assert "refused='Invalid user token" in asked(hub, HF_TOKEN="hf_wrong")
    assert "HF_HUB_OFFLINE is set" in asked(hub, HF_HUB_OFFLINE="1")


def test_a_hub_that_does_not_answer_is_not_waited_for(hub: http.server.ThreadingHTTPServer) -> None:
    hub.silent = True  # type: ignore[attr-defined]
    assert "reached=False" in asked(hub)
