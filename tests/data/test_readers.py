"""What each reader takes from a file, and what it says of files that are wrong."""

import gzip
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import failing, histories, json_lines, made, write

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError

UTC = pa.timestamp("us", "UTC")
EVENTS = "user,item,time\nu,a,1\nu,b,2\nu,c,3\n"
ITEMS = "item,title\na,Apple\nb,Bread\nc,Cheese\n"


def test_text_columns_beside_the_events(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", "who,what,maker\nu,Tea,X\nu,Cup,\nv,Tea,X\nv,Tea,X\n")
    domain = made(path, columns={"user": "who", "item": "what"}, fields={"Title": "what", "Brand": "maker"})
    assert domain.catalogue.fields == [{"Title": "Cup"}, {"Title": "Tea", "Brand": "X"}]
    assert histories(domain) == {"u": ["Tea", "Cup"], "v": ["Tea", "Tea"]}


def test_a_list_of_titles_is_enough(tmp_path: Path) -> None:
    lines = json_lines([{"user": 1, "bought": ["Tea", "Cup", "Tea"]}, {"user": 2, "bought": ["Cup", None]}])
    domain = made(write(tmp_path / "e.jsonl", lines), columns={"item": "bought"}, fields={"Title": "bought"})
    assert histories(domain) == {"1": ["Tea", "Cup", "Tea"], "2": ["Cup"]}
    assert domain.info["dropped"]["no user or item"] == {"events": 1}


def test_the_id_of_an_items_file_may_be_text_too(tmp_path: Path) -> None:
    """In JSON, where other values are decoded: `007` is no number."""
    events = write(tmp_path / "e.csv", "user,asin\nu,007\nu,1e5\n")
    items = write(tmp_path / "i.jsonl", json_lines([{"asin": "007", "title": "Tea"}, {"asin": "1e5", "title": "Cup"}]))
    domain = made(events, items, columns={"item": "asin"}, fields={"Title": "title", "Id": "asin"})
    assert domain.catalogue.fields == [{"Title": "Cup", "Id": "1e5"}, {"Title": "Tea", "Id": "007"}]


def test_prices_of_32_bits_and_gaps_in_parquet(tmp_path: Path) -> None:
    price = pa.array([19.99, float("nan"), 5.0], pa.float32())
    pq.write_table(
        pa.table({"item": ["a", "b", "c"], "title": ["A", "B", "C"], "price": price}), tmp_path / "i.parquet"
    )
    domain = made(write(tmp_path / "e.csv", EVENTS), tmp_path / "i.parquet")
    assert [fields.get("Price", "") for fields in domain.catalogue.fields] == ["19.99", "", "5"]


def test_lists_of_items_times_and_texts_are_read_side_by_side(tmp_path: Path) -> None:
    record = {
        "user": "u",
        "item": [1, 2],
        "time": [20, 10],
        "title": ["Tea", "Cup"],
        "category": [["x", "y"], []],
    }
    domain = made(write(tmp_path / "e.jsonl", json_lines([record])))
    assert histories(domain) == {"u": ["Cup", "Tea"]}
    assert domain.catalogue.fields == [{"Title": "Cup"}, {"Title": "Tea", "Category": "x > y"}]


def test_the_items_file_may_name_its_id_as_the_events_do_or_item(tmp_path: Path) -> None:
    events = write(tmp_path / "e.csv", "user,sku\nu,a\nu,b\n")
    for header in ("sku", "item"):
        items = write(tmp_path / "i.csv", f"{header},title\na,Apple\nb,Bread\n")
        assert histories(made(events, items, columns={"item": "sku"})) == {"u": ["Apple", "Bread"]}


def test_usual_fields_in_the_papers_order_without_the_rare(tmp_path: Path) -> None:
    events = write(tmp_path / "e.csv", "user,item\n" + "".join(f"u,{i}\n" for i in range(40)))
    records: list[dict[str, Any]] = [
        {"price": "$3" if i == 0 else None, "brand": "B" if i < 2 else "", "item": i, "title": f"T{i}"}
        for i in range(40)
    ]
    records[39]["categories"] = ["x"]
    domain = made(events, write(tmp_path / "i.jsonl", json_lines([{"categories": ["y"], **r} for r in records])))
    assert domain.info["labels"] == ["Title", "Category", "Brand"]  # 2 of 40 is 5%
    assert domain.info["labels_left_out"] == {"Price": 0.025}
    assert domain.catalogue.fields[0] == {"Title": "T0", "Category": "y", "Brand": "B"}
    named = made(events, tmp_path / "i.jsonl", fields={"Price": "price", "Title": "title"})
    assert named.info["labels"] == ["Price", "Title"]  # what the recipe names stays
    assert {"Price": "$3", "Title": "T0"} in named.catalogue.fields


def test_of_several_records_of_an_item_the_fullest_counts(tmp_path: Path) -> None:
    items = write(tmp_path / "i.csv", "item,title,brand\na,,\na,Apple,\na,Apple,Orchard\na,Pear,Garden\nz,Unused,\n")
    domain = made(write(tmp_path / "e.csv", "user,item\nu,a\n"), items)
    assert domain.catalogue.fields == [{"Title": "Apple", "Brand": "Orchard"}]
    assert domain.info["read"] == {"rows": 1, "item_records": 4, "duplicate_item_records": 3}


def test_odd_names_of_columns_labels_and_files(tmp_path: Path) -> None:
    folder = tmp_path / "it's [1] folder*"
    folder.mkdir()
    write(folder / "a.jsonl", "broken")
    path = write(folder / "*.jsonl", json_lines([{"the user": 1, 'it"em': "a", "na'me": "Tea"}]))
    columns = {"user": "the user", "item": 'it"em'}
    assert made(path, columns=columns, fields={"Item": "na'me"}).catalogue.fields == [{"Item": "Tea"}]


@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("name", ["events[1]", "ev*", "e?", "[!x]", "user=9/item=z/time=2020-01-01/e", "a\\[1]", "x\\"])
def test_a_name_is_no_pattern_and_a_folder_is_no_column(tmp_path: Path, name: str, kind: str) -> None:
    """Beside files that the name would match as a pattern."""
    rows = [{"user": user, "item": "a", "time": time, "title": "Tea"} for user, time in (("u", 1), ("v", 2))]

    def put(path: Path, rows: list[dict[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
            return path
        separator = "\t" if kind == "tsv" else ","
        table = "\n".join(separator.join(map(str, row)) for row in [rows[0].keys(), *(row.values() for row in rows)])
        return write(path, json_lines(rows) if "json" in kind else table)

    for other in ("events1", "evil", "ev", "eX", "y", "a1"):
        put(tmp_path / f"{other}.{kind}", [{"user": "wrong", "item": "b", "time": 3, "title": "Wrong"}])
    domain = made(put(tmp_path / f"{name}.{kind}", rows))
    assert histories(domain) == {"u": ["Tea"], "v": ["Tea"]}
    domain.save(tmp_path / "runs" / "user=9" / "times=1")
    assert histories(Domain.open(tmp_path / "runs" / "user=9" / "times=1")) == histories(domain)


def test_the_folder_for_temporary_files_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("t[1]", "t1", "*"):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / folder))
        assert histories(made(write(tmp_path / "e.csv", "user,item,title\nu,a,Tea\n"))) == {"u": ["Tea"]}


def test_movielens_csv(tmp_path: Path) -> None:
    ratings = write(
        tmp_path / "ratings.csv", "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n1,7,3.0,1260759100\n"
    )
    movies = (
        'movieId,title,genres\n7,"Usual Suspects, The (1995)",Crime|Thriller\n31,Dangerous (1995),(no genres listed)\n'
    )
    domain = made(ratings, write(tmp_path / "movies.csv", movies), reader="movielens")
    assert domain.catalogue.fields == [
        {"Title": "Dangerous (1995)"},
        {"Title": "Usual Suspects, The (1995)", "Genres": "Crime, Thriller"},
    ]
    assert histories(domain) == {"1": ["Usual Suspects, The (1995)", "Dangerous (1995)"]}


def test_movielens_atomic_files(tmp_path: Path) -> None:
    inter = (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n196\t3\t3\t881250940\n"
    )
    item = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    item += '242\t"Kolya" and\t1996\tComedy\n3\tFour Rooms\t1995\tThriller Sci-Fi\n'
    domain = made(write(tmp_path / "ml.inter", inter), write(tmp_path / "ml.item", item), reader="movielens")
    assert domain.catalogue.fields == [
        {"Title": '"Kolya" and', "Year": "1996", "Genres": "Comedy"},
        {"Title": "Four Rooms", "Year": "1995", "Genres": "Thriller, Sci-Fi"},
    ]
    assert histories(domain) == {"196": ["Four Rooms", '"Kolya" and']}


def test_amazon_2018_with_its_junk(tmp_path: Path) -> None:
    reviews = [
        {"reviewerID": "R", "asin": a, "unixReviewTime": t, "reviewText": "x"} for a, t in [("B1", 2), ("B2", 1)]
    ]
    junk = '<span class="a-size-medium a-color-secondary"'
    meta = [
        {"asin": "B1", "title": junk, "category": ["Pens &amp; Ink", "Pens"], "brand": "P", "price": ".a{color:red}"},
        {"asin": "B1", "title": junk, "category": ["Pens &amp; Ink", "Pens"], "brand": "P", "price": ".a{color:red}"},
        {"asin": "B2", "title": "Blue <i>Pen</i>", "category": [], "brand": "", "price": "$1.50", "description": ["x"]},
        {"asin": "B3", "title": "No events", "category": [], "brand": "", "price": ""},
    ]
    domain = made(
        write(tmp_path / "X_5.json.gz", json_lines(reviews)),
        write(tmp_path / "meta_X.json.gz", json_lines(meta)),
        reader="amazon2018",
    )
    assert domain.catalogue.fields == [
        {"Category": "Pens & Ink > Pens", "Brand": "P"},
        {"Title": "Blue Pen", "Price": "$1.50"},
    ]
    assert domain.info["junk_values"] == {"Title": 2, "Price": 2}
    assert domain.info["read"]["duplicate_item_records"] == 1
    kept = made(tmp_path / "X_5.json.gz", tmp_path / "meta_X.json.gz", reader="amazon2018", html=False)
    assert "Blue <i>Pen</i>" in kept.catalogue.titles


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "e.csv: holds no usable row (no header line)"),
        ("user,item,time\n", "e.csv: holds no usable row: none has both `user` and `item`"),
        ("user,item,time\n,a,1\nu,,2\n", "e.csv: holds no usable row: none has both `user` and `item`"),
        (
            "user,items,time\nu,a,1\n",
            "e.csv: no column `item` for `columns.item`, did you mean `items`? The columns are: user, items, time",
        ),
        ("person,item\nu,a\n", "e.csv: no column `user` for `columns.user`. The columns are: person, item"),
        ("user,item,time\nu,a,1\nu,b\n", "e.csv:3: Expected Number of Columns: 3 Found: 2"),
        ('user,item,time\nu,a,1\nu,"b,2\nu,c,3\n', "e.csv:3: Value with unterminated quote found."),
        (
            EVENTS + "u,c,yesterday\nu,b,nan\n",
            "e.csv: row 4: column `time`: `yesterday` is neither unix seconds nor a date",
        ),
        ("user,item,Item\nu,a,b\n", "e.csv:1: two columns are called `Item`; rename one"),
        (
            "user,item\nu,é\n".encode("latin-1"),
            "e.csv:2: is not UTF-8 text; name its `encoding`, or convert it first",
        ),
        (
            "usér,item\nu,a\n".encode("latin-1"),
            "e.csv:1: is not UTF-8 text; name its `encoding`, or convert it first",
        ),
    ],
)
def test_wrong_csv(tmp_path: Path, content: str | bytes, message: str) -> None:
    found = failing(write(tmp_path / "e.csv", content), write(tmp_path / "i.csv", ITEMS))
    assert found == f"{tmp_path}/{message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "e.jsonl: holds no usable row"),
        ('{"user": 1, "item": "a"}\n{"user": 2, "item":\n', "e.jsonl:2: malformed JSON at column 20: Expecting value"),
        (
            '{"user": 1, "item": "a"}\n{"user": 2, "it',
            "e.jsonl:2: malformed JSON at column 13: Unterminated string starting at",
        ),
        ('[{"user": 1}]', 'e.jsonl:1: each line must be one JSON object, not [{"user": 1}]'),
        ('{"user": 1, "item": "a"}\n3\n', "e.jsonl:2: each line must be one JSON object, not 3"),
        (
            b'{"user": 1, "item": "\xe9"}\n',
            "e.jsonl:1: is not UTF-8 text; name its `encoding`, or convert it first",
        ),
        ('{"user": 1, "thing": "a"}\n', "e.jsonl: no column `item` for `columns.item`. The columns are: user, thing"),
        (
            '{"user": 1, "item": ["a"], "time": 3}\n',
            "e.jsonl: column `item` holds lists, so `time` must hold lists as long",
        ),
        ('{"user": 1, "item": "a", "time": [3]}\n', "e.jsonl: column `time` holds lists, but `item` does not"),
        ('{"user": [1], "item": "a"}\n', "e.jsonl: column `user` holds lists, but a row has one user"),
        (
            '{"user": 1, "item": ["a"], "time": [3]}\n{"user": 1, "item": ["a", "b"], "time": [3]}\n',
            "e.jsonl: row 2: a list of 2 items stands beside a list of 1",
        ),
        (
            '{"user": 1, "item": ["a"], "time": [3]}\n{"user": 1, "item": ["a", "b"], "time": [3, "?"]}\n',
            "e.jsonl: row 2: column `time`: `?` is neither unix seconds nor a date",
        ),
    ],
)
def test_wrong_json_lines(tmp_path: Path, content: str | bytes, message: str) -> None:
    found = failing(write(tmp_path / "e.jsonl", content), write(tmp_path / "i.csv", ITEMS))
    assert found == f"{tmp_path}/{message}"


