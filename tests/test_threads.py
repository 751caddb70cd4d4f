"""One pool of threads, of the physical cores that the process may use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calrec_lite.threads import cores, described


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight threads on four cores, six of them this process's: 0 to 2 and 4 to 6."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 4, 5, 6}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for n in range(8):
        (tmp_path / f"cpu{n}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{n}" / "topology" / "thread_siblings_list").write_text(f"{n % 4},{n % 4 + 4}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 3),
        ({"cpu.max": "max 100000\n"}, 3),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
    ids=["no group", "no limit", "one and a half", "a half", "version 1, no limit", "version 1"],
)
def test_cores_are_physical_and_within_affinity_and_container(
    machine: Path, tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    group = tmp_path / "group"
    (group / "cpu").mkdir(parents=True)
    for name, text in files.items():
        (group / name).write_text(text)
    assert cores(machine, group) == expected


def test_the_limit_of_a_group_around_the_own_one_counts(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service in a slice, or a job in a user's share: the tightest of all groups on the way up holds."""
    groups, said = tmp_path / "groups", tmp_path / "cgroup"
    (groups / "user.slice" / "job").mkdir(parents=True)
    said.write_text("0::/user.slice/job\n")
    monkeypatch.setattr("calrec_lite.threads.OWN_GROUP", said)
    assert cores(machine, groups) == 3
    (groups / "user.slice" / "cpu.max").write_text("200000 100000\n")
    assert cores(machine, groups) == 2
    (groups / "user.slice" / "job" / "cpu.max").write_text("90000 100000\n")
    assert cores(machine, groups) == 1


def test_a_machine_that_does_not_tell_its_cores_has_one_a_thread_at_most(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 4)
    assert cores(tmp_path / "nowhere", tmp_path) == 4
    monkeypatch.setattr("psutil.cpu_count", lambda logical: None)
    assert cores(tmp_path / "nowhere", tmp_path) == 6


def test_what_is_said_where_the_process_may_not_use_the_whole_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr("calrec_lite.threads.cores", lambda: 2)
    assert described(8) == "8 threads"
    assert described(2) == "2 threads of 8 cores, all that this process may use"
    assert described(1) == "1 thread of 8 cores, as was asked for"


SHOW = """
import sys
from calrec_lite.cli import main
sys.argv = ["calrec-lite", "--version"]
try:
    main()
except SystemExit:
    pass
assert not {"torch", "numpy"} & set(sys.modules), "imported before their threads were told"
import json, numpy, torch, threadpoolctl
numpy.ones((2, 2)) @ numpy.ones((2, 2))
pools = [p["num_threads"] for p in threadpoolctl.threadpool_info() if p["internal_api"] == "openblas"]
print(json.dumps([torch.get_num_threads(), pools]))
"""


@pytest.mark.parametrize("asked", [None, "1"])
def test_the_command_line_has_one_pool_and_obeys_who_sets_another(asked: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": asked} if asked else {}
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    threads, pools = json.loads(done.stdout.splitlines()[-1])
    assert threads == (int(asked) if asked else cores())
    assert pools
    assert set(pools) == {1}
