"""A file read from the middle is the rest of the file, and how many lines it has is known without parsing them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calrec_lite.recommend import histories as module
from calrec_lite.recommend.histories import Histories, User
from calrec_lite.recommend.shards import Shard

LINES = 37


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of lines, pieces that are searched, rows held and the longest line as small as the files here."""
    for name, value in {"EVERY": 4, "PIECE": 11, "ROWS": 5, "LONGEST": 64}.items():
        monkeypatch.setattr(module, name, value)


def text(end: str) -> bytes:
    """Lines of many lengths: empty ones, bad ones, one longer than the longest."""
    lines = [json.dumps({"user": f"u{n}", "history": ["a"] * (n % 5)}) for n in range(LINES)]
    lines[6], lines[11], lines[20] = "", "no JSON", json.dumps({"history": ["long"] * 40})
    return ("\n".join(lines) + end).encode()


def written(folder: Path, suffix: str, end: str = "\n") -> Path:
    file = folder / f"users{suffix}"
    if suffix == ".parquet":
        table = pa.table({"user": [f"u{n}" for n in range(LINES)], "history": [["a"] * (n % 5) for n in range(LINES)]})
        pq.write_table(table, file, row_group_size=8)
    else:
        file.write_bytes(gzip.compress(text(end)) if suffix.endswith("gz") else text(end))
    return file


@pytest.mark.parametrize(("suffix", "end"), [(".jsonl", "\n"), (".jsonl", ""), (".jsonl.gz", ""), (".parquet", "")])
def test_from_any_line_on_it_is_the_rest(tmp_path: Path, suffix: str, end: str) -> None:
    file = written(tmp_path, suffix, end)
    whole = list(Histories(file).read())
    assert [number for number, _ in whole] == [*range(1, LINES + 1)]
    assert sum(isinstance(entry, User) for _, entry in whole) == LINES - 3 * (suffix != ".parquet")
    for skip in range(LINES + 3):
        source = Histories(file)
        assert list(source.read(skip)) == whole[skip:]
        assert source.share == 1 or skip >= LINES


@pytest.mark.parametrize(("suffix", "end"), [(".jsonl", "\n"), (".jsonl", ""), (".jsonl.gz", "\n"), (".parquet", "")])
@pytest.mark.parametrize("parts", [1, 3, 40])
def test_parts_are_all_lines_once(tmp_path: Path, suffix: str, end: str, parts: int) -> None:
    source = Histories(written(tmp_path, suffix, end))
    bounds = [source.lines_of(Shard(index, parts), 2) for index in range(parts)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == LINES
    assert [first for first, _ in bounds[1:]] == [last for _, last in bounds[:-1]]


def test_a_file_that_grew_is_counted_anew(tmp_path: Path) -> None:
    file = written(tmp_path, ".jsonl")
    assert Histories(file).lines_of(Shard(0, 1), 1) == (0, LINES)
    with file.open("ab") as out:
        out.write(text("\n"))
    assert Histories(file).lines_of(Shard(0, 1), 1) == (0, 2 * LINES)


def test_a_part_of_a_file_does_not_read_what_is_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many parts of a file of millions of lines would otherwise go through all of them."""
    file = written(tmp_path, ".jsonl")
    Histories(file).lines_of(Shard(0, 2), 1)
    wanted = [entry for _, entry in Histories(file).read(34)]
    begins = file.read_bytes().splitlines(keepends=True)
    kept = sum(map(len, begins[:32]))
    stat = file.stat()
    monkeypatch.setattr(module, "size_and_time", lambda path: (stat.st_size, stat.st_mtime_ns))
    file.write_bytes(b"#" * kept + b"".join(begins[32:]))
    assert [entry for _, entry in Histories(file).read(34)] == wanted
