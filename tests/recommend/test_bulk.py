"""Streaming and resuming with a real ranker that needs no model: the items most often taken, seen ones left out."""

import gzip
import json
import multiprocessing
import os
import signal
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError, RunError
from calrec_lite.recommend import Recommendation
from calrec_lite.recommend.bulk import Bulk, Progress, begun_option
from calrec_lite.recommend.histories import LONGEST, Histories, Rejected, User

OPTIONS = {"model": "popularity", "k": 3}
BLOCK = 7


class Popular:
    """The three most popular titles, of the candidates where there are some."""

    def __init__(self, domain: Domain, die_at: int | None = None, how: type[Exception] | None = None) -> None:
        counts = domain.train_counts()
        order = sorted(range(len(counts)), key=lambda i: -counts[i])
        self.items = [(domain.catalogue.titles[i], domain.catalogue.ids[i], float(counts[i])) for i in order]
        self.calls, self.die_at, self.how = 0, die_at, how

    def __call__(self, histories: list[list[str]], candidates: list[list[str] | None]) -> list[list[Recommendation]]:
        self.calls += 1
        if self.calls == self.die_at:
            if self.how is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise self.how
        return [self._list(set(h), c) for h, c in zip(histories, candidates)]

    def _list(self, seen: set[str], candidates: Sequence[str] | None) -> list[Recommendation]:
        if candidates is not None and not set(candidates) <= {title for title, _, _ in self.items}:
            raise InputError(f"no item is called {sorted(candidates)[0]}")
        open_ = [i for i in self.items if i[0] not in seen and (candidates is None or i[0] in candidates)]
        scores = [open_[0][2], open_[1][2], -float("inf")]  # the last as one that only fills the list up
        return [Recommendation(t, i, s, "popular") for (t, i, _), s in zip(open_, scores)]


BAD = [4, 10, 11, 21, 22, 32, 33, 35]


def bulk(users: Path, out: Path, rank: Popular) -> Progress:
    return Bulk(users, out, OPTIONS, BLOCK).run(rank, progress=False)


def test_lists_come_in_order_and_bad_lines_go_aside_with_the_reason(
    users: Path, tmp_path: Path, domain: Domain
) -> None:
    out = tmp_path / "lists.jsonl"
    done = bulk(users, out, Popular(domain))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert (done.users, done.rejected) == (len(rows), len(BAD)) == (51, 8)
    names = [f"u{n}" for n in range(60) if n + 1 not in [*BAD, 5, 31, 34]]
    assert [r["user"] for r in rows if r["user"][0] == "u"] == names
    by_user = {r["user"]: [i["title"] for i in r["items"]] for r in rows}
    assert set(by_user["c"]) == set(domain.catalogue.titles[:2])
    assert "34" in by_user  # a line without a name
    assert all(len(titles) == 3 for user, titles in by_user.items() if user != "c")
    said = [json.loads(line) for line in (tmp_path / "lists.jsonl.rejected.jsonl").read_text().splitlines()]
    assert [r["line"] for r in said] == BAD
    reasons = " | ".join(r["reason"] for r in said)
    for part in ("not JSON", "not {", "`history`", "not UTF-8", "surrogate", "empty list", "no item is called", "deep"):
        assert part in reasons
    assert said[0]["text"] == '{"user": "half'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lists.jsonl", "lists.jsonl.rejected.jsonl", "users.jsonl"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("die_at", [2, 5, 9])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    users: Path, tmp_path: Path, domain: Domain, suffix: str, die_at: int
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"lists{suffix}"
    bulk(users, whole, Popular(domain))
    child = multiprocessing.get_context("fork").Process(target=bulk, args=(users, out, Popular(domain, die_at)))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not out.exists()
    lines = json.loads((tmp_path / f"lists{suffix}.state.json").read_text())["done"]["lines"]
    assert lines == {2: 0, 5: 21, 9: 28}[die_at]  # the first call is the probe; 6 to 9 look for the bad user of a block
    rest, every = Popular(domain), Popular(domain)
    bulk(users, tmp_path / f"again{suffix}", every)
    bulk(users, out, rest)
    assert rest.calls == every.calls - lines // BLOCK
    assert out.read_bytes() == whole.read_bytes()
    rejected = [tmp_path / f"{p.name}.rejected.jsonl" for p in (whole, out)]
    assert rejected[0].read_bytes() == rejected[1].read_bytes()


