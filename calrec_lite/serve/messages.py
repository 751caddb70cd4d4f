"""What requests and answers are made of, as the OpenAPI page shows them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt

MOST_ITEMS = 1000  # of a list
MOST_NAMES = 2000  # of a history, of what is denied
MOST_CANDIDATES = 10_000
LONGEST_NAME = 4000  # characters


class ById(BaseModel):
    """An item by its id, where a title may be written like one."""

    model_config = ConfigDict(extra="forbid")
    item: Annotated[str, Field(max_length=LONGEST_NAME)]


Name = Annotated[str, Field(max_length=LONGEST_NAME)] | StrictInt | ById


class Request(BaseModel):
    """A history, and what its list should be."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"history": ["Toy Story", {"item": "100"}], "k": 10}]}
    )
    history: Annotated[list[Name], Field(max_length=MOST_NAMES)] = Field(
        description="oldest first: titles, or ids as numbers or as {item: id}; a title that is no item is read as text"
    )
    k: int | None = Field(None, ge=1, le=MOST_ITEMS, description="length of the list; default: the export's")
    strategy: str | None = Field(None, description="one of those that are served; default: the first of them")
    deny: Annotated[list[Name], Field(max_length=MOST_NAMES)] = Field([], description="recommend none of these")
    candidates: Annotated[list[Name], Field(max_length=MOST_CANDIDATES)] | None = Field(
        None, description="recommend none but these"
    )
    strict: bool = Field(False, description="refuse a history with a title that is no item")


class Item(BaseModel):
    """An item of the catalogue."""

    item: str = Field(description="its id")
    title: str
    fields: dict[str, str] = Field(description="label -> value, its title among them")


class Listed(Item):
    """An item of a list."""

    rank: int = Field(description="from 1")
    score: float | None = Field(description="null where the item only fills the list up")
    why: str
    parts: dict[str, float] = Field(description="part -> what it adds to the score; empty where there is but one")


class Scored(Item):
    """An item that is like another."""

    score: float


class Recommended(BaseModel):
    """A list, best first."""

    strategy: str
    items: list[Listed]
    unknown: list[str] = Field(description="titles of the history that no item has")


class Similar(BaseModel):
    """Items like one, best first."""

    by: str = Field(description="text, vectors (cosine of item vectors) or words (BM25 of titles)")
    items: list[Scored]


class Found(BaseModel):
    """Items that were searched for."""

    items: list[Item]
    near: bool = Field(description="nothing holds these words: titles that are written much like them")


class Users(BaseModel):
    """Names of known users."""

    users: list[str]


class Case(BaseModel):
    """A known user's history, and the item that came next."""

    user: str
    history: list[Item]
    truth: Item | None = Field(description="null where it is not served")


class Strategy(BaseModel):
    """A way to make lists."""

    name: str
    weights: dict[str, float] | None = Field(description="part -> how much it counts")


class About(BaseModel):
    """What is served."""

    domain: str
    items: int
    k: int = Field(description="length of a list where none is asked for")
    strategies: list[Strategy]
    users: int = Field(description="known users; 0 without a run")
    version: str


class Health(BaseModel):
    """That the service is there."""

    status: str
    waiting: int = Field(description="requests that nobody works on yet")
    answered: int = Field(description="lists made since the start, failures among them")


class Fault(BaseModel):
    """Why there is no answer, in a line."""

    error: str
