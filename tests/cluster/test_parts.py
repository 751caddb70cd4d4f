"""Inputs and outputs far away, by fsspec's file system in memory, and an actor at work on them without Ray."""

from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from calrec_lite.cluster.lists import ListsJob, Ranker
from calrec_lite.cluster.parts import Place, inputs_of, parts_of
from calrec_lite.cluster.ray_engine import Job
from calrec_lite.cluster.vectors import ItemEncoder, parts_of_items
from calrec_lite.errors import InputError
from calrec_lite.model.device import dtype_here
from calrec_lite.recommend import Recommender
from calrec_lite.recommend.bulk import Bulk
from calrec_lite.stores.index import index_items
from calrec_lite.stores.store import open_store
from tests.cluster.conftest import same_rows


@pytest.fixture
def far():
    """An empty store of objects."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def test_inputs_are_a_file_a_folder_or_a_pattern(far, tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "c.jsonl.gz", "notes.txt"):
        far.pipe_file(f"/users/{name}", b"12345")
        (tmp_path / name).write_bytes(b"123")
    found = [("memory:///users/a.parquet", 5), ("memory:///users/b.jsonl", 5), ("memory:///users/c.jsonl.gz", 5)]
    assert inputs_of("memory://users") == found
    assert inputs_of("memory://users/*.jsonl") == found[1:2]
    assert inputs_of("memory://users/a.parquet") == found[:1]
    assert [size for _, size in inputs_of(str(tmp_path))] == [3, 3, 3]
    for users in ("memory://users/notes.txt", "memory://users/x*.jsonl", str(tmp_path / "none.jsonl"), "none://x"):
        with pytest.raises(InputError, match=f"--users {users}".replace("*", r"\*")):
            inputs_of(users)
    assert [part.name for part in parts_of(["one"], None)][::15] == ["part-00001-of-00016", "part-00016-of-00016"]
    assert [(part.source, str(part.shard)) for part in parts_of(["a", "b"], None)] == [("a", "1/1"), ("b", "1/1")]


def test_an_actor_reads_and_writes_far_away(far, package: Path, users: Path, tmp_path: Path) -> None:
    far.put_file(str(users), "/in/users.jsonl")
    far.pipe_file("/in/damaged.jsonl.gz", b"no gzip")
    sources = [source for source, _ in inputs_of("memory://in")]
    parts = parts_of(sources, 3)
    opening = {"dtype": "float32"}
    job = ListsJob(str(package), opening, "memory://lists", {}, "memory://in", 5, {}, False, 8, parts=parts)
    faults = Ranker(job)({"number": np.arange(len(parts))})["fault"]
    assert [bool(fault) for fault in faults] == [True] * 3 + [False] * 3
    assert "part-00001-of-00006: --users" in faults[0]
    assert "damaged" in faults[0]
    place = Place("memory://lists")
    assert place.read(f"_state/{parts[0].name}.json") is None
    done = [place.read(f"_state/{part.name}.json") for part in parts[3:]]
    whole = tmp_path / "whole.parquet"
    ranks = Recommender.from_pretrained(package, **opening)
    totals = Bulk(users, whole, {}, 8).run(lambda h, c: ranks.recommend(h, 5, candidates=c), progress=False)
    assert sum(d["users"] for d in done if d) == totals.users
    rows = [row for name in sorted(far.glob("/lists/*.parquet")) for row in pq.read_table(far.open(name)).to_pylist()]
    assert rows == pq.read_table(whole).to_pylist()
    rejected = b"".join(far.cat_file(name) for name in sorted(far.glob("/lists/_rejected/*.jsonl")))
    assert rejected == Path(f"{whole}.rejected.jsonl").read_bytes()


def test_an_actor_encodes_items_and_writes_their_rows_far_away(far, package: Path, tmp_path: Path) -> None:
    parts = parts_of_items(30, 4)
    assert [(part.first, part.end) for part in parts] == [(0, 7), (7, 15), (15, 22), (22, 30)]
    assert len(parts_of_items(3, 16)) == 3
    assert len(parts_of_items(1 << 20, None)) == 16
    assert len(parts_of_items(100_000_000, None)) == 382
    opening = {"dtype": dtype_here(package).dtype, "strategy": "dense"}
    job = Job(str(package), opening, "memory://vectors", {}, parts=parts)
    assert ItemEncoder(job)({"number": np.arange(4)})["fault"] == [""] * 4
    assert [Place("memory://vectors").read(f"_state/{part.name}.json") for part in parts[:2]] == [
        {"items": 7},
        {"items": 8},
    ]
    rows = [row for name in sorted(far.glob("/vectors/*.parquet")) for row in pq.read_table(far.open(name)).to_pylist()]
    whole = tmp_path / "whole.parquet"
    index_items(package, open_store(str(whole)), str(whole))
    same_rows(rows, pq.read_table(whole).to_pylist())


def test_a_file_is_no_place_for_parts(tmp_path: Path) -> None:
    (tmp_path / "lists.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="is a file; --engine ray writes a folder"):
        Place(str(tmp_path / "lists.parquet"))


def test_what_is_no_state_is_refused(far) -> None:
    place = Place("memory://lists/")
    assert place.read("_state/run.json") is None
    place.write("_state/run.json", {"k": 5})
    assert place.read("_state/run.json") == {"k": 5}
    for content in (b"[]", b"{", b"\xff"):
        far.pipe_file("/lists/_state/run.json", content)
        with pytest.raises(InputError, match=r"run.json .*remove it"):
            place.read("_state/run.json")