@pytest.mark.parametrize("torn", [0, 1, 17, 400])
def test_bytes_of_an_unfinished_block_are_cut_off(users: Path, tmp_path: Path, domain: Domain, torn: int) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "lists.jsonl"
    bulk(users, whole, Popular(domain))
    with pytest.raises(KeyboardInterrupt):
        bulk(users, out, Popular(domain, 4, KeyboardInterrupt))
    part = tmp_path / "lists.jsonl.part"
    part.write_bytes(whole.read_bytes()[: part.stat().st_size + torn])
    with (tmp_path / "lists.jsonl.rejected.jsonl.part").open("ab") as file:
        file.write(b'{"line": 9' * torn)
    bulk(users, out, Popular(domain))
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "lists.jsonl.rejected.jsonl").read_bytes() == (
        tmp_path / "whole.jsonl.rejected.jsonl"
    ).read_bytes()


def test_a_run_killed_while_files_get_their_names(
    users: Path, tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "lists.jsonl"
    bulk(users, whole, Popular(domain))
    for fails in (1, 2, 3):
        with monkeypatch.context() as patch:
            real, calls = Path.replace, []

            def replace(self: Path, to: Path, real=real, calls=calls, fails=fails) -> Path:
                if self.suffix == ".part":
                    calls.append(self)
                    if len(calls) == fails:
                        raise OSError("no space left")
                return real(self, to)

            patch.setattr(Path, "replace", replace)
            if fails < 3:
                with pytest.raises(RunError, match="goes on"):
                    bulk(users, out, Popular(domain))
            else:
                bulk(users, out, Popular(domain))
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("lost", ["", ".rejected.jsonl"])
@pytest.mark.parametrize("at", [4, "end"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_output_that_is_gone_is_not_said_to_be_there(
    users: Path, tmp_path: Path, domain: Domain, suffix: str, lost: str, at: int | str, how: str
) -> None:
    out, ranked = tmp_path / f"lists{suffix}", Popular(domain)
    part = tmp_path / f"{out.name}{lost}.part"

    def lose() -> None:
        part.unlink()
        if how == "replaced":
            part.write_text("something else\n")

    def rank(histories: list[list[str]], candidates: list[list[str] | None]) -> list[list[Recommendation]]:
        if ranked.calls == at:
            lose()
        return ranked(histories, candidates)

    if at == "end":
        job = Bulk(users, out, OPTIONS, BLOCK)
        job._finish = lambda: None  # type: ignore[method-assign]  # killed before the files got their names
        job.run(rank, progress=False)
        lose()
    with pytest.raises(RunError, match=rf"{part.name}: removed or changed .*; delete .*state.json, and"):
        Bulk(users, out, OPTIONS, BLOCK).run(rank, progress=False)
    assert not out.exists()
    (tmp_path / f"{out.name}.state.json").unlink()
    assert Bulk(users, out, OPTIONS, BLOCK).run(ranked, progress=False).users == 51
    assert out.exists()


def test_a_table_that_is_stopped_while_it_is_written_leaves_nothing_half_written(
    users: Path, tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "lists.parquet"

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", stopped)
        with pytest.raises(KeyboardInterrupt):
            bulk(users, out, Popular(domain))
    assert not [path.name for path in tmp_path.iterdir() if "tmp" in path.name or "process" in path.name]
    assert bulk(users, out, Popular(domain)).users == pq.read_metadata(out).num_rows
    (tmp_path / "folder.parquet").mkdir()  # as other programs write tables
    with pytest.raises(InputError, match="folder.parquet: is a folder"):
        Bulk(users, tmp_path / "folder.parquet", OPTIONS)


def test_another_input_model_or_k_is_not_gone_on_with(users: Path, tmp_path: Path, domain: Domain) -> None:
    out = tmp_path / "lists.jsonl"
    with pytest.raises(KeyboardInterrupt):
        bulk(users, out, Popular(domain, 3, KeyboardInterrupt))
    with pytest.raises(InputError, match="another k; .*delete"):
        Bulk(users, out, {**OPTIONS, "k": 4}, BLOCK)
    with pytest.raises(InputError, match="another model, another block"):
        Bulk(users, out, {**OPTIONS, "model": "x"}, BLOCK + 1)
    less = tmp_path / "less.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Bulk(users, less, {**OPTIONS, "deny": "x"}, BLOCK).run(Popular(domain, 3, KeyboardInterrupt), progress=False)
    with pytest.raises(InputError, match="another deny"):
        Bulk(users, less, OPTIONS, BLOCK)
    with pytest.raises(InputError, match="would replace the histories"):
        Bulk(users, users, OPTIONS, BLOCK)
    users.write_bytes(users.read_bytes() + b"\n{}")
    with pytest.raises(InputError, match="another input"):
        Bulk(users, out, OPTIONS, BLOCK)
    (tmp_path / "lists.jsonl.state.json").write_text("{")
    with pytest.raises(InputError, match="no unfinished run"):
        Bulk(users, out, OPTIONS, BLOCK)
    (tmp_path / "lists.jsonl.state.json").unlink()
    assert bulk(users, out, Popular(domain)).rejected == len(BAD) + 1


def test_an_option_of_the_unfinished_run_can_be_taken_over(users: Path, tmp_path: Path, domain: Domain) -> None:
    """The number type is chosen by the machine where a run begins, and stays where another one goes on."""
    out = tmp_path / "lists.jsonl"
    assert begun_option(out, "dtype") is None
    with pytest.raises(KeyboardInterrupt):
        Bulk(users, out, {**OPTIONS, "dtype": "bfloat16"}, BLOCK).run(
            Popular(domain, 3, KeyboardInterrupt), progress=False
        )
    assert begun_option(out, "dtype") == "bfloat16"
    assert begun_option(out, "deny") is None
    for damaged in ("{", "[]", '{"run": 1}', "{}"):
        (tmp_path / "lists.jsonl.state.json").write_text(damaged)
        assert begun_option(out, "dtype") is None


def test_all_formats_say_the_same(users: Path, tmp_path: Path, domain: Domain) -> None:
    packed, table = tmp_path / "users.jsonl.gz", tmp_path / "users.parquet"
    packed.write_bytes(gzip.compress(users.read_bytes()))
    good = [(n, u) for n, u in Histories(users).read() if isinstance(u, User) and u.name != "unknown"]
    pq.write_table(
        pa.table({k: [getattr(u, a) for _, u in good] for k, a in (("user", "name"), ("history", "history"))}), table
    )
    bulk(users, tmp_path / "a.jsonl", Popular(domain))
    for source, out in ((packed, "b.jsonl"), (packed, "c.jsonl.gz"), (users, "d.parquet")):
        bulk(source, tmp_path / out, Popular(domain))
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert gzip.decompress((tmp_path / "c.jsonl.gz").read_bytes()) == (tmp_path / "a.jsonl").read_bytes()
    assert pq.read_table(tmp_path / "d.parquet").to_pylist() == rows
    assert any(item["score"] is None for row in rows for item in row["items"])  # not finite, so not JSON
    bulk(table, tmp_path / "e.jsonl", Popular(domain))
    others = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [r for r in others if r["user"] != "c"] == [r for r in rows if r["user"] != "c"]


def test_what_cannot_be_read_at_all(users: Path, tmp_path: Path, domain: Domain) -> None:
    out = tmp_path / "lists.jsonl"
    with pytest.raises(InputError, match="must end in"):
        Bulk(users, tmp_path / "lists.csv", OPTIONS)
    with pytest.raises(InputError, match="cannot be read"):
        Bulk(tmp_path / "none.jsonl", out, OPTIONS)
    pq.write_table(pa.table({"user": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column `history`"):
        Bulk(tmp_path / "a.parquet", out, OPTIONS)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(users.read_bytes())[:-40])
    with pytest.raises(InputError, match="damaged after line"):
        bulk(torn, out, Popular(domain))
    out.write_text("an earlier run's\n")
    (tmp_path / "lists.jsonl.state.json").unlink()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("x\n\n")
    with pytest.raises(InputError, match="holds no user, 1 rejected"):
        bulk(bad, out, Popular(domain))
    assert out.read_text() == "an earlier run's\n"
    with pytest.raises(InputError, match="a wrong option"):  # not 52 rejected lines
        Bulk(users, out, OPTIONS, BLOCK).run(
            lambda h, c: (_ for _ in ()).throw(InputError("a wrong option")), progress=False
        )


@pytest.mark.parametrize("user", [pa.array([10**8], pa.date32()), pa.array([10**18], pa.duration("s"))], ids=str)
def test_a_table_of_what_python_cannot_hold_is_one_line(tmp_path: Path, user: pa.Array) -> None:
    pq.write_table(pa.table({"user": user, "history": [["a"]]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: damaged after line 0"):
        list(Histories(tmp_path / "a.parquet").read())


def test_a_line_without_an_end_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"history": ["' + b"x" * (2 * LONGEST + 5) + b'"]}\n{"user": 2, "history": [7]}')
    (_, long), (number, user) = Histories(path).read()
    assert isinstance(long, Rejected)
    assert "longer than 16 MB" in long.reason
    assert len(long.text) == 1000
    assert (number, user) == (2, User("2", ["7"], None, '{"user": 2, "history": [7]}'))


def test_memory_does_not_grow_with_the_file(tmp_path: Path, domain: Domain) -> None:
    titles, peaks = domain.catalogue.titles, []
    for users in (1_500, 6_000):
        path = tmp_path / f"{users}.jsonl"
        with path.open("w") as file:
            for n in range(users):
                bad = n % 50 == 0
                file.write("bad\n" if bad else json.dumps({"history": [titles[n % 30], titles[n % 7]]}) + "\n")
        tracemalloc.start()
        done = Bulk(path, tmp_path / "out.parquet", OPTIONS, 250).run(Popular(domain), progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done.users == users * 49 // 50
    assert peaks[1] < 1.1 * peaks[0]
