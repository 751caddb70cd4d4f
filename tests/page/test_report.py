"""The report of a run: what it says, that nothing in it is taken for markup, and that a real browser opens it alone."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.page.report import _strongest, write_report
from calrec_lite.recipe import resolved
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from tests.evaluate.conftest import HOSTILE


@pytest.fixture(scope="module")
def measured(two_stages: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained and evaluated; its wording holds markup, which a tokenizer reads like any other text."""
    values = {**two_stages, "text": {**two_stages["text"], "first": f"</pre>{HOSTILE}"}}
    run = Run.start(check_recipe(values), tmp_path_factory.mktemp("runs"))
    train_run(run)
    evaluate_run(run)
    return run


class Words(HTMLParser):
    """The page's text, and every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags = "", list[tuple[str, dict[str, str | None]]]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_says_what_was_measured(measured: Run) -> None:
    page = Words(write_report(measured).read_text(encoding="utf-8"))
    results = json.loads((measured.evaluation / "metrics.json").read_text())
    for name, metrics in results["systems"].items():
        assert name in page.text
        assert f"{metrics['ndcg@10']['value']:.4f}" in page.text
    for name, facts in measured.stage_metrics().items():
        assert f"Stage {name}" in page.text
        for when in ("before", "after", "merged", "handed_on"):
            assert f"{facts[f'valid_nats_{when}']:.4f}" in page.text
    assert len(re.findall(r"User \d+\n", page.text)) == 20
    assert "log-probability" in page.text  # why
    assert "Took next" in page.text
    assert measured.domain("other").fingerprint[:16] in page.text
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 2 + 2 * 8 + 2 * 2
    assert page.tags.count(("tr", {"class": "subject"})) == 1


def test_a_models_other_lists_are_no_baseline(measured: Run) -> None:
    """Lists that a benchmark adds to an evaluation, by rerank say, are not what a model has to beat."""
    results = json.loads((measured.evaluation / "metrics.json").read_text())
    perfect = {metric: {"value": 1.0, "low": 1.0, "high": 1.0} for metric in results["systems"]["final"]}
    systems = {**results["systems"], "rerank": perfect}
    assert _strongest({"systems": systems}) in ("popularity", "transitions")
    assert _strongest({"systems": {"base": perfect, "rerank": perfect}}) is None


def test_it_holds_the_whole_recipe(measured: Run) -> None:
    page = write_report(measured).read_text(encoding="utf-8")
    shown = re.search(r'<pre class="recipe">(.*?)</pre>', page, re.DOTALL)
    assert shown
    assert yaml.safe_load(html.unescape(shown[1])) == resolved(measured.recipe)


def test_the_lists_are_the_measured_ones(measured: Run) -> None:
    import pyarrow.parquet as pq

    page = write_report(measured).read_text(encoding="utf-8")
    titles = dict(zip(measured.domain("shop").catalogue.ids, measured.domain("shop").catalogue.titles))
    rows = {
        row["user"]: row
        for row in pq.read_table(measured.evaluation / "rankings.parquet").to_pylist()
        if row["system"] == "final"
    }
    sections = re.findall(r"<h3>User (\w+)</h3>(.*?)</section>", page, re.DOTALL)
    assert {user for user, _ in sections} == set(rows)
    for user, section in sections:
        shown = Words(section.split("Recommended")[1])
        listed = re.findall(r"<li[^>]*>(.*?)(?: <small>|</li>)", section.split("Recommended")[1])
        assert [Words(title).text for title in listed] == [titles[i] for i in rows[user]["list"]]
        rank = rows[user]["rank"]
        assert (f"rank {rank}" if rank else "not in the list") in shown.text
        assert section.count('class="hit"') == (1 if rank else 0)


def hostile(measured: Run, to: Path, title: str = HOSTILE) -> Run:
    """The run again, its items' titles now markup."""
    shutil.copytree(measured.folder, to, ignore=shutil.ignore_patterns("merged"))
    for name in ("shop", "other"):
        domain = Domain.open(to / "domains" / name)
        for item in domain.catalogue.fields:
            item["Title"] = f"{title} {item['Title']}"
        Domain(HOSTILE if name == "other" else name, domain.catalogue, domain.sequences, domain.info).save(
            to / "domains" / name
        )
    return Run.open(to)


def test_other_peoples_text_is_never_markup(measured: Run, tmp_path: Path) -> None:
    page = Words(write_report(hostile(measured, tmp_path / "run"), reasons=False).read_text(encoding="utf-8"))
    assert page.text.count(HOSTILE) > 100
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "link", "object") and tag != "link"]
    assert "without reasons" in page.text
    assert [attributes["href"] for tag, attributes in page.tags if tag == "link"] == ["data:,"]
    assert all((attributes["href"] or "").startswith("#") for tag, attributes in page.tags if tag == "a")