@pytest.mark.parametrize(
    ("column", "values", "titles"),
    [
        ("title", pa.array([b"Tea", "Größe".encode()], pa.binary()), ["Größe", "Tea"]),
        ("title", pa.array([[b"Tea"], [b"a", b"b"]]), ["Tea", "a > b"]),
        ("title", pa.array([10**15, 2 * 10**15], UTC), ["2001-09-09 01:46:40+00", "2033-05-18 03:33:20+00"]),
        ("title", pa.array([[0], [10**6]], pa.list_(UTC)), ["1970-01-01 00:00:00+00", "1970-01-01 00:00:01+00"]),
        ("title", pa.array([[0], [1]], pa.list_(pa.time64("us"))), ["00:00:00", "00:00:00.000001"]),
        ("user", pa.array([b"u", b"u"], pa.binary()), ["A", "B"]),
        ("time", pa.array([10**15, 10**15 + 1], UTC), ["A", "B"]),
        ("time", pa.array([b"5", b"4"], pa.binary()), ["A", "B"]),
    ],
)
def test_text_of_parquets_other_types(tmp_path: Path, column: str, values: pa.Array, titles: list[str]) -> None:
    columns = {"user": ["u", "u"], "item": ["a", "b"], "time": [1, 2], "title": ["A", "B"], column: values}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    domain = made(tmp_path / "e.parquet")
    assert domain.sequences.users == ["u"]
    assert domain.catalogue.titles == titles


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "title",
            pa.array([True]),
            "column `title` (BOOLEAN), item `a`: `True` (bool) is no text; write it as text (UTF",
        ),
        (
            "title",
            pa.array([[False]]),
            "column `title` (BOOLEAN[]), item `a`: `False` (bool) is no text; write it as text",
        ),
        (
            "title",
            pa.array([b"\xff"]),
            "column `title` (BLOB), item `a`: is not UTF-8; write it as text (UTF-8), or choose",
        ),
        (
            "user",
            pa.array([b"\xff"]),
            "column `user` is of type BLOB and holds what is no text; write it as text (UTF-8)",
        ),
        (
            "user",
            pa.array([{"id": 1}]),
            "column `user` is of type STRUCT(id BIGINT) and holds what is no text; write it",
        ),
        (
            "item",
            pa.array([[["a"]]]),
            "column `item` is of type VARCHAR[][] and holds what is no text; write it as text",
        ),
        (
            "item",
            pa.array([True]),
            "column `item` is of type BOOLEAN and holds what is no text; write it as text (UTF-8",
        ),
        (
            "time",
            pa.array([True]),
            "column `time` is of type BOOLEAN and holds what is no text; write it as text (UTF-8",
        ),
    ],
)
def test_what_is_no_text_in_parquet(tmp_path: Path, column: str, values: pa.Array, message: str) -> None:
    pq.write_table(
        pa.table({"user": ["u"], "item": ["a"], "time": [1], "title": ["A"], column: values}), tmp_path / "e.pq"
    )
    assert failing(tmp_path / "e.pq").startswith(f"{tmp_path}/e.pq: {message}")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"user": True},
            "e.jsonl: column `user` is of type BOOLEAN and holds what is no text; write it as text (UTF-8)",
        ),
        (
            {"user": {"id": 1}},
            "e.jsonl: column `user` is of type STRUCT and holds what is no text; write it as text (UTF",
        ),
        (
            {"item": ["a"]},
            "e.jsonl: column `item` is of type [] and others and holds what is no text; write it as text",
        ),
        (
            {"title": ["x", [True]]},
            "e.jsonl: column `title` ([] and others), item `a`: `True` (bool) is no text; write it",
        ),
        ({"title": "\ud800"}, "e.jsonl"),
    ],
)
def test_what_is_no_text_in_json(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    rows = [{"user": "u", "item": "b", "title": "B"}, {"user": "u", "item": "a", "title": "A", **record}]
    assert failing(write(tmp_path / "e.jsonl", json_lines(rows))).startswith(f"{tmp_path}/{message}")


def long(content: str) -> str:
    """With the word LONG spelt out, which names of tests need not be."""
    return content.replace("LONG", "x" * LONG)


LONG = 2_200_000  # characters


@pytest.mark.parametrize(
    ("name", "content", "titles"),
    [
        ("e.csv", "user,item,title\ru,a,Tea\rv,b,Cup\r", ["Cup", "Tea"]),
        ("e.csv", "user,item,title\r\nu,a,Tea\nv,b,Cup\r\n", ["Cup", "Tea"]),
        ("e.csv", 'user,item,title\nu,a,"Tea\r\nred"\nv,b,Cup', ["Cup", "Tea red"]),
        ("e.tsv.gz", "user\titem\ttitle\nu\ta\tTea\r\nv\tb\tCup\r", ["Cup", "Tea"]),
        ("e.csv", '"us\ner",item,title\nu,a,Tea\n', ["Tea"]),
        ("e.csv", "user,item,title\nu,a,LONG\n", ["LONG"]),
        ("e.jsonl", '{"user": "u", "item": "a", "title": "Tea", "x": {"k": 1, "K": 2}}\n', ["Tea"]),
        ("e.jsonl", '{"user": "u", "item": "a", "Title": "Cup", "title": "Tea"}\n', ["Tea"]),
        ("e.jsonl", '{"user": "u", "item": "a", "title": "Tea", "": 1, "title_1": "x"}\n', ["Tea"]),
        (
            "e.jsonl",
            "".join(f'{{"user": "u", "item": "a", "title": "Tea", "k{n}": 1, "l{n}": 1}}\n' for n in range(201)),
            ["Tea"],
        ),
    ],
)
def test_files_that_are_odd_but_sound(tmp_path: Path, name: str, content: str, titles: list[str]) -> None:
    columns = {"user": "us er"} if "us\ner" in content else {}
    assert made(write(tmp_path / name, long(content)), columns=columns).catalogue.titles == list(map(long, titles))


def test_columns_that_differ_in_capitals_only(tmp_path: Path) -> None:
    row = {"user": "u", "item": "a", "Title": "Cup", "title": "Tea"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "e.parquet")
    assert failing(tmp_path / "e.parquet") == f"{tmp_path}/e.parquet: two columns are called `title`; rename one"
    path = write(tmp_path / "e.jsonl", json_lines([row]))
    fields = {"Title": "Title", "Other": "title"}
    assert failing(path, fields=fields) == f"{path}: two columns are called `title`; rename one"
    assert made(path, fields={"Title": "Title"}).catalogue.titles == ["Cup"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "e.jsonl",
            '{"user": "u", "item": "a", "title": ' + "[" * 1200 + "]" * 1200 + "}",
            "e.jsonl: column `title` (VARCHAR[][]), item `a`: is nested too deep; write it",
        ),
        ("e.csv", "user,LONG\n", "e.csv:1: the header cannot be read (field larger than field limit"),
        ("e.csv", "user,item,title\nu,a,LONGLONGLONGLONGLONGLONGLONGLONG\n", "e.csv:2: a line of more than 16 MB"),
        ("e.csv", 'user,item,title\nu,a,"LONG\n', "e.csv:2: Value with unterminated quote found."),
        ("e.csv", "user,item,title\nu,a,LONG,1\n", "e.csv:2: Expected Number of Columns: 3 Found: 4"),
        (
            "e.csv",
            f"{','.join(f'column{n}' for n in range(99))}\n",
            "e.csv: no column `user` for `columns.user`. The",
        ),
        (
            "e.csv",
            "user,item,time,title\nu,a,\x1b]0;x\x07,T\n",
            "e.csv: row 1: column `time`: `\\x1b]0;x\\x07` is neither",
        ),
    ],
)
def test_messages_name_the_place_and_echo_little(tmp_path: Path, name: str, content: str, message: str) -> None:
    said = failing(write(tmp_path / name, long(content)))
    assert said.startswith(f"{tmp_path}/{message}")
    assert len(said) < 600
    assert said.isprintable()


