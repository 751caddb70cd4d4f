"""Files that are whole or absent, where a name is a link."""

import signal
import subprocess
import sys
from pathlib import Path

from calrec_lite.files import atomic_path

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