def test_long_titles_and_names_are_cut(measured: Run, tmp_path: Path) -> None:
    run = hostile(measured, tmp_path / "run", "x" * 5000)
    page = Words(write_report(run, reasons=False).read_text(encoding="utf-8"))
    assert page.text.count(f"{'x' * 200}...") > 100
    assert "x" * 201 not in page.text


def test_without_weights_it_says_why_there_are_no_reasons(measured: Run, tmp_path: Path) -> None:
    shutil.copytree(measured.folder, tmp_path / "run", ignore=shutil.ignore_patterns("merged"))
    page = Words(write_report(Run.open(tmp_path / "run")).read_text(encoding="utf-8"))
    assert "Lists without reasons: " in page.text
    assert "not trained to the end" in page.text
    assert "log-probability" not in page.text
    assert "Stage 1-joint" in page.text


def test_reasons_are_of_lists_of_the_same_kind_only(measured: Run, tmp_path: Path) -> None:
    """The recipe may ask for others since: the reasons of those would stand beside lists that they did not make."""
    assert "The reasons are of a second pass" in write_report(measured).read_text(encoding="utf-8")
    recipe = measured.recipe
    changed = recipe.model_copy(update={"recommend": recipe.recommend.model_copy(update={"eps": 0.5})})
    shutil.copytree(measured.folder, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    run.recipe = changed
    page = Words(write_report(run).read_text(encoding="utf-8"))
    assert "they were measured with other settings (recommend." in page.text
    assert "log-probability" not in page.text


def test_an_evaluation_of_other_data_is_not_reported(measured: Run, tmp_path: Path) -> None:
    shutil.copytree(measured.folder, tmp_path / "run")
    folder = tmp_path / "run" / "domains" / "shop"
    shop, other = Domain.open(folder), Domain.open(folder.with_name("other"))
    Domain("shop", other.catalogue, other.sequences, {**other.info, "name": shop.name}).save(folder)
    with pytest.raises(InputError, match="not of the data of `shop` as it is now; evaluate again"):
        write_report(Run.open(tmp_path / "run"))


def test_a_run_without_an_evaluation(two_stages: dict[str, Any], tmp_path: Path) -> None:
    run = Run.start(check_recipe(two_stages), tmp_path)
    with pytest.raises(InputError, match="make one with `calrec-lite evaluate`"):
        write_report(run)


def opened(browser: Any, file: Path) -> tuple[Any, list[str], list[str]]:
    """The page, the requests that opening it made, and what was said on the console or in a dialog."""
    page, requests, complaints = browser.new_page(), list[str](), list[str]()

    def dismiss(dialog: Any) -> None:
        complaints.append(dialog.message)
        dialog.dismiss()  # the page stands still until then

    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", dismiss)
    page.goto(file.as_uri(), wait_until="networkidle")
    return page, requests, complaints


def test_a_real_browser_opens_it_and_asks_for_nothing(measured: Run, tmp_path: Path, browser: Any) -> None:
    """No message on the console, no request but for the page itself, and nothing sticks out on a narrow screen."""
    written = write_report(hostile(measured, tmp_path / "run"), reasons=False)
    page, requests, complaints = opened(browser, written)
    assert requests == [written.as_uri()]
    assert complaints == []
    assert page.title() == "tiny"
    assert page.locator("section.user").count() == 20
    assert HOSTILE in page.locator("section.user li").first.inner_text()
    drawn = page.locator("svg polyline").first.bounding_box()
    assert drawn["width"] > 50
    assert page.evaluate("document.compatMode") == "CSS1Compat"
    page.set_viewport_size({"width": 500, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 500
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_a_real_browser_shows_every_list_with_its_reasons(measured: Run, browser: Any) -> None:
    written = write_report(measured)
    page, requests, complaints = opened(browser, written)
    assert (requests, complaints) == ([written.as_uri()], [])
    listed, reasons = (page.locator(f"section.user div:nth-of-type(2) li{inner}") for inner in ("", " > small"))
    assert reasons.count() == listed.count() == 20 * measured.recipe.recommend.k
    assert reasons.first.is_visible()
    page.close()


def test_the_browser_test_would_notice(tmp_path: Path, browser: Any) -> None:
    """A page with a script, an image and an error is found out by the same listeners."""
    (tmp_path / "bad.html").write_text('<script>alert(1); nowhere()</script><img src="http://127.0.0.1:9/x.png">')
    page, requests, complaints = opened(browser, tmp_path / "bad.html")
    assert "http://127.0.0.1:9/x.png" in requests
    assert "1" in complaints  # of the dialog
    assert any("nowhere" in complaint for complaint in complaints)
    page.close()
