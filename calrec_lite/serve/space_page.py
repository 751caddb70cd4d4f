"""The page of a Hugging Face Space: choose a history, look at its lists. Needs Gradio, which a Space has."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calrec_lite.errors import InputError
from calrec_lite.serve.lists import Lists, Wanted

OFFERED = 5000  # items of a catalogue that the browser gets whole, and searches itself
FOUND = 50  # items that a search of a larger one gives
MOST = 100  # items of a list
ONE = "model"  # at a time: it uses all cores
COLUMNS = ("title", "score", "why")
KINDS = ("str", "number", "str")
WIDTHS = ("35%", "15%", "50%")
Choice = tuple[str, str]  # what is read, and the item's id


class Page:
    """What the page asks, without Gradio.

    Args:
        lists: an opened export.
    """

    def __init__(self, lists: Lists) -> None:
        self.lists = lists
        self.is_large = len(lists.package.ids) > OFFERED

    def choices(self, query: str, chosen: Sequence[str]) -> list[Choice]:
        """The items that `query` finds, the best first, and after them those that are chosen already (by id).

        Of a small catalogue an empty query finds all. Items of one title are told apart by their ids.
        """
        found, _ = self.lists.search(query, FOUND if self.is_large else OFFERED)
        recommender = self.lists.recommender
        shown = list(dict.fromkeys([*found, *map(self._item, chosen)]))
        titles = [recommender.catalogue.titles[i] for i in shown]
        times = Counter(titles)
        ids = [recommender.ids[i] for i in shown]
        return [(f"{title} ({item})" if times[title] > 1 else title, item) for title, item in zip(titles, ids)]

    def recommend(self, history: Sequence[str], strategy: str, k: float) -> list[list[Any]]:
        """The list after `history` (ids, oldest first): a row of `COLUMNS` for each item.

        Raises:
            InputError: an id that no item has, another strategy than was opened, `k` not from 1 to `MOST`.
        """
        if strategy not in self.lists.strategies:
            raise InputError(f"strategy: here are {', '.join(self.lists.strategies)}")
        if not 1 <= k <= MOST:
            raise InputError(f"k: from 1 to {MOST}")
        texts = self.lists.recommender.catalogue.texts  # an id may be another item's title, a text is one item's
        names = tuple(texts[self._item(name)] for name in history)
        (made,) = self.lists([Wanted(names, strategy, int(k))])
        return [[one.title, round(one.score, 4), one.why] for one in made]

    def _item(self, name: str) -> int:
        item = self.lists.recommender.lookup.find_id(name)
        if item is None:
            raise InputError(f"{name}: no item of the catalogue has this id")
        return item


def open_page(source: str | Path, title: str) -> Any:
    """The page of an export (folder or Hub id) as `gradio.Blocks`, which `launch()` starts. It asks nothing of others.

    Raises:
        InputError: as `Lists.open`.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    import gradio

    lists = Lists.open(source)
    lists.warm()
    page = Page(lists)

    def offered(query: str, chosen: list[str]) -> Any:
        return gradio.Dropdown(choices=page.choices(query, chosen), value=chosen)

    def recommend(history: list[str], strategy: str = lists.strategies[0], k: int = lists.default_k) -> list[list[Any]]:
        """Rows of title, score and why, best first, after a history of item ids, oldest first."""
        try:
            return page.recommend(history, strategy, k)
        except InputError as error:
            raise gradio.Error(str(error), print_exception=False) from None

    most = min(MOST, len(lists.package.ids))
    with gradio.Blocks(title=title) as blocks:
        gradio.Markdown(f"# {title}\n{len(lists.package.ids):,} items")
        query = gradio.Textbox(label="Search the items (Enter), then choose below", visible=page.is_large)
        history = gradio.Dropdown(page.choices("", []), multiselect=True, label="History, oldest first")
        with gradio.Row():
            strategy = gradio.Dropdown(list(lists.strategies), value=lists.strategies[0], label="Strategy")
            k = gradio.Slider(1, most, min(most, lists.default_k), step=1, label="Items")
        button = gradio.Button("Recommend", variant="primary")
        table = gradio.Dataframe(headers=list(COLUMNS), datatype=list(KINDS), column_widths=list(WIDTHS), wrap=True)
        # For programs, and first: a name is given once. What the button calls takes items alone that are offered.
        gradio.api(recommend, api_name="recommend", concurrency_id=ONE)
        query.submit(offered, [query, history], history, api_visibility="private")
        button.click(recommend, [history, strategy, k], table, concurrency_id=ONE, api_visibility="private")
    return blocks