def test_one_changed_byte_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"user": ["u", "v"], "item": ["a", "b"], "time": [1, 2], "title": ["A", "B"]}), path)
    whole = path.read_bytes()
    for at in range(4, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with suppress(InputError):  # nothing else
            made(path)


def test_a_line_that_breaks_far_down_is_named(tmp_path: Path) -> None:
    lines = ['{"user": "u", "item": "a"}'] * 40_000
    lines[30_000] = '{"user": "u", "item" "a"}'
    for name in ("e.jsonl", "e.jsonl.gz"):
        message = failing(write(tmp_path / name, "\n".join(lines)), write(tmp_path / "i.csv", ITEMS))
        assert message == f"{tmp_path}/{name}:30001: malformed JSON at column 22: Expecting ':' delimiter"


@pytest.mark.parametrize("name", ["e.csv.gz", "e.jsonl.gz"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_a_truncated_gzip_file(tmp_path: Path, name: str, share: float) -> None:
    rows = [{"user": i * 7919 % 10007, "item": i * 31 % 1009, "title": f"T{i * 31 % 1009}"} for i in range(5000)]
    if name == "e.csv.gz":
        content = "user,item,title\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows)
    else:
        content = json_lines(rows)
    whole = gzip.compress(content.encode())
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    assert failing(tmp_path / name) == f"{tmp_path / name}: the gzip file ends too early (truncated); download it again"


def test_damaged_gzip_and_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "e.csv.gz").write_text(EVENTS)
    assert "e.csv.gz: not a sound gzip file (Not a gzipped file (b'us')); download it again" in failing(
        tmp_path / "e.csv.gz"
    )
    noisy = bytearray(gzip.compress(EVENTS.encode() * 500))
    noisy[30:40] = bytes(10)
    (tmp_path / "e.csv.gz").write_bytes(noisy)
    assert "e.csv.gz: not a sound gzip file (" in failing(tmp_path / "e.csv.gz")
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"user": [1], "item": [2], "title": ["x"]}), path)
    path.write_bytes(path.read_bytes()[:-30])
    assert failing(path).startswith(f"{path}: not a readable parquet file: ")


