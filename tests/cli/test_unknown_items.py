"""`calrec-lite recommend` on an export whose lists are fused, without the LLM."""

import json
from pathlib import Path

import pytest

from tests.conftest import run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def fast(fused_export: Path) -> list[str]:
    return ["recommend", str(fused_export), "--strategy", "fast", "-k", "3"]


@pytest.fixture
def title(fused_export: Path) -> str:
    (line, *_) = (fused_export / "catalogue.jsonl").read_text(encoding="utf-8").splitlines()
    return str(json.loads(line)["fields"]["Title"])


def test_titles_that_are_not_found_are_said(fast: list[str], title: str, monkeypatch, capsys) -> None:
    assert run([*fast, title], monkeypatch) == 0
    assert capsys.readouterr().err == ""
    assert run([*fast, title, f"{title}x", "Nonexistent thing"], monkeypatch) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3
    assert f"not in the catalogue: '{title}x' (near it: '{title}'" in said.err
    assert "'Nonexistent thing'" in said.err
    assert run([*fast, title, "Nonexistent thing", "--strict"], monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "histories: not in the catalogue: 'Nonexistent thing'" in said.err


def test_items_that_are_not_found_are_counted_in_bulk(fast: list[str], title: str, monkeypatch, capsys) -> None:
    histories = [[title, "nope"], [title], ["nope", "nada", "nope"], []]
    Path("u.jsonl").write_text("".join(json.dumps({"history": h}) + "\n" for h in histories))
    assert run([*fast, "--users", "u.jsonl", "--out", "o.jsonl", "--block", "2"], monkeypatch) == 0
    said = capsys.readouterr()
    assert said.out == "4 users -> o.jsonl\n"
    assert "4 of 6 items in their histories are not in the catalogue" in said.err
    assert run([*fast, "--users", "u.jsonl", "--out", "o.jsonl", "--strict"], monkeypatch) == 0
    said = capsys.readouterr()
    assert said.out == "2 users -> o.jsonl; 2 lines rejected -> o.jsonl.rejected.jsonl\n"
    assert "not in the catalogue" not in said.err
    rejected = [json.loads(line) for line in Path("o.jsonl.rejected.jsonl").read_text().splitlines()]
    reasons = ["not in the catalogue: 'nope'", "not in the catalogue: 'nope', 'nada'"]
    assert [(r["line"], r["reason"]) for r in rejected] == [(1, reasons[0]), (3, reasons[1])]


def test_what_was_typed_in_another_encoding(fast: list[str], title: str, monkeypatch, capsys) -> None:
    latin = "caf\udce9"  # as Python reads a byte that is no UTF-8
    wrong = [[*fast, title, latin], [*fast[:1], latin, title], ["demo", "--set", f"name={latin}"]]
    wrong += [["prepare", "r.yaml", "--set", f"name={latin}"], ["push", fast[1], latin], ["compare", latin, latin]]
    for arguments in wrong:
        assert run(arguments, monkeypatch) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert "caf\\udce9" in error or "token" in error
    users, out = Path(f"{latin}.jsonl"), f"{latin}.out.jsonl"  # a file may be called so
    users.write_text(json.dumps({"history": [title]}) + "\n")
    assert run([*fast, "--users", str(users), "--out", out], monkeypatch) == 0
    assert Path(out).read_text(encoding="utf-8").count("\n") == 1
