"""The recipe that is written: only what differs from the defaults, each line with its reason."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from calrec_lite.errors import InputError
from calrec_lite.files import atomic_path
from calrec_lite.recipe import DomainSpec, Text
from calrec_lite.recipe.bases import BaseFile
from calrec_lite.recipe.file import load_recipe

REPEATS = 0.1  # share of events that repeat an item: from there on seen items are recommended, too
CPU_TEXT = Text(
    first="Chosen in this order:", next="Next:", field="{value}", missing=None, max_items=10, max_item_tokens=32
)


@dataclass(frozen=True)
class Draft:
    """What the recipe is made of.

    Attributes:
        repeats: share of the events that are of an item the user had before.
        gpu: whether it is written for one.
    """

    name: str
    spec: DomainSpec
    base: BaseFile
    repeats: float
    gpu: bool

    @property
    def domain(self) -> str:
        """A name of its own for the domain."""
        return domain_name(self.name)

    def yaml(self) -> str:
        """The file."""
        sections = [
            "# Written by `calrec-lite init`; what is not said has its default (calrec-lite train FILE --dry-run).\n"
            "# Paths start from the folder in which the commands are run.",
            f"extends: {self.base.file} # {_of_base(self.base)}; others: calrec-lite bases",
            f"name: {_flow(self.name)} # the run's folder: runs/{self.name}",
            *([] if self.gpu else ["base:\n  load_in_4bit: false # in 4 bits a CPU is slower"]),
            f"domains:\n  {self.domain}:\n{self._domain()}",
            *([] if self.gpu else [self._short_text()]),
            f"stages:\n  - {{name: target, domains: [{self.domain}], {self._length()}}}",
            *([] if self.gpu else [CPU_SETTINGS]),
            *self._repeats(),
        ]
        return "\n\n".join(sections) + "\n"

    def _domain(self) -> str:
        spec = self.spec
        keys: list[tuple[str, Any, str]] = [
            ("reader", spec.reader, "knows the columns and how to tidy the texts"),
            ("interactions", spec.interactions, ""),
            ("items", spec.items, ""),
            ("headerless", spec.headerless, "columns by place: column0, column1, ..."),
            ("columns", spec.columns.model_dump(exclude_none=True), ""),
            ("fields", spec.fields, "label in the text: column, in order"),
        ]
        left_out = {"reader": "table"}
        lines = [
            f"    {key}: {_flow(value)}{f' # {why}' if why else ''}"
            for key, value, why in keys
            if value and left_out.get(key) != value
        ]
        return "\n".join([*lines, "    # min_user_events: 3 # users with fewer are left out"])

    def _short_text(self) -> str:
        values = CPU_TEXT.model_dump(exclude_defaults=True)
        lines = [f"  {key}: {_flow(value)}" for key, value in values.items()]
        return "\n".join(["text: # short rows: a CPU reads some hundred tokens a second", *lines])

    def _length(self) -> str:
        return "epochs: 1" if self.gpu else "minutes: 15"

    def _repeats(self) -> list[str]:
        if self.repeats < REPEATS:
            return []
        why = f"{self.repeats:.0%} of the events are of an item that the user had before"
        return [f"recommend:\n  exclude_seen: false # {why}"]

    def write(self, path: Path) -> None:
        """Write the file, after it was read as every command will read it.

        Raises:
            InputError: there is such a file already.
        """
        require_free(path)
        with atomic_path(path) as temporary:
            temporary.write_text(self.yaml(), encoding="utf-8")
            load_recipe(temporary)


CPU_SETTINGS = """optim: # as the demo's, which was tried on two cores
  batch_size: 8
  learning_rate: 1.0e-3
  valid_users: 40

fused:
  likelihood_users: 100 # of the LLM, which makes some four lists a second on a CPU

evaluate:
  model_users: 150 # likewise; all that is fast is measured on more"""


def require_free(path: Path) -> None:
    """Raise InputError if there is something of that name: a recipe that was edited is not written over."""
    if path.exists():
        raise InputError(f"{path}: exists, and is not written over; name another by --out, or remove it")


def recipe_name(path: Path) -> str:
    """A recipe's name made of a file's: without its endings, and what a name may not have."""
    stem = path.name.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:60] or "mine"


def domain_name(name: str) -> str:
    """A domain's name made of a recipe's."""
    return re.sub(r"[^a-z0-9_-]", "-", name.lower())


def draft_text(gpu: bool) -> Text:
    """The wording that the recipe will have."""
    return Text() if gpu else CPU_TEXT


def _of_base(base: BaseFile) -> str:
    return f"{base.parameters / 1e6:.0f}M parameters, {base.download / 1e9:.1f} GB to download, {base.licence}"


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()
