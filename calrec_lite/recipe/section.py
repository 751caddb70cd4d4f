"""What every section of a recipe shares, and the bounds of its values."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of a recipe: unknown keys are errors, numbers are finite, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _one_line(text: str) -> str:
    if "\n" in text:
        raise ValueError("may not contain a line break: the line break is what ends an item")
    return text


Share = Annotated[float, Field(ge=0, le=1)]
OneLine = Annotated[str, Field(max_length=2000), AfterValidator(_one_line)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]  # of folders too
Source = Annotated[str, Field(min_length=1, max_length=4096)]

# Beyond these no value is of use, and many cost all memory or end in overflow.
Few = Annotated[int, Field(ge=1, le=10_000)]  # each takes memory: beams, texts, layers, widths
Many = Annotated[int, Field(ge=1, le=1_000_000)]  # likewise: items of a list, rows of a step, tokens of a row
Count = Annotated[int, Field(ge=1, le=10**12)]  # of what is there or is waited for: users, events, steps
Positive = Annotated[float, Field(ge=1e-9, le=1e9)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
