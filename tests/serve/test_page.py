"""The page in a real browser: what a person does on it, that markup stays text, and that it asks nobody else."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

import uvicorn

from calrec_lite.serve.app import Settings, create_app
from calrec_lite.serve.known import KnownUsers
from calrec_lite.serve.lists import Lists
from tests.evaluate.conftest import HOSTILE

TOKEN = "a token of the tests"


class Served:
    """The application on a port, in a thread."""

    def __init__(self, lists: Lists, known: KnownUsers, token: str | None = None) -> None:
        opened = socket.socket()
        opened.bind(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{opened.getsockname()[1]}/"
        settings = Settings(token, ["127.0.0.1"])
        self.server = uvicorn.Server(uvicorn.Config(create_app(lists, settings, known), log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [opened]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


@pytest.fixture(scope="module")
def served(browser: Any, lists: Lists, known: KnownUsers) -> Iterator[Served]:
    opened = Served(lists, known)
    yield opened
    opened.end()


class Opened:
    """A page, the requests that were made, and what was said on the console or in a dialog."""

    def __init__(self, browser: Any, address: str) -> None:
        self.page, self.requests, self.complaints = browser.new_page(), list[str](), list[str]()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.goto(address, wait_until="networkidle")

    def _dismiss(self, dialog: Any) -> None:
        self.complaints.append(dialog.message)
        dialog.dismiss()

    def settled(self) -> None:
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_selector("#lists:not(.busy)")

    def close(self, address: str) -> None:
        """Nothing was said, and nobody else was asked."""
        assert self.complaints == []
        assert {url for url in self.requests if not url.startswith((address, "data:"))} == set()
        self.page.close()


def test_a_history_by_clicking(browser: Any, served: Served, lists: Lists) -> None:
    from playwright.sync_api import expect

    opened = Opened(browser, served.address)
    page = opened.page
    cards = page.locator("#lists section")
    assert [card.locator("h2").inner_text() for card in cards.all()] == ["fused", "fast", "beam"]
    assert page.locator("#about").inner_text() == "30 items of shop"
    assert HOSTILE in page.locator("main").inner_text()  # as text; a script that ran would have opened a dialog

    plain = lists.recommender.catalogue.titles[20]
    page.fill("#search", plain)
    page.locator("#found button", has_text=plain).first.click()
    opened.settled()
    page.fill("#search", HOSTILE[:20])
    expect(page.locator("#found li")).to_have_count(10)
    page.locator("#found button").first.click()
    opened.settled()
    assert page.locator("#history li").count() == 2
    shown = cards.first.locator("li .title").all_inner_texts()
    history = [lists.package.ids[20], lists.package.ids[0]]
    texts = [lists.recommender.catalogue.texts[lists.recommender.lookup.find_id(i)] for i in history]
    chosen = page.locator("#history .title").all_inner_texts()
    assert chosen[0] == plain
    if chosen[1] == lists.recommender.catalogue.titles[0]:
        assert shown == [item.title for item in lists.recommender.recommend([texts], strategy="fused")[0]]

    cards.first.locator("summary").first.click()
    parts = cards.first.locator("details[open] td").all_inner_texts()
    assert "tower" in parts
    assert "likelihood" in parts
    cards.first.locator("button", has_text="similar").first.click()
    expect(page.locator("#found-note")).to_contain_text("Most like")
    page.locator("#toggles input[type=checkbox]").nth(1).click()
    opened.settled()
    assert [card.locator("h2").inner_text() for card in cards.all()] == ["fused", "beam"]
    page.locator("#history button").first.click()
    opened.settled()
    assert page.locator("#history li").count() == 1
    page.click("#clear")
    opened.settled()
    assert page.locator("#history li").count() == 0
    opened.close(served.address)


def test_a_known_user_and_what_came_next(browser: Any, served: Served, known: KnownUsers, lists: Lists) -> None:
    opened = Opened(browser, served.address)
    page = opened.page
    name = known.named("", 1)[0]
    history, truth = known.case(name)
    page.locator("#users button").first.click()
    opened.settled()
    assert page.locator("#history-title").inner_text() == f"History of user {name}"
    title = lists.recommender.catalogue.titles[truth]
    assert title in page.locator("#truth").inner_text()
    page.fill("#toggles input[type=number]", "30")
    page.locator("#toggles input[type=number]").blur()
    opened.settled()
    hits = page.locator("#lists li.hit")
    said = page.locator("#lists .head small").all_inner_texts()
    assert hits.count() == sum(text.startswith("truth at rank") for text in said)
    assert hits.count() == (0 if truth in history else 3)
    assert all(title in text for text in hits.all_inner_texts())
    opened.close(served.address)


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_sticks_out(browser: Any, served: Served, width: int) -> None:
    opened = Opened(browser, served.address)
    opened.page.set_viewport_size({"width": width, "height": 900})
    opened.page.locator("#found button").first.click()
    opened.settled()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.close(served.address)


def test_the_page_asks_for_the_token(browser: Any, lists: Lists, known: KnownUsers) -> None:
    guarded = Served(lists, known, TOKEN)
    opened = Opened(browser, guarded.address)
    page = opened.page
    assert page.locator("#token-form").is_visible()
    assert page.locator("#lists section").count() == 0
    page.fill("#token", TOKEN)
    page.press("#token", "Enter")
    page.wait_for_selector("#lists section")
    assert not page.locator("#token-form").is_visible()
    assert TOKEN not in page.url
    opened.complaints[:] = [text for text in opened.complaints if "401" not in text]  # the browser's own note of it
    opened.close(guarded.address)
    guarded.end()


def test_the_openapi_page_draws_itself_from_here(browser: Any, served: Served) -> None:
    opened = Opened(browser, f"{served.address}docs")
    opened.page.wait_for_selector(".opblock-summary-path")
    paths = [text.replace("\u200b", "") for text in opened.page.locator(".opblock-summary-path").all_inner_texts()]
    assert "/recommend" in paths
    opened.close(served.address)


def test_the_listeners_would_notice(browser: Any, served: Served) -> None:
    """The policy stops a script and an image that another's text would bring in, and says so on the console."""
    opened = Opened(browser, served.address)
    opened.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x.png\">')")
    opened.page.wait_for_timeout(300)
    assert any("Content Security Policy" in text for text in opened.complaints)
    opened.page.close()
