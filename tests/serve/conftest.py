"""A served export of the tiny model, in this process."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from fastapi.testclient import TestClient

from calrec_lite.run import Run
from calrec_lite.serve.app import Settings, create_app
from calrec_lite.serve.known import KnownUsers
from calrec_lite.serve.lists import Lists
from tests.evaluate.conftest import HOSTILE
from tests.fitting.conftest import fused_export, fused_run, ring_data  # noqa: F401

STRATEGIES = ("fused", "fast", "beam", "dense")


@pytest.fixture(scope="module")
def hostile_export(fused_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The export, its first items' titles now markup."""
    folder = Path(shutil.copytree(fused_export, tmp_path_factory.mktemp("hostile") / "export"))
    lines = (folder / "catalogue.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    for item in items[:10]:
        item["fields"]["Title"] = f"{HOSTILE} {item['fields']['Title']}"
    (folder / "catalogue.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lists(hostile_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lists]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALREC_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        opened = Lists.open(hostile_export, STRATEGIES)
        opened.warm()
        yield opened


@pytest.fixture(scope="module")
def known(fused_run: Run, lists: Lists) -> KnownUsers:  # noqa: F811
    return KnownUsers.of(fused_run, lists.package)


@pytest.fixture(scope="module")
def client(lists: Lists, known: KnownUsers) -> Iterator[TestClient]:
    with TestClient(create_app(lists, Settings(), known), raise_server_exceptions=False) as opened:
        yield opened
