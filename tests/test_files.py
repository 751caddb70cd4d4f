"""Files that are whole or absent, where a name is a link."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from calrec_lite.files import atomic_path, work_folder

STOPPED = """
import sys, time
from pathlib import Path
from calrec_lite import cli
from calrec_lite.files import atomic_path

@cli.group.command()
def slow():
    with atomic_path(Path("big")) as temporary:
        temporary.mkdir()
        print("begun", flush=True)
        time.sleep(60)

sys.argv = ["calrec-lite", "slow"]
cli.main()
"""


def test_a_command_that_is_ended_leaves_nothing_half_written(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "interrupted" in said
    assert not list(tmp_path.iterdir())


def test_a_link_in_a_folders_place_is_replaced_and_what_it_led_to_stays(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "kept").write_text("kept")
    (tmp_path / "export").symlink_to(tmp_path / "big")
    for text in ("first", "second"):
        with atomic_path(tmp_path / "export") as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(text)
    assert not (tmp_path / "export").is_symlink()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["big", "export"]
    assert (tmp_path / "export" / "file").read_text() == "second"
    assert (tmp_path / "big" / "kept").read_text() == "kept"


KILLED = """
import os, signal, sys
from pathlib import Path
from calrec_lite.data.prepare import database
with database() as (connection, _):
    connection.execute("CREATE TABLE t AS SELECT range AS i FROM range(100000)")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folders_of_killed_processes_are_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "work.duckdb").is_file()
    elsewhere = tmp_path / ".calrec-lite.another_machine-7.abc.work"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with work_folder() as one, work_folder() as other:
        assert sorted(tmp_path.iterdir()) == sorted([one, other, elsewhere])  # a living process keeps its own
    os.utime(elsewhere, (1e9, 1e9))
    with work_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
