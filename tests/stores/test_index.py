"""Item vectors in real stores: what is written, what is written again, what goes; and the searches of the page."""

import json
import re
from pathlib import Path

import duckdb
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from qdrant_client import QdrantClient, models

from calrec_lite.cli import group
from calrec_lite.errors import InputError, RunError
from calrec_lite.recommend import Recommender
from calrec_lite.stores.rows import COLUMNS
from calrec_lite.stores.store import open_store

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"
STORES = {"lancedb": "lancedb://vectors#films", "qdrant": "qdrant://points#films", "parquet": "films.parquet"}


def index(package: Path, kind: str) -> str:
    """What the command says. Raises what it raises."""
    done = CliRunner().invoke(group, ["index", str(package), "--to", STORES[kind]], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.stdout


def rows(kind: str) -> dict[str, dict]:
    """Id -> row, as the store's own library reads it."""
    if kind == "lancedb":
        found = lancedb.connect("vectors").open_table("films").to_arrow().to_pylist()
    elif kind == "parquet":
        found = pq.read_table("films.parquet").to_pylist()
    else:
        client = QdrantClient(path="points")
        points, rest = client.scroll("films", limit=1000, with_vectors=True)
        client.close()
        assert rest is None
        found = [{**(point.payload or {}), "vector": point.vector} for point in points]
    assert all(set(row) == set(COLUMNS) for row in found)
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row for row in found}


def write(package: Path, lines: list[dict]) -> None:
    (package / "catalogue.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", STORES)
def test_only_what_is_new_or_changed_is_written_and_what_is_gone_goes(kind: str, package: Path) -> None:
    assert index(package, kind) == f"30 new, 0 changed, 0 removed, 0 as they were -> {STORES[kind]}\n"
    first = rows(kind)
    recommender = Recommender.from_pretrained(package)
    assert list(map(first.get, recommender.ids)) == [
        {"id": item, "title": title, "text": text, "vector": first[item]["vector"]}
        | {key: first[item][key] for key in ("model", "fingerprint")}
        for item, title, text in zip(recommender.ids, recommender.catalogue.titles, recommender.catalogue.texts)
    ]
    stored = np.array([first[item]["vector"] for item in recommender.ids])
    np.testing.assert_allclose(stored, recommender.strategies.item_vectors.vectors.numpy(), atol=1e-6)
    assert index(package, kind).startswith("0 new, 0 changed, 0 removed, 30 as they were")
    lines = [json.loads(line) for line in (package / "catalogue.jsonl").read_text().splitlines()]
    lines[4]["fields"]["Title"] = "another title"
    new = {"id": "it's new", "fields": {"Title": "large red \"pen\" 'x'"}}
    write(package, [*lines[:7], *lines[9:], new])
    assert index(package, kind).startswith("1 new, 1 changed, 2 removed, 27 as they were")
    second = rows(kind)
    assert second.keys() == {*first, new["id"]} - {"id7", "id8"}
    assert {item for item, row in second.items() if row != first.get(item)} == {"id4", "it's new"}
    assert second["id4"]["title"] == "another title"
    assert not np.allclose(second["id4"]["vector"], first["id4"]["vector"], atol=1e-3)
    write(package, lines[:3])  # the one with quotes in its id goes, too
    assert index(package, kind).startswith("0 new, 0 changed, 26 removed, 3 as they were")
    assert rows(kind) == {item: first[item] for item in ("id0", "id1", "id2")}


@pytest.mark.parametrize("kind", STORES)
def test_another_model_changes_every_row(kind: str, package: Path, request: pytest.FixtureRequest) -> None:
    index(package, kind)
    before = rows(kind)
    request.getfixturevalue("retrained")
    assert index(package, kind).startswith("0 new, 30 changed, 0 removed, 0 as they were")
    after = rows(kind)
    assert after.keys() == before.keys()
    assert len({row["model"] for row in [*before.values(), *after.values()]}) == 2
    assert not any(after[item]["vector"] == before[item]["vector"] for item in before)


