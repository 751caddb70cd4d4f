"""What there is to say about a publisher's format: its files, its columns, and how its texts are tidied."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

PACKED = (".gz", ".zst", ".zip")  # endings that say how a file is packed, not what it holds
KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".inter": "atomic",
    ".item": "atomic",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True)
class File:
    """One file of a format.

    Attributes:
        name: shell pattern of its name, in small letters, without what packs it: `ratings.csv` is
            `ratings.csv.gz` too.
        columns: of a file without a header line, in its order.
        kind: of `KINDS`; "": by the name's ending.
        delimiter: of text; "": by the ending, or the commonest in the header.
        quotes: whether double quotes enclose a field.
        encoding: of such a file that is no UTF-8.
        required: whether its format cannot do without it.
        needs: columns that its layout's query names, of a file with a header line.
    """

    name: str
    columns: tuple[str, ...] = ()
    kind: str = ""
    delimiter: str = ""
    quotes: bool = True
    encoding: str | None = None
    required: bool = True
    needs: tuple[str, ...] = ()


ANY = File("*")


@dataclass(frozen=True)
class Layout:
    """Files that together hold one table.

    Attributes:
        files: the first is the one it is known by.
        query: from what to read each file from, by its pattern, to one query over them; None: the first as it is.
    """

    files: tuple[File, ...]
    query: Callable[[Mapping[str, str]], str] | None = None


def one(name: str, **options: object) -> Layout:
    """The layout of a single file."""
    return Layout((File(name, **options),))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Format:
    """What a reader expects where the recipe says nothing, and how it tidies an item's (column, text).

    Attributes:
        user, item, time: usual columns of the interactions, the first that is there.
        fields: label -> usual columns; the order of the labels is the order of the text.
        item_id: usual columns of the items file for its id; empty: as `item`.
        time_format: of the usual time columns, as `columns.time_format`; None: decided from the column.
        timed: whether interactions without a time are none of this format.
        own_text: whether the interactions may hold the items' texts; if not, there must be items.
        html: whether texts are HTML.
        events, items: layouts of the two tables, by which they are found in a folder or zip.
        signs: columns of the interactions by which a file is told from other formats'.
    """

    user: Sequence[str]
    item: Sequence[str]
    time: Sequence[str]
    fields: dict[str, list[str]]
    tidy: Callable[[str, str], str] = lambda column, text: text
    html: bool = False
    item_id: Sequence[str] = ()
    time_format: str | None = None
    timed: bool = False
    own_text: bool = True
    events: tuple[Layout, ...] = ()
    items: tuple[Layout, ...] = ()
    signs: frozenset[str] = frozenset()

    def patterns(self) -> list[str]:
        """Names of all its files, unpacked or packed."""
        names = [file.name for layout in self.events + self.items for file in layout.files]
        return [name + ending for name in dict.fromkeys(names) for ending in ("", *PACKED)]


def plain_name(path: PurePath | str) -> str:
    """A file's name in small letters, without what packs it."""
    name = PurePath(path).name.lower()
    ending = next((ending for ending in PACKED if name.endswith(ending)), "")
    return name.removesuffix(ending) or name