def test_other_wrong_files(tmp_path: Path) -> None:
    events, items = write(tmp_path / "e.csv", EVENTS), write(tmp_path / "i.csv", ITEMS)
    assert failing(tmp_path / "none.csv") == f"{tmp_path}/none.csv: no such file"
    assert failing(events, tmp_path / "none.csv") == f"{tmp_path}/none.csv: no such file"
    assert failing(tmp_path) == f"{tmp_path}: is a folder, not a file"
    for name in ("e.txt", "e", "e.gz"):
        path = write(tmp_path / name, EVENTS)
        assert failing(path).startswith(f"{path}: unknown kind of table; its name must end in one of .csv, .tsv,")
    assert failing(events) == (
        f"{events}: no column `title`; name the columns with the items' text by `fields: {{Title: COLUMN}}`. "
        "The columns are: user, item, time"
    )
    assert failing(events, items, fields={"Title": "titel"}) == (
        f"{items}: no column `titel` for `fields.Title`, did you mean `title`? The columns are: item, title"
    )
    assert failing(events, items, columns={"time": "when"}).startswith(
        f"{events}: no column `when` for `columns.time`."
    )
    nameless = write(tmp_path / "n.csv", "id,title\na,Apple\n")
    assert failing(events, nameless) == f"{nameless}: no column `item` for `the item id`. The columns are: id, title"
    strangers = write(tmp_path / "s.csv", "item,title\n1.0,Apple\n")
    assert failing(events, strangers) == f"{strangers}: has no record of any item in e.csv, such as `a`"
    broken = write(tmp_path / "i.jsonl", json.dumps({"item": "a", "title": "A"}) + "\n{\n")
    assert failing(events, broken).startswith(f"{broken}:2: malformed JSON at column")
    empty = write(tmp_path / "empty.csv", "item,title\na,\nb,\u200b\nc,\n")
    assert "e.csv: no usable row is left of 3: 3 item without text" in failing(events, empty)


def test_files_without_a_header(tmp_path: Path) -> None:
    """Columns are called by their place, and the id by another one in each file."""
    events = write(tmp_path / "e.csv", "1,u,a\n2,u,b\n")
    items = write(tmp_path / "i.tsv", "Apple\ta\nBread\tb\n")
    columns = {"time": None, "user": "column1", "item": "column2", "record": "column1"}
    options: dict[str, Any] = {"columns": columns, "fields": {"Title": "column0"}}
    domain = made(events, items, headerless=["interactions", "items"], **options)
    assert histories(domain) == {"u": ["Apple", "Bread"]}
    headed = write(tmp_path / "h.tsv", "name\tcode\nApple\ta\nBread\tb\n")
    options = {"columns": {**columns, "record": "code"}, "fields": {"Title": "name"}}
    assert histories(made(events, headed, headerless=["interactions"], **options)) == {"u": ["Apple", "Bread"]}
    assert "no column `kode` for `columns.record`, did you mean `code`?" in failing(
        events, headed, headerless=["interactions"], columns={**columns, "record": "kode"}, fields={"Title": "name"}
    )