def test_the_searches_of_the_page_give_the_lists_of_dense(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in STORES:
        index(package, kind)
    (Path("runs") / "mine").mkdir(parents=True)
    (Path("runs") / "mine" / "export").symlink_to(package)
    opening, *searches = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for history in (["id3", "id17"], ["id5"]):
        names: dict = {}
        exec(opening.replace('["Toy Story", "Fargo"]', repr(history)), names)
        assert names["seen"] == history
        (dense,) = Recommender.from_pretrained(package, strategy="dense").recommend([history], k=5)
        assert len(searches) == len(STORES)
        for search in searches:
            exec(search, names)
            assert [item for item, _ in names["found"]] == [item.item for item in dense]
            np.testing.assert_allclose([c for _, c in names["found"]], [i.score for i in dense], atol=1e-5)
            if client := names.pop("client", None):
                client.close()


def test_a_table_of_something_else_is_refused(package: Path) -> None:
    others = pa.table({"id": ["a"], "vector": pa.array([[1.0, 0.0]], pa.list_(pa.float32(), 2))})
    lancedb.connect("vectors").create_table("films", others)
    client = QdrantClient(path="points")
    client.create_collection("films", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))
    client.upsert("films", [models.PointStruct(id=1, vector=[1.0, 0.0], payload={"name": "a"})])
    client.close()
    pq.write_table(others, "films.parquet")
    for kind in STORES:
        with pytest.raises(InputError, match="did not write it; name another"):
            index(package, kind)
    Path("films.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="cannot be read"):
        index(package, "parquet")


def test_a_table_of_another_catalogue_or_model_is_refused_and_left_alone(package: Path) -> None:
    for kind in STORES:
        index(package, kind)
        write_as = [{"id": f"other {i}", "fields": {"Title": f"red pen {i}"}} for i in range(3)]
        kept = (package / "catalogue.jsonl").read_text()
        write(package, write_as)
        with pytest.raises(InputError, match="has 30 items, none of this catalogue"):
            index(package, kind)
        (package / "catalogue.jsonl").write_text(kept)
        assert len(rows(kind)) == 30
    table = pq.read_table("films.parquet")
    shorter = pa.array([vector[:2] for vector in table["vector"].to_pylist()], pa.list_(pa.float32(), 2))
    pq.write_table(table.set_column(3, "vector", shorter), "films.parquet")
    with pytest.raises(InputError, match="its vectors have 2 numbers, this model's 64"):
        index(package, "parquet")


@pytest.mark.parametrize(
    "to", ["films", "redis://x", "lancedb://", "qdrant://#films", "lancedb://x#a/b", "s3://x.parquet"]
)
def test_names_of_no_store_are_refused(to: str) -> None:
    with pytest.raises(InputError, match="no store of that name; write lancedb://"):
        open_store(to)


def test_a_store_that_cannot_be_reached_ends_the_command(package: Path) -> None:
    with pytest.raises(RunError, match="refused.*the same command goes on"):
        open_store("qdrant://127.0.0.1:1#films")
    held = QdrantClient(path="points")
    with pytest.raises(RunError, match="already accessed"):
        index(package, "qdrant")
    held.close()
    Path("file").write_text("")
    with pytest.raises(RunError, match="--to lancedb://file/below"):
        open_store("lancedb://file/below").update([pa.table({"id": ["a"]})], [], [])


def test_duckdb_reads_the_columns() -> None:
    """Of the fixed length that Arrow wrote, DuckDB makes a list; the page's query casts it."""
    vectors = pa.array([[1.0, 0.0]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"vector": vectors}), "one.parquet")
    assert duckdb.sql("SELECT vector::FLOAT[2] FROM 'one.parquet'").fetchall() == [((1.0, 0.0),)]
