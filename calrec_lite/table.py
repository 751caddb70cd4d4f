"""Tables: fitted to the width of a terminal by rich; elsewhere a row a line, for pipes, files and `grep`."""

import io
import re
import shutil
import sys
from collections.abc import Sequence

# Control characters but tab and line feed, line separators, and what turns the direction of writing.
CONTROL = re.compile("\x1b\\[A|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
NARROWEST = 40  # columns of a terminal that says it has fewer, or none


def escaped(text: str) -> str:
    """Control characters as their escapes: raw, those of a title could move the cursor or retitle the window."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def on_terminal() -> bool:
    """Whether a person reads standard output as it is written."""
    return sys.stdout.isatty()


def fitted(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    left: Sequence[int] = (0,),
    gap: int = 2,
) -> str:
    """A table of whole words within `width`: long cells go on in the lines below.

    Args:
        head: a line break in it begins a second line.
        width: default: the terminal's.
        left: columns of texts; the others are numbers, at the right.
        gap: blanks between columns.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)
    for n, name in enumerate(head):
        table.add_column(Text(escaped(name)), justify="left" if n in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(" ".join(escaped(cell).split())) for cell in row))
    columns = max(NARROWEST, width or shutil.get_terminal_size().columns)
    out = io.StringIO()
    Console(file=out, width=columns, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def shown(head: list[str], rows: list[list[str]]) -> str:
    """For a person at a terminal as `fitted`, elsewhere as Markdown."""
    return fitted(head, rows) if on_terminal() else markdown(head, rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that also reads well as plain text: first column left, the others right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in [head, *rows]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def tabbed(rows: Sequence[Sequence[str]]) -> str:
    """A row a line, cells set apart by tabs."""
    return "\n".join("\t".join(" ".join(escaped(cell).split()) for cell in row) for row in rows)
