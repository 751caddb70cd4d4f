"""The bases as rows of a table for this machine."""

from calrec_lite.machine.checks import gigabytes
from calrec_lite.machine.fitting import SLOW, Fit, Place, fits, needed
from calrec_lite.machine.hub import is_downloaded
from calrec_lite.recipe.bases import BaseFile, base_files

HEAD = ["base", "licence", "gated", "size", "download", "memory", "fits"]
WORDS: dict[Fit, str] = {"yes": "yes", "checkpointing": "checkpointed", "no": "no"}


def base_table(place: Place) -> str:
    """A line a base, the smallest first, and what the words mean here."""
    rows = [HEAD, *(_row(base, place) for base in base_files())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *_legend(place)])


def _legend(place: Place) -> list[str]:
    how = "4 bits" if place.gpu else "float32, at most"
    return [
        f"{place.name}, {gigabytes(place.free)} free. size: parameters; memory: of training in {how},",
        "one row of 1,088 tokens at a time (docs/bases.md).",
        "checkpointed: with --set optim.gradient_checkpointing=true",
        *([] if place.gpu else [f"slow: of {SLOW / 1e6:.0f}M parameters or more, a CPU takes hours"]),
        "In a recipe: `extends: base/NAME.yaml`",
    ]


def _row(base: BaseFile, place: Place) -> list[str]:
    fit = fits(base, place)
    plain, checkpointed = needed(base, place.gpu)
    word = "slow" if fit != "no" and not place.gpu and base.parameters > SLOW else WORDS[fit]
    memory = checkpointed if fit == "checkpointing" else plain
    here = not base.packed and is_downloaded(base.model)
    return [
        base.name,
        base.licence.replace(" Community License", "").replace(" Terms of Use", ""),
        base.gated,
        f"{base.parameters / 1e6:.0f}M",
        "is here" if here else gigabytes(base.download),
        gigabytes(memory),
        word,
    ]
