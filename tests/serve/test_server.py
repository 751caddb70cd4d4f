"""The command as a user starts it: address, token, signals, and that nothing asked before the end is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from click.testing import CliRunner

from calrec_lite.cli import group
from calrec_lite.errors import InputError
from calrec_lite.run import Run
from calrec_lite.serve.server import address_of, bound, is_loopback, require_safe

TOKEN = "0123456789abcdef"


def asked(address: str, path: str, body: object = None, token: str = TOKEN) -> tuple[int, dict]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    try:
        with urlopen(Request(address + path, None if body is None else json.dumps(body).encode(), headers)) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


class Served:
    """A service in a process of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "calrec_lite", "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        assert self.process.stdout
        self.said = [self.process.stdout.readline(), self.process.stdout.readline()]
        address = re.search(r"http://[^ ]+", self.said[1])
        assert address, (self.said, self.process.communicate())
        self.address = address[0].replace("0.0.0.0", "127.0.0.1")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, error = self.process.communicate(timeout=60)
        return self.process.returncode, out, error


@pytest.fixture(scope="module")
def served(fused_run: Run, fused_export: Path) -> Iterator[Served]:
    """For others, with a token: the most that can be asked of it. One process: it takes seconds to start."""
    arguments = [str(fused_export), "--run", str(fused_run.folder), "--strategy", "fused", "--strategy", "fast"]
    opened = Served(*arguments, "--host", "0.0.0.0", CALREC_LITE_TOKEN=TOKEN)
    yield opened
    if opened.process.poll() is None:
        opened.end()


def test_it_says_what_and_where(served: Served) -> None:
    assert re.fullmatch(r"30 items, lists by fused, fast, \d+ known users\n", served.said[0])
    assert asked(served.address, "health")[1]["status"] == "ok"
    status, made = asked(served.address, "recommend", {"history": [{"item": "3"}], "k": 3})
    assert (status, made["strategy"], len(made["items"])) == (200, "fused", 3)
    assert asked(served.address, "about", token="another of that length")[0] == 401


def test_memory_stays_and_nothing_is_lost(served: Served) -> None:
    """300 requests by 8 clients, wrong ones among them: each gets its answer, and memory does not grow with them."""
    bodies = [{"history": [{"item": str(n % 30)}], "strategy": "fast", "k": 1 + n % 9} for n in range(290)]
    bodies += [{"history": [], "k": 0}] * 10

    def many() -> list[int]:
        with ThreadPoolExecutor(8) as threads:
            return [status for status, _ in threads.map(lambda body: asked(served.address, "recommend", body), bodies)]

    assert [many().count(status) for status in (200, 422)] == [290, 10]
    before = _resident(served.process.pid)
    assert [many().count(status) for status in (200, 422)] == [290, 10]
    assert _resident(served.process.pid) - before < 8e6


def test_a_signal_ends_it_after_what_was_asked(served: Served) -> None:
    with ThreadPoolExecutor(24) as threads:
        body = {"history": [{"item": str(i)} for i in range(9)], "k": 20}
        answers = [threads.submit(asked, served.address, "recommend", body) for _ in range(24)]
        while asked(served.address, "health")[1]["waiting"] == 0 and not all(a.done() for a in answers):
            time.sleep(0.002)
        code, out, error = served.end()
        kept = [answer.exception() is None and answer.result()[0] == 200 for answer in answers]
    assert code == 0
    assert re.search(r"ended; [\d,]+ lists made", out)
    assert "Traceback" not in error
    assert TOKEN not in out + error + "".join(served.said)
    # One whose connection was not accepted yet when the signal came never got in; all others got their lists.
    assert sum(kept) >= 16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "set a token"),
        (["--host", "::"], "set a token"),
        (["--host", "example.org"], "set a token"),
        (["--token", "short"], "16 printable ASCII"),
        (["--host", "no such host", "--token", "0123456789abcdef"], "name another one"),
        (["--strategy", "best"], "write one of fused"),
        (["--run", "nowhere"], "no run here"),
    ],
)
def test_what_cannot_be_served(fused_export: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(group, ["serve", str(fused_export), "--port", "0", *arguments])
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="in use"):
        bound("127.0.0.1", taken.getsockname()[1])


def test_addresses() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.3.2.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "")))
    require_safe("127.0.0.1", None)
    with bound("localhost", 0) as opened:
        assert address_of(opened).startswith("http://")


def _resident(pid: int) -> int:
    import psutil

    return int(psutil.Process(pid).memory_info().rss)
