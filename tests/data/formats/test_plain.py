"""Packed files, other encodings, spreadsheets and lines in Python's spelling."""

import codecs
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import failing, histories, json_lines, made, write
from publishers import python_lines

EVENTS = "user,item,time,title\nu,a,1,Tea\nu,b,2,Käse €\n"
HISTORY = {"u": ["Tea", "Käse €"]}


def zstd(path: Path, data: bytes) -> Path:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(data)
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_zstd_and_zip_of_any_kind_of_table(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"user": "u", "item": "a", "time": 1, "title": "Tea"},
        {"user": "u", "item": "b", "time": 2, "title": "Käse €"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    contents = {
        "e.csv": EVENTS.encode(),
        "e.jsonl": json_lines(rows).encode(),
        "e.parquet": (tmp_path / "t.parquet").read_bytes(),
    }
    for name, data in contents.items():
        assert histories(made(zstd(tmp_path / f"{name}.zst", data))) == HISTORY
        assert histories(made(zipped(tmp_path / f"{name}.zip", {f"x/{name}": data}))) == HISTORY
    items = zipped(tmp_path / "i.zip", {"all.csv": b"item,title\na,Apple\nb,Bread\n"})
    assert histories(made(tmp_path / "e.csv.zip", items)) == {"u": ["Apple", "Bread"]}
    inner = zipped(tmp_path / "inner.zip", {"e.csv": EVENTS.encode()}).read_bytes()
    outer = zipped(tmp_path / "outer.zip", {"e.csv.zip": inner, "readme.txt": b"x"})
    assert histories(made(outer)) == HISTORY


def test_damaged_zstd_and_zip(tmp_path: Path) -> None:
    whole = zstd(tmp_path / "e.csv.zst", EVENTS.encode() * 1000).read_bytes()
    (tmp_path / "e.csv.zst").write_bytes(whole[:-9])
    assert failing(tmp_path / "e.csv.zst") == (
        f"{tmp_path}/e.csv.zst: not a sound zstd file (Truncated compressed stream); download it again"
    )
    assert failing(write(tmp_path / "n.csv.zst", "user,item")).startswith(
        f"{tmp_path}/n.csv.zst: not a sound zstd file"
    )
    assert failing(write(tmp_path / "n.zip", "user,item")).startswith(f"{tmp_path}/n.zip: not a sound zip file")
    path = zipped(tmp_path / "e.zip", {"e.csv": bytes(range(256)) * 99})
    data = bytearray(path.read_bytes())
    data[60:70] = b"\0" * 10
    path.write_bytes(data)
    assert failing(path).startswith(f"{tmp_path}/e.zip: not a sound zip file")


def test_zips_that_leave_open_what_is_meant(tmp_path: Path) -> None:
    path = zipped(tmp_path / "e.zip", {"a.csv": b"x", "b.csv": b"x"})
    assert failing(path) == (
        f"{path}: holds several tables: a.csv, b.csv; unpack it and name the file, or the `reader` that knows its files"
    )
    assert "holds no table; unpack it" in failing(zipped(tmp_path / "n.zip", {"a.txt": b"x", ".b.csv": b"x"}))


def test_a_zip_larger_than_the_disk_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    from calrec_lite.errors import RunError

    path = zipped(tmp_path / "e.zip", {"e.csv": EVENTS.encode() * 100_000})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(2 << 20, 1 << 20, 1 << 20))
    with pytest.raises(RunError, match=r": 4 MB unpacked, but .* has 1 MB left; free some, or name another"):
        made(path)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (EVENTS.encode("utf-16"), {}),
        (codecs.BOM_UTF16_BE + EVENTS.encode("utf-16-be"), {}),
        (EVENTS.encode("utf-16-le"), {"encoding": "utf-16"}),
        (EVENTS.encode("utf-16-be"), {"encoding": "utf-16"}),
        (EVENTS.encode("windows-1252"), {"encoding": "windows-1252"}),
        (codecs.BOM_UTF8 + EVENTS.encode(), {"encoding": "latin-1"}),  # the mark is the file's own word
        (EVENTS.encode(), {"encoding": "utf-8"}),
    ],
)
@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz"])
def test_encodings(tmp_path: Path, name: str, data: bytes, options: dict[str, str]) -> None:
    assert histories(made(write(tmp_path / name, data), **options)) == HISTORY


