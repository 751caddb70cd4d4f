"""The service: the lists of the library, searches, known users; and a line for each wrong request."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from fastapi.testclient import TestClient

from calrec_lite.errors import InputError, RunError
from calrec_lite.package.layout import open_package
from calrec_lite.recommend import Recommender
from calrec_lite.run import Run
from calrec_lite.serve.app import Settings, create_app
from calrec_lite.serve.known import KnownUsers
from calrec_lite.serve.lists import Lists, Wanted
from calrec_lite.serve.server import names_of
from tests.evaluate.conftest import HOSTILE
from tests.serve.conftest import STRATEGIES

TOKEN = "a token of the tests"


def recommended(client: TestClient, **request: Any) -> dict[str, Any]:
    answer = client.post("/recommend", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lists_are_those_of_a_recommender_opened_for_the_strategy(
    client: TestClient, lists: Lists, hostile_export: Path, strategy: str
) -> None:
    history = lists.recommender.catalogue.titles[3:6]
    own = Recommender.from_pretrained(hostile_export, strategy=strategy).recommend([history], 7)[0]
    made = recommended(client, history=history, strategy=strategy, k=7)
    assert made["strategy"] == strategy
    assert [item["item"] for item in made["items"]] == [item.item for item in own]
    assert [item["score"] for item in made["items"]] == pytest.approx([item.score for item in own], abs=1e-4)
    assert [item["rank"] for item in made["items"]] == list(range(1, 8))
    assert all(item["title"] == item["fields"]["Title"] for item in made["items"])


@pytest.mark.parametrize("strategy", ["fused", "fast"])
def test_parts_add_up_to_the_score(client: TestClient, strategy: str) -> None:
    names = set(client.get("/about").json()["strategies"][STRATEGIES.index(strategy)]["weights"])
    assert ("likelihood" in names) == (strategy == "fused")
    for history in ([{"item": "3"}, {"item": "4"}], []):
        for item in recommended(client, history=history, strategy=strategy)["items"]:
            assert sum(item["parts"].values()) == pytest.approx(item["score"], abs=1e-4)
            assert set(item["parts"]) <= names


def test_a_name_is_a_title_an_id_or_a_number(client: TestClient, lists: Lists) -> None:
    title = lists.recommender.catalogue.titles[lists.recommender.lookup.find_id("12")]
    made = [recommended(client, history=[name])["items"] for name in (title, {"item": "12"}, 12)]
    assert made[0] == made[1] == made[2]
    unknown = recommended(client, history=["no such thing", title])
    assert unknown["unknown"] == ["no such thing"]
    limited = recommended(client, history=[12], candidates=[13, {"item": "14"}, 15], deny=[14])
    assert {item["item"] for item in limited["items"]} == {"13", "15"}


def test_many_at_once_get_each_their_own_list(client: TestClient) -> None:
    """As alone, though they were batched: histories of several lengths, two strategies, and one that is refused."""
    requests = [
        {"history": [{"item": str((n + i) % 30)} for i in range(n % 5)], "strategy": ("fast", "fused")[n % 2], "k": 5}
        for n in range(40)
    ]
    alone = [recommended(client, **request)["items"] for request in requests]
    requests.append({"history": [], "candidates": ["no such thing"]})
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda request: client.post("/recommend", json=request), requests))
    assert [a.status_code for a in answers] == [200] * 40 + [422]
    for one, answer in zip(alone, answers):
        assert [item["score"] for item in answer.json()["items"]] == pytest.approx([i["score"] for i in one], abs=1e-4)


WRONG = [
    ("POST", "/recommend", "{", 422, "the body is no JSON"),
    ("POST", "/recommend", "[]", 422, "the body"),
    ("POST", "/recommend", "{}", 422, "`history`: Field required"),
    ("POST", "/recommend", '{"history": "Heat"}', 422, "`history`: Input should be a valid list"),
    ("POST", "/recommend", '{"history": [1.5]}', 422, "`history.0`: write a title, or an id"),
    ("POST", "/recommend", '{"history": ["Heat", null]}', 422, "`history.1`: write a title, or an id"),
    ("POST", "/recommend", '{"history": [true]}', 422, "`history.0`: write a title, or an id"),
    ("POST", "/recommend", '{"history": ["\\ud800"]}', 422, "`history.0`"),
    ("POST", "/recommend", '{"history": [{"item": "no"}]}', 404, "no item has the id 'no'"),
    ("POST", "/recommend", '{"history": ["x"], "strict": true}', 422, "not in the catalogue: 'x'"),
    ("POST", "/recommend", '{"history": [], "k": 0}', 422, "`k`: Input should be greater"),
    ("POST", "/recommend", '{"history": [], "k": 1e9}', 422, "`k`: Input should be less"),
    ("POST", "/recommend", '{"history": [], "k": NaN}', 422, "`k`"),
    ("POST", "/recommend", '{"history": [], "strategy": "best"}', 422, "`strategy`: here are fused, fast"),
    ("POST", "/recommend", '{"history": [], "deny": ["no such"]}', 422, "no title or id"),
    ("POST", "/recommend", '{"history": [], "kk": 3}', 422, "`kk`: Extra inputs"),
    ("POST", "/recommend", json.dumps({"history": ["x" * 5000]}), 422, "`history.0`"),
    ("POST", "/recommend", json.dumps({"history": ["x"] * 3000}), 422, "`history`: List should have at most"),
    ("POST", "/recommend", json.dumps({"history": ["x" * 2_000_000]}), 413, None),
    ("POST", "/recommend", b"\xff\xfe", 422, "the body"),
    ("GET", "/recommend", None, 405, "Method Not Allowed"),
    ("GET", "/similar", None, 422, "`item`: Field required"),
    ("GET", "/similar?item=no", None, 404, "no item has the id 'no'"),
    ("GET", "/similar?item=1&k=x", None, 422, "`k`"),
    ("GET", "/items?limit=0", None, 422, "`limit`"),
    ("GET", "/user?name=nobody", None, 404, "no known user"),
    ("GET", "/nowhere", None, 404, "Not Found"),
    ("GET", "/../../etc/passwd", None, 404, "Not Found"),
    ("GET", "/swagger/../server.py", None, 404, "Not Found"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: f"{w[1][:20]} {str(w[2])[:40]}")
def test_a_wrong_request_gets_a_line(client: TestClient, wrong: tuple) -> None:
    method, path, body, status, said = wrong
    answer = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in ((status, 400) if isinstance(body, bytes) else (status,)), answer.text
    assert "\n" not in answer.text
    assert len(answer.text) < 500
    if said is not None:
        assert said in answer.json()["error"]
    assert client.get("/health").json()["status"] == "ok"


def test_items_by_words(client: TestClient, lists: Lists) -> None:
    titles, counts = lists.recommender.catalogue.titles, lists.package.counts
    title = titles[20]
    assert client.get("/items", params={"q": title.upper()}).json()["items"][0]["title"] == title
    found = client.get("/items", params={"q": title.split()[0][:3], "limit": 30}).json()
    assert found["items"]
    assert not found["near"]
    assert all(title.split()[0][:3] in item["title"] for item in found["items"])
    best = client.get("/items").json()["items"][0]
    assert counts[lists.recommender.lookup.find_id(best["item"])] == counts.max()
    typo = client.get("/items", params={"q": f"{title}x"}).json()
    assert typo["near"]
    assert title in [item["title"] for item in typo["items"]]
    assert client.get("/items", params={"q": "17"}).json()["items"][0]["item"] == "17"


def test_similar_items(client: TestClient, lists: Lists, hostile_export: Path) -> None:
    found = client.get("/similar", params={"item": "5", "k": 4}).json()
    assert found["by"] == "text"
    assert len(found["items"]) == 4
    scores = [item["score"] for item in found["items"]]
    assert scores == sorted(scores, reverse=True)
    assert "5" not in [item["item"] for item in found["items"]]
    by_vectors = Lists(Recommender.from_pretrained(hostile_export, strategy="dense"), lists.package, ["dense"])
    by, nearest = by_vectors.similar(5, 3)
    vectors = by_vectors.recommender.strategies.item_vectors.vectors
    assert by == "vectors"
    assert nearest[0] == (nearest[0][0], pytest.approx(float((vectors @ vectors[5]).topk(2).values[1])))
    by, nearest = Lists(Recommender.from_pretrained(hostile_export, strategy="beam"), lists.package, ["beam"]).similar(
        5, 3
    )
    assert by == "words"
    assert len(nearest) == 3


def test_known_users_and_what_came_next(client: TestClient, fused_run: Run) -> None:
    domain = fused_run.domain("shop")
    names = client.get("/users", params={"q": "1", "limit": 5}).json()["users"]
    assert names
    assert all(name.startswith("1") for name in names)
    case = client.get("/user", params={"name": names[0]}).json()
    history, target = domain.case(domain.sequences.users.index(names[0]), "test")
    assert [item["item"] for item in case["history"]] == [domain.catalogue.ids[i] for i in history]
    assert case["truth"]["item"] == domain.catalogue.ids[target]


def test_known_users_are_of_the_exports_own_data(fused_run: Run, lists: Lists) -> None:
    other = lists.package.info.model_copy(update={"fingerprint": "1" * 64})
    with pytest.raises(InputError, match="not what the export was made of"):
        KnownUsers.of(fused_run, type(lists.package)(**{**vars(lists.package), "info": other}))


def test_without_the_token_nothing_is_said(lists: Lists, known: KnownUsers) -> None:
    with TestClient(create_app(lists, Settings(token=TOKEN), known)) as client:
        paths = ("/about", "/items", "/users", "/similar?item=1", "/user?name=1")
        for headers in ({}, {"Authorization": "Bearer another"}, {"Authorization": f"Basic {TOKEN}"}):
            for path in paths:
                assert client.get(path, headers=headers).status_code == 401
            refused = client.post("/recommend", json={"history": []}, headers=headers)
            assert refused.status_code == 401
            assert refused.json() == {"error": "send the token: Authorization: Bearer TOKEN"}
        allowed = {"Authorization": f"Bearer {TOKEN}"}
        assert all(client.get(path, headers=allowed).status_code == 200 for path in paths)
        assert client.post("/recommend", json={"history": []}, headers=allowed).status_code == 200
        assert client.get("/health").status_code == 200


def test_another_name_for_the_service_is_refused(lists: Lists) -> None:
    """A stranger's page whose name was made to lead here could else read the answers."""
    app = create_app(lists, Settings(hosts=["localhost", "127.0.0.1"]))
    with TestClient(app, base_url="http://localhost:8000") as client:
        assert client.get("/about").status_code == 200
        assert client.get("/about", headers={"Host": "evil.example"}).status_code == 400
    with TestClient(create_app(lists, Settings(hosts=names_of("::1"))), base_url="http://[::1]:8000") as client:
        assert client.get("/about").status_code == 200


