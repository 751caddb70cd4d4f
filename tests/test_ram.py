"""The RAM that is left: of the machine, and of the groups that this process is in."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from calrec_lite.ram import free_ram

SECOND = {"memory.max": "1000000\n", "memory.current": "700000\n", "memory.stat": "anon 5\ninactive_file 200000\n"}


def write_group(folder: Path, values: dict[str, str]) -> Path:
    for name, text in values.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_free_ram_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both versions of control groups; files in its page cache can be given back."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    assert free_ram(tmp_path / "none") == 10**9
    assert free_ram(write_group(tmp_path / "v2", SECOND)) == 500_000
    assert free_ram(write_group(tmp_path / "full", {**SECOND, "memory.current": "2000000\n"})) == 0
    assert free_ram(write_group(tmp_path / "max", {**SECOND, "memory.max": "max\n"})) == 10**9
    first = {
        "memory/memory.limit_in_bytes": "1000000\n",
        "memory/memory.usage_in_bytes": "700000\n",
        "memory/memory.stat": "total_inactive_file 100000\n",
    }
    assert free_ram(write_group(tmp_path / "v1", first)) == 400_000


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service, or a job in a user's share, is not the root of the groups."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    (tmp_path / "said").write_text("0::/slice/job\n")
    monkeypatch.setattr("calrec_lite.threads.OWN_GROUP", tmp_path / "said")
    groups = tmp_path / "groups"
    write_group(groups / "slice" / "job", {**SECOND, "memory.max": "max\n"})
    write_group(groups / "slice", SECOND)
    assert free_ram(groups) == 500_000
    write_group(groups / "slice" / "job", {**SECOND, "memory.max": "900000\n"})
    assert free_ram(groups) == 400_000
