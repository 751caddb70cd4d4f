"""YAML as plain values with the place of each key, within bounds that no recipe needs to pass."""

import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from calrec_lite.errors import InputError

KeyPath = tuple[str | int, ...]
MOST_BYTES = 1 << 18  # of a file; the longest recipe of this package has 5 kB
MOST_VALUES = 20_000  # what an alias stands for is counted each time
DEEPEST = 30  # lists and mappings within one another
MOST = 10**30  # of a whole number: Python does not even print the longest
MOST_BRACKETS = 200  # open at once, those in texts counted too: PyYAML takes seconds for a thousand
# Numbers of YAML 1.1 that a reader takes for others: 010 is 8, 1:30 is 90; 08 is a text, which pydantic takes for 8.
OLD_NUMBER = re.compile(r"[-+]?(0[0-9_.]*[0-9_]+|0[ob][0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
DECIMAL = re.compile(r"[-+]?0?\.[0-9]+|0")
OLD_TRUTH = ("yes", "no", "on", "off")


@dataclass(frozen=True)
class Place:
    """Where something was said.

    Attributes:
        source: a file, or `--set key=value`.
        line: in the file, from 1; None: no file.
        own: the user named it, so that it may be quoted; what a recipe only extends may be any file of the machine.
    """

    source: str
    line: int | None = None
    own: bool = True

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


def read_values(path: Path, own: bool, lines: dict[KeyPath, Place]) -> Any:
    """The content of a file; {} where it is empty. `lines` receives the place of each key.

    Raises:
        InputError: it cannot be read, is no YAML, or goes beyond the bounds.
    """
    place = Place(str(path), 1, own)
    node = _compose(_text(path), place)
    return {} if node is None else _Values(place, lines).of(node)


def read_value(text: str, place: Place) -> Any:
    """One value, as it follows `--set KEY=`. Raises InputError as `read_values`."""
    node = _compose(text, place)
    return None if node is None else _Values(place, {}).of(node)


def read_resolved(path: Path) -> Any:
    """The content of a file by YAML's own rules. Raises InputError as `read_values`."""
    read_values(path, True, {})  # its bounds
    try:
        return yaml.safe_load(_text(path))
    except (yaml.YAMLError, ValueError):
        raise InputError(f"{path}: not valid YAML") from None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InputError(f"{path}: more than {MOST_BYTES:,} bytes, so it is no recipe")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not valid YAML: not UTF-8") from None


def _compose(text: str, place: Place) -> yaml.Node | None:
    try:
        open_brackets = accumulate((c in "[{") - (c in "]}") for c in text)
        if max(open_brackets, default=0) > MOST_BRACKETS:
            raise RecursionError
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = place if place.line is None or mark is None else Place(place.source, mark.line + 1)
        raise InputError(f"{where}: not valid YAML{_quoted(place, error.problem)}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise InputError(f"{place.source}: not valid YAML{_quoted(place, str(error).splitlines()[0])}") from None
    except RecursionError:
        raise InputError(f"{place.source}: more than {DEEPEST} lists or sections within one another") from None


def _quoted(place: Place, problem: str | None) -> str:
    return f": {problem[:200]}" if problem and place.own else ""


class _Values:
    """Nodes of one source to plain values."""

    def __init__(self, source: Place, lines: dict[KeyPath, Place]) -> None:
        self.source, self.lines, self.count = source, lines, 0

    def of(self, node: yaml.Node, at: KeyPath = (), depth: int = 0) -> Any:
        place = self._place(node)
        self.lines.setdefault(at, place)
        self.count += 1
        if self.count > MOST_VALUES:
            raise InputError(f"{place}: more than {MOST_VALUES:,} values, with what aliases stand for")
        if depth > DEEPEST:
            raise InputError(f"{place}: more than {DEEPEST} lists or sections within one another")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.of(child, (*at, i), depth + 1) for i, child in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)  # YAML has no fourth kind
        return self._scalar(node, place)

    def _place(self, node: yaml.Node) -> Place:
        line = None if self.source.line is None else node.start_mark.line + 1
        return Place(self.source.source, line, self.source.own)

    def _mapping(self, node: yaml.MappingNode, at: KeyPath, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise InputError(f"{place}: a key must be a single word; quote text in braces")
            key = self._scalar(key_node, place)
            if key in out:
                raise InputError(f"{place}: {f'key `{key}`' if place.own else 'a key'} appears twice")
            self.lines[(*at, key)] = place
            out[key] = self.of(value_node, (*at, key), depth + 1)
        return out

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Any:
        if node.style is None and OLD_NUMBER.fullmatch(node.value) and not DECIMAL.fullmatch(node.value):
            written = f"`{node.value[:40]}`" if place.own else "a number"
            raise InputError(f"{place}: {written} is another number to YAML; write it in decimal, or quote a text")
        if node.style is None and node.value.lower() in OLD_TRUTH:  # a text where one is asked for, else a truth value
            return node.value
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError):  # what its constructors raise
            kind = node.tag.rpartition(":")[2] if place.own else "one of its kind"
            raise InputError(f"{place}: a value that cannot be read as {kind[:40]}") from None
        if isinstance(value, int) and abs(value) > MOST:
            raise InputError(f"{place}: a number beyond all use")
        if isinstance(value, str):
            if any((ord(c) < 32 and c not in "\t\n\r") or 0xD800 <= ord(c) < 0xE000 for c in value):
                raise InputError(f"{place}: holds a control character or half of a surrogate pair")
            if node.style is None:  # YAML 1.1 reads 1e-3 as text
                return _number(value)
        return value


def _number(text: str) -> Any:
    try:
        return float(text) if set(text) <= set("0123456789.eE+-") and any(c.isdigit() for c in text) else text
    except ValueError:
        return text