def test_too_many_and_too_slow(lists: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    entered, go_on = threading.Event(), threading.Event()

    def slow(self: Lists, wanted: list[Wanted]) -> Any:
        entered.set()
        assert go_on.wait(20)
        return [[] for _ in wanted]

    monkeypatch.setattr(Lists, "__call__", slow)
    with TestClient(create_app(lists, Settings(room=1, timeout=1.0))) as client, ThreadPoolExecutor(4) as threads:
        ask = {"history": []}
        first = threads.submit(client.post, "/recommend", json=ask)
        assert entered.wait(10)
        second = threads.submit(client.post, "/recommend", json=ask)
        while client.get("/health").json()["waiting"] < 1:
            pass
        refused = client.post("/recommend", json=ask)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"].startswith("busy")
        assert [first.result().status_code, second.result().status_code] == [504, 504]
        go_on.set()


@pytest.mark.parametrize(("error", "status"), [(RunError("no memory"), 503), (ZeroDivisionError("x"), 500)])
def test_failures_are_answered(lists: Lists, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int) -> None:
    def fail(self: Lists, wanted: list[Wanted]) -> Any:
        raise error

    monkeypatch.setattr(Lists, "__call__", fail)
    with TestClient(create_app(lists, Settings()), raise_server_exceptions=False) as client:
        answer = client.post("/recommend", json={"history": []})
        assert answer.status_code == status
        assert answer.json()["error"]


def test_pages_ask_nobody_else(client: TestClient) -> None:
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert not re.findall(r"https?://", page.text)
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe-eval" not in policy
        assert "script-src 'unsafe-inline'" not in policy
    assert client.get("/about").headers["x-content-type-options"] == "nosniff"
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/recommend", "/similar", "/items", "/users", "/user", "/about", "/health"}
    assert HOSTILE not in client.get("/").text


def test_strategies_that_were_not_opened(fused_export: Path) -> None:
    fast = Lists.open(fused_export, ["fast"])
    assert fast.recommender.strategies.model is None
    assert fast.strategies == ("fast",)
    with pytest.raises(InputError, match="the LLM is not loaded"):
        fast.recommender.recommend([[]], strategy="beam")
    with pytest.raises(InputError, match="write one of"):
        Lists.open(fused_export, ["best"])
    beam = Recommender.from_pretrained(fused_export, strategy="beam")
    with pytest.raises(InputError, match="its fitted weights are not loaded"):
        beam.recommend([[]], strategy="fast")
    assert open_package(fused_export).options.strategy == "fused"
