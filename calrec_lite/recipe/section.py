"""What every section of a recipe shares."""

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
OneLine = Annotated[str, AfterValidator(_one_line)]
