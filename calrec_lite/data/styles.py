"""Ways to write a date other than ISO 8601, and which of them a column is written in."""

from collections.abc import Callable

from calrec_lite.data.faults import shown

DAYS = (
    *("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%d-%b-%Y", "%m %d, %Y"),
)
HOURS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", ", %H:%M:%S", ", %I:%M:%S %p")
WHOLE = (
    "%a %b %d %H:%M:%S %Y",  # C's
    "%a %b %d %H:%M:%S %z %Y",  # Ruby's
    "%a, %d %b %Y %H:%M:%S %z",  # of mails
    "%a, %d %b %Y %H:%M:%S GMT",
    "%Y.%m.%d",
    "%Y.%m.%d %H:%M:%S",
)
STYLES = (*(day + hour for day in DAYS for hour in HOURS), *WHOLE)


def ambiguous(value: str, forms: list[str]) -> str:
    """What to say of a column that can be read in several ways."""
    ways = " or ".join(f"`{form}`" for form in forms)
    return f"read as {ways}, and so is the whole column; say which it is by `columns.time_format`"


def mixed(form: str, example: str, row: int) -> str:
    """What to say of a value that is not in the column's style."""
    return (
        f"not written as `{shown(example)}` in row {row} (`{form}`): write all dates in one style, or name one by "
        "`columns.time_format` and leave the others out by `on_bad_rows: drop`"
    )


def best(counts: dict[str, int], same: Callable[[str, str], bool]) -> list[str]:
    """The styles that read most values; of those that read them all alike, one.

    Args:
        counts: style -> values that it reads.
        same: whether two styles read every value alike.
    """
    most = max(counts.values(), default=0)
    chosen: list[str] = []
    for form, n in counts.items():
        if n == most and n and not any(same(form, other) for other in chosen):
            chosen.append(form)
    return chosen
