"""Domains prepared from small raw files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import TITLES, Events, write_csv

from calrec_lite.data.domain import Domain
from calrec_lite.data.prepare import prepare
from calrec_lite.recipe import DomainSpec


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., Domain]:
    """Prepare a domain from events (user, item, time) or (user, item), and titles by item id."""

    def make(events: Events, titles: dict[str, str] | None = None, seed: int = 0, **options: Any) -> Domain:
        events = list(events)
        header = ["user", "item", "time"][: max(len(event) for event in events)]
        interactions = write_csv(tmp_path / "events.csv", header, events)
        items = write_csv(tmp_path / "items.csv", ["item", "title"], list((titles or TITLES).items()))
        options = {"min_user_events": 1, **options}
        spec = DomainSpec(interactions=str(interactions), items=str(items), **options)
        return prepare("shop", spec, seed)

    return make
