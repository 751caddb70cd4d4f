"""`on_bad_rows: drop`: what goes, what stays, and what is written down."""

import json
from pathlib import Path

import pytest
from handmade import failing, histories, json_lines, made, write

from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepare_to
from calrec_lite.data.report import describe
from calrec_lite.recipe import DomainSpec

START = 1_600_000_000
GOOD = "".join(f"u,i{n},{START + n},T{n}\n" for n in range(60))
HEADER = "user,item,time,title\n"


def dropped(domain: Domain) -> list[tuple[int, str]]:
    return [(row.get("line") or row["row"], str(row["reason"])) for row in domain.bad_rows]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("bad", "rows"),
    [
        ("u,a\n", [(62, "Expected Number of Columns: 4 Found: 2")]),
        ("u,a,1,Tea,x\n\n", [(62, "Expected Number of Columns: 4 Found: 5")]),
        ('u,a,1,"Tea\nv,b,1600000001,Two\n', [(62, "Value with unterminated quote found.")]),
        ('u,a,1,"Tea" x\nv,b,1600000001,Two\n', [(62, "',' expected after '\"'")]),
        (
            'u,"a,1,Tea\nv,"b,1,Cup\n',
            [(62, "Value with unterminated quote found."), (63, "Value with unterminated quote")],
        ),
        (b"u,a,1,\xff\n", [(62, "is not UTF-8 text")]),
        ("u,a,yesterday,Tea\n", [(61, "column time: neither unix seconds nor a date")]),
        ("u,a,1600000000000,Tea\n", [(61, "column time: outside 1970 to")]),
        ("u,a,2024-01-31,Tea\n", [(61, "column time: not as the column's other values, which are numbers")]),
    ],
)
def test_rows_of_csv(tmp_path: Path, bad: str | bytes, rows: list[tuple[int, str]]) -> None:
    data = bad.encode() if isinstance(bad, str) else bad
    tail = b'w,"q\n1",1600000002,"Two ""lines"", one\nrecord"\n'
    path = write(tmp_path / "e.csv", (HEADER + GOOD).encode() + data + tail)
    failing(path)
    domain = made(path, on_bad_rows="drop")
    assert domain.info["bad_rows"] == {"e.csv": len(rows)}
    found = dropped(domain)
    assert [number for number, _ in found] == [number for number, _ in rows]
    assert all(reason.startswith(expected) for (_, reason), (_, expected) in zip(found, rows, strict=True))
    kept = histories(domain)
    assert kept["u"] == [f"T{n}" for n in range(60)]
    assert kept["w"] == ['Two "lines", one record']
    assert kept.get("v", ["Two"]) == ["Two"]
    assert domain.info["read"]["rows"] == 61 + ("v" in kept)


def test_lines_of_json_and_of_other_texts(tmp_path: Path) -> None:
    rows = [{"user": "u", "item": f"i{n}", "title": f"T{n}"} for n in range(30)]
    path = write(
        tmp_path / "e.jsonl.gz", json_lines(rows) + '{"user": "u", "ite\n[1]\n' + json_lines([{**rows[0], "item": "z"}])
    )
    domain = made(path, on_bad_rows="drop")
    assert dropped(domain) == [
        (31, "malformed JSON at column 15: Unterminated string starting at"),
        (32, "each line must be one JSON object, not [1]"),
    ]
    assert len(domain.sequences.items) == 31
    inter = "user_id:token\titem_id:token\n" + "".join(f"u\ti{n}\n" for n in range(20)) + 'u\ti1\tx\nu\t"i2\n'
    item = "item_id:token\ttitle:token\n" + "".join(f"i{n}\tT{n}\n" for n in range(20)) + '"i2\tQuote\n'
    events, items = write(tmp_path / "d.inter", inter), write(tmp_path / "d.item", item)
    domain = made(events, items, reader="recbole", on_bad_rows="drop")
    assert dropped(domain) == [(22, "Expected Number of Columns: 2 Found: 3")]
    assert histories(domain)["u"][-1] == "Quote"


def test_a_file_with_too_many_bad_rows_is_read_in_a_wrong_way(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", HEADER + GOOD + "u,a\n" * 7)
    assert failing(path, on_bad_rows="drop") == (
        f"{path}: on_bad_rows: 7 of 67 rows cannot be read, more than 10%, such as line 62 (Expected Number of "
        "Columns: 4 Found: 2); see whether reader, columns and encoding are right"
    )
    path = write(tmp_path / "t.csv", HEADER + GOOD + "u,a,soon,Tea\n" * 7)
    assert "7 of 67 rows cannot be read, more than 10%, such as row 61 (column time: neither" in failing(
        path, on_bad_rows="drop"
    )


def test_the_side_file_and_the_report(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", HEADER + GOOD + "u,a\nu,b,never,\x1b[31mRed\n")
    spec = DomainSpec(interactions=str(path), min_user_events=1, on_bad_rows="drop")
    domain = prepare_to("d", spec, 0, tmp_path / "out")
    lines = (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": "e.csv", "line": 62, "reason": "Expected Number of Columns: 4 Found: 2", "text": "u,a"},
        {"file": "e.csv", "row": 61, "reason": "column time: neither unix seconds nor a date", "text": "never"},
    ]
    assert "  left out                  2 rows of e.csv that cannot be read (bad_rows.jsonl)" in describe(domain)
    clean = prepare_to("d", DomainSpec(interactions=str(write(tmp_path / "c.csv", HEADER + GOOD))), 0, tmp_path / "c")
    assert not (tmp_path / "c" / "bad_rows.jsonl").exists()
    assert clean.catalogue.fields == domain.catalogue.fields


def test_a_sound_file_is_the_same_with_either(tmp_path: Path) -> None:
    text = 'user;item;time;title\nu;a;2024-01-31;"Tea; ""green"" \r\n cup"\r\n\nv;b;2024-02-01 10:00;it"s\n'
    path = write(tmp_path / "e.csv", text)
    assert made(path, on_bad_rows="drop").fingerprint == made(path).fingerprint


def test_many_stray_quotes_take_no_long_time(tmp_path: Path) -> None:
    rows = "".join(f'u,i{n},{START + n},"T{n}\n' if n % 20 == 0 else f"u,i{n},{START + n},T{n}\n" for n in range(4000))
    domain = made(write(tmp_path / "e.csv", HEADER + rows), on_bad_rows="drop")
    assert domain.info["bad_rows"] == {"e.csv": 200}
    assert len(domain.sequences.items) == 3800