def test_json_in_utf_16_and_csv_in_latin_1(tmp_path: Path) -> None:
    events = write(tmp_path / "e.csv", "user,item\nu,ä\n".encode("latin-1"))
    items = write(tmp_path / "i.json", '{"item": "ä", "title": "Tea"}\n'.encode("utf-16"))
    assert histories(made(events, items, encoding="latin-1")) == {"u": ["Tea"]}


def test_files_in_another_encoding_than_the_recipe_says(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", b"user,item\nu,\x81\n")
    assert failing(path, encoding="windows-1252").startswith(f"{path}: is not in windows-1252 (")
    path = write(tmp_path / "o.csv", "user,item\nu,a\n".encode("utf-16")[:-1])
    assert failing(path).startswith(f"{path}: is not in utf-16 (")


@pytest.mark.parametrize("name", ["e.xlsx", "e.XLS", "e.ods"])
def test_spreadsheets_are_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / name, {"xl/workbook.xml": b"<x/>"})
    assert failing(path) == (
        f"{path}: is a spreadsheet, not a table of text; open it and save the sheet as CSV (UTF-8), with one header "
        "line, and name that file"
    )


def test_python_lines(tmp_path: Path) -> None:
    """As both Pythons print them, and JSON among them."""
    rows: list[dict[str, Any]] = [
        {
            "user": "u",
            "item": "a",
            "time": 1,
            "title": 'Kid\'s \\d "Tea"',
            "old": True,
            "tags": [["x", None], {"k": 1.5}],
        },
        {"user": "u", "item": "b", "time": 2, "title": "Käse ☆ \U0001f600"},
    ]
    for marks in (False, True):
        text = python_lines(rows, unicode_marks=marks) + "\n" + json_lines([{**rows[1], "item": "c", "old": False}])
        domain = made(write(tmp_path / "e.json.gz", text))
        assert histories(domain) == {"u": ['Kid\'s \\d "Tea"', "Käse ☆ 😀", "Käse ☆ 😀"]}


GOOD = "{'user': 'u', 'item': 'a', 'title': 'Tea'}\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{'user': __import__('os').system('touch HERE')}", "a value that is no text, number, list or dict"),
        ("{'user': 'u', 'item': 'b'", "'{' was never closed"),
        ("{'user': {1, 2}}", "a value that is no text, number, list or dict"),
        ("{1: 'u'}", "each line must be one dict with texts as keys"),
        ("['u']", "each line must be one dict with texts as keys"),
        ("{'user': 1e999}", "Out of range float values are not JSON compliant"),
        ("{'user': " + "[" * 5000 + "]" * 5000 + "}", "too many nested parentheses"),
        ("{'user': '" + "x" * (1 << 21) + "'}", "a line of more than 2 MB"),
        ("{'user': b'x'}", "a value that is no text, number, list or dict"),
        ("{'user': " + "-" * 100_000 + "1}", "nested too deep"),
    ],
)
def test_lines_that_are_no_plain_values(tmp_path: Path, line: str, reason: str) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path / "e.json", GOOD + line.replace("HERE", str(marker)) + "\n" + GOOD.replace("'a'", "'b'"))
    assert failing(path).startswith(f"{path}:2: malformed Python dict: {reason}")
    assert not marker.exists()
    many = write(tmp_path / "many.json", path.read_text() + GOOD * 20)
    assert made(many, on_bad_rows="drop").info["bad_rows"] == {"many.json": 1}
