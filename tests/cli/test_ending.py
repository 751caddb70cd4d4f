"""How commands end where disk, names, standard output or a signal stop them; what they print of other people's text."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from calrec_lite.cli.ending import environment_failed, stopped_by_signals
from calrec_lite.cli.terminal import Screen
from tests.cli.test_cli import RECIPE, run

COMMAND = [sys.executable, "-m", "calrec_lite"]
EVIL = "\x1b]0;mine\x07 \u202ebad\x00\x9b\x1b[31m"
SAID = "\\x1b]0;mine\\x07 \\u202ebad\\x00\\x9b\\x1b[31m"
SIGNALLED = """
import sys, time
from pathlib import Path
import calrec_lite.errors
from calrec_lite import cli
from calrec_lite.files import atomic_path

@cli.group.command()
def slow():
    with atomic_path(Path("big")) as temporary:
        temporary.mkdir()
        print("begun", flush=True)
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise {error}

sys.argv[1:] = ["slow"]
cli.main()
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    rows = [f"u{user},i{(user + t) % 9},{t},cup {(user + t) % 9}\n" for user in range(9) for t in range(5)]
    (tmp_path / "events.csv").write_text("user,item,time,title\n" + "".join(rows))
    return tmp_path


LONG = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prepare", "recipe.yaml", "--runs", LONG], "File name too long: use a shorter one"),
        (["prepare", "recipe.yaml", "--runs", "recipe.yaml/runs"], "name a place that is not below a file"),
        (["train", f"{LONG}.yaml"], LONG[:100]),
        (["evaluate", LONG], LONG),
        (["recommend", LONG, "a title"], LONG),
        (["recommend", "x", "a title", "--allow", LONG], LONG),
        (["merge", LONG, "b", "c"], LONG),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_name_that_cannot_be_is_one_line_and_exit_2(arguments: list[str], says: str, monkeypatch, capsys) -> None:
    before = sorted(Path().iterdir())
    assert run(arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["recommend", "x", "a title", "--block", "9" * 21],
        ["recommend", "x", "a title", "-k", "9" * 5000],
        ["evaluate", "x", "--users", "9" * 21],
        ["y" * 5000],
        ["train", "recipe.yaml", "--set", "loss." + "z" * 5000],
        ["prepare", "recipe.yaml", "--set", f"domains.shop.columns.time={'z' * 5000}"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_what_is_typed_may_be_of_any_length(arguments: list[str], monkeypatch, capsys) -> None:
    assert run(arguments, monkeypatch) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) <= 4
    assert max(map(len, said)) < 2000


def test_half_of_a_surrogate_pair_is_no_text(monkeypatch, capsys) -> None:
    assert run(["recommend", "x", "a title", "--allow", "\ud800"], monkeypatch) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_full_disk_is_said_and_leaves_nothing_behind(elsewhere: Path) -> None:
    (elsewhere / "tmp").mkdir()

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    # Without bytecode: Python < 3.12.8 would keep compiled files of 1,000 bytes, and every later command break at them.
    environment = {**os.environ, "TMPDIR": str(elsewhere / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*COMMAND, "prepare", "recipe.yaml"]
    full = subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=little_room)
    assert full.returncode == 1
    assert "File too large: raise the limit, and the same command goes on where it stopped" in full.stderr
    assert len(full.stderr.splitlines()) == 1
    assert not [*elsewhere.rglob("*.tmp"), *(elsewhere / "tmp").iterdir()]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_compiled_file_cut_short_is_no_interruption(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    command = [*COMMAND, "compare", "a", "b"]
    assert subprocess.run(command, capture_output=True, env=environment, check=False).returncode == 2
    (compiled,) = tmp_path.rglob("calrec_lite/files.*.pyc")
    compiled.write_bytes(compiled.read_bytes()[:1000])
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith(
        "a compiled file is cut short: remove the __pycache__ folders there, and the same command goes on where it "
        "stopped\n"
    )
    assert len(ended.stderr.split("\n")) == 3  # click begins with an empty line


def test_what_writers_say_of_a_failed_write() -> None:
    code, *_ = {environment_failed(e)[1] for e in FAILED}  # type: ignore[index]
    assert code == 1
    assert environment_failed(MemoryError("Unable to allocate 9 TiB"))
    assert environment_failed(ValueError("wrong")) is None
    lines = "no\nsuch\nbase " * 200
    assert "\n" not in environment_failed(OSError(lines))[0]  # type: ignore[index]


FAILED = [  # as torch, safetensors and tokenizers word it
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),
    OSError("10000 requested and 992 written"),
    FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
]


@pytest.mark.parametrize(
    ("out", "code", "says"),
    [("read no more", 0, ""), ("/dev/full", 1, "No space left on device"), ("closed", 1, "it is closed")],
)
def test_standard_output_that_takes_nothing(out: str, code: int, says: str) -> None:
    command = [*COMMAND, "train", "--help"]
    if out == "read no more":
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        error = process.stderr.read()
        assert process.wait() == code
    else:
        redirected = ">&-" if out == "closed" else f">{out}"
        shell = ["sh", "-c", f'exec "$@" {redirected}', "sh", *command]
        ended = subprocess.run(shell, capture_output=True, text=True, check=False)
        error = ended.stderr
        assert ended.returncode == code
    assert error == (f"calrec-lite: standard output: {says}; what stood there is lost\n" if says else "")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_every_encoding_prints_what_it_can(elsewhere: Path, encoding: str) -> None:
    command = [*COMMAND, "compare", "caf\u00e9 \u4e2d\u6587 \udcff\x1b[2J", "b"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert ended.returncode == 2
    wanted = {"cp1252": "caf\u00e9 \\u4e2d\\u6587", "ascii": "caf\\xe9 \\u4e2d\\u6587"}
    assert f"{wanted.get(encoding, command[-2][:7])} \\udcff\\x1b[2J: no run here" in ended.stderr.decode(encoding)


def test_foreign_text_reaches_no_terminal_raw(fused_export: Path, elsewhere: Path, monkeypatch, capsys) -> None:
    model = shutil.copytree(fused_export, elsewhere / "model")
    lines = [json.loads(line) for line in (model / "catalogue.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["fields"]["Title"] += EVIL
    (model / "catalogue.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    fast = ["recommend", str(model), "--strategy", "fast"]
    assert run([*fast, lines[0]["fields"]["Title"], "gone\x1b[2J"], monkeypatch) == 0
    said = capsys.readouterr()
    assert said.out.count(SAID) == 10
    assert "gone\\x1b[2J" in said.err
    wrong = {"id": "new", "fields": {EVIL: "x"}}
    (model / "catalogue.jsonl").write_text(json.dumps(wrong) + "\n", encoding="utf-8")
    assert run([*fast, "x"], monkeypatch) == 2
    assert SAID in capsys.readouterr().err
    assert run(["prepare", "recipe.yaml", "--set", f"{EVIL[1:5]}\x9b=1"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "\\x9b" in error
    assert "\x9b" not in error


def test_progress_bars_move_their_cursor(capsys) -> None:
    screen = Screen(sys.stdout, ("\r", "\x1b[A"))
    screen.write("\r 5%\x1b[A\x1b[2J\n\t")
    assert capsys.readouterr().out == "\r 5%\x1b[A\\x1b[2J\n\t"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
@pytest.mark.parametrize(
    "error", ["KeyboardInterrupt", "ValueError('a library made this of it')", "calrec_lite.errors.InputError('we did')"]
)
def test_a_signal_ends_a_command_tidily(tmp_path: Path, number: int, error: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SIGNALLED.format(error=error)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # under nohup, or in the background, it is ignored
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.strip() == "calrec-lite: interrupted; the same command goes on where it stopped"
    assert not list(tmp_path.rglob(".big*"))


def test_what_nohup_ignores_stays_ignored_and_tidying_up_is_not_disturbed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # a second one
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
