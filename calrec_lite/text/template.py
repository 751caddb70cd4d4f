"""The paper's template: an item is `Name: value` attributes, a history only ever appends (docs/method.md, 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calrec_lite.recipe import Text

END_OF_ITEM = "\n"


@dataclass(frozen=True)
class Template:
    """How the items of one domain are written.

    Attributes:
        text: the recipe's wording.
        labels: attribute names of the domain, in the order in which they are written.
    """

    text: Text
    labels: tuple[str, ...]

    def item(self, fields: Mapping[str, str]) -> str:
        """One item as text, without the line break that ends it."""
        return self.text.item(fields, self.labels)

    def segment(self, item: str) -> str:
        """An item's text as it stands inside a history: a space before it, the line break that ends it after it."""
        return f" {item}{END_OF_ITEM}"

    def prompt(self, history: Sequence[str]) -> str:
        """The whole prompt for a history of item texts, oldest first; it ends with the bare next-item sentence."""
        if not history:
            return self.text.first
        return f"{self.text.first}{self.text.next.join(self.segment(i) for i in history)}{self.text.next}"
