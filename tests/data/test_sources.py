"""Where files come from. Wheels are made here and pip finds them in a folder, so no network is needed."""

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from calrec_lite.errors import InputError
from calrec_lite.files import file_sha256
from calrec_lite.sources import fetch, run_with_bar

MEMBERS = {"toys/data/events.csv": b"user,item\nu,a\n", "toys/data/items.csv": b"item,title\na,Apple\n"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real wheel, in the only place where pip may look."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "toys-1.0-py3-none-any.whl"
    about = {
        "toys-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toys\nVersion: 1.0\nRequires-Python: <3\n",
        "toys-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files = MEMBERS | about
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (files | {"toys-1.0.dist-info/RECORD": record.encode()}).items():
            archive.writestr(name, data)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return path


def failing(location: str) -> str:
    with pytest.raises(InputError) as error:
        fetch(location)
    assert "\n" not in str(error.value)
    return str(error.value)


def left(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def test_a_path_starts_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "x.csv").write_text("x")
    monkeypatch.chdir(tmp_path / "here")
    assert fetch("x.csv").read_text() == "x"
    monkeypatch.chdir(tmp_path)
    assert fetch(str(tmp_path / "here" / "x.csv")).read_text() == "x"
    assert failing("x.csv") == "x.csv: no such file"
    assert failing("here") == "here: is a folder, not a file"


def test_malformed_locations() -> None:
    assert failing("https://example.org/x.csv").startswith("https://example.org/x.csv: only paths, hf:// and pypi://")
    assert failing("pypi://toys/data/x").startswith("pypi://toys/data/x: write it as pypi://PACKAGE==VERSION/FILE")
    assert failing("pypi://toys==1.0/x#sha256=12").startswith("pypi://toys==1.0/x#sha256=12: write it as")
    assert failing("hf://datasets/owner").startswith("hf://datasets/owner: write it as hf://datasets/OWNER/NAME/FILE")


def test_a_file_out_of_a_wheel_and_again_without_a_network(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = f"pypi://toys==1.0/toys/data/events.csv#sha256={file_sha256(wheel)}"
    path = fetch(location)
    assert path.read_bytes() == MEMBERS["toys/data/events.csv"]
    assert path.name == "events.csv"
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    stamp = path.stat().st_mtime_ns
    assert fetch(location) == path
    assert path.stat().st_mtime_ns == stamp
    other = fetch("pypi://toys==1.0/toys/data/items.csv")  # another member of the same wheel
    assert other.read_bytes() == MEMBERS["toys/data/items.csv"]
    folder = "pypi/toys-1.0"
    members = [f"{folder}/files/{name}" for name in MEMBERS]
    assert left(cache) == [*members, f"{folder}/{wheel.name}"]


def test_a_half_written_member_is_written_again(cache: Path, wheel: Path) -> None:
    path = fetch("pypi://toys==1.0/toys/data/events.csv")
    path.write_bytes(b"user")
    assert fetch("pypi://toys==1.0/toys/data/events.csv").read_bytes() == MEMBERS["toys/data/events.csv"]


def test_a_wheel_with_another_hash_is_not_kept(cache: Path, wheel: Path) -> None:
    location = f"pypi://toys==1.0/toys/data/events.csv#sha256={'0' * 64}"
    message = failing(location)
    assert message.startswith(
        f"toys-1.0-py3-none-any.whl: its SHA-256 is {file_sha256(wheel)}, but {'0' * 64} was asked"
    )
    assert "nothing was kept" in message
    assert left(cache) == []
    fetch("pypi://toys==1.0/toys/data/events.csv")
    assert "delete" in failing(location)  # one that is already there is checked as well


def test_a_wheel_that_pip_cannot_get(cache: Path, wheel: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = failing("pypi://toys==9.9/x")
    assert message.startswith(
        "pip could not download toys==9.9 (No matching distribution found for toys==9.9): check the network"
    )
    assert str(cache / "pypi" / "toys-9.9") in message
    assert left(cache) == []
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "downloading toys==9.9 from PyPI\n"


def test_a_missing_member_lists_near_names(cache: Path, wheel: Path) -> None:
    message = failing("pypi://toys==1.0/toys/data/event.csv")
    assert message.startswith("toys-1.0-py3-none-any.whl holds no file `toys/data/event.csv`; near it are: ")
    assert "toys/data/events.csv" in message


def test_a_damaged_or_wicked_wheel_in_the_cache(cache: Path) -> None:
    folder = cache / "pypi" / "toys-1.0"
    folder.mkdir(parents=True)
    wheel = folder / "toys-1.0-py3-none-any.whl"
    wheel.write_bytes(b"no zip")
    assert failing("pypi://toys==1.0/x") == f"{wheel}: not a sound wheel; delete it to download it again"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../outside", b"x")
    assert "would lie outside of the cache" in failing("pypi://toys==1.0/../../outside")
    assert left(cache) == ["pypi/toys-1.0/toys-1.0-py3-none-any.whl"]


def test_the_hub_offline_with_and_without_the_file_in_its_cache(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads its environment once."""
    commit = "a" * 40
    repo = tmp_path / "hub" / "datasets--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit / "sub").mkdir(parents=True)
    (repo / "snapshots" / commit / "sub" / "x.csv").write_text("from the Hub")
    code = """
import sys
from calrec_lite.sources import fetch
from calrec_lite.errors import InputError
for location in sys.argv[1:]:
    try:
        print(fetch(location).read_text())
    except InputError as error:
        print(error)
"""
    here = ["hf://datasets/owner/name/sub/x.csv", f"hf://datasets/owner/name@{commit}/sub/x.csv"]
    absent = ["hf://datasets/owner/name/y.csv", "hf://owner/name/sub/x.csv"]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *here, *absent], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["from the Hub"] * 2
    for line, location in zip(lines[2:], absent, strict=True):
        assert line.startswith(f"{location}: cannot be had from the Hub (")


def test_pip_is_behind_a_bar_of_ours(capfd: pytest.CaptureFixture[str]) -> None:
    lines = ["Collecting toys", *(f"Progress {n} of 4000000" for n in (1000, 2000000, 4000000)), "Saved toys.whl"]
    said = "WARNING: old\nERROR: no room\n"
    slowly = f"[(print(line, flush=True), time.sleep(0.15)) for line in {lines!r}]"  # a bar is drawn every .1 s at most
    code = f"import sys, time; {slowly}; sys.stderr.write({said!r}); sys.exit(3)"
    ended = run_with_bar([sys.executable, "-c", code, "raw"], "download toys")
    assert ended == (3, "no room")
    shown = capfd.readouterr()
    assert "1.00k/4.00M" in shown.err
    assert "Collecting" not in shown.out + shown.err
    assert run_with_bar([sys.executable, "-c", "pass"], "download toys") == (0, "it gave no reason")
    assert capfd.readouterr().err == ""
