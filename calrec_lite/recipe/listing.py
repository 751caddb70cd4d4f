"""What a recipe says of making lists: the strategy and its numbers, and what fused lists are fitted from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from calrec_lite.recipe.section import Count, Few, Many, Positive, Section, Share, Weight


class Recommend(Section):
    """How lists are made."""

    strategy: Literal["fused", "fast", "beam", "sample", "dense", "rerank"] = Field(
        "fused",
        description="fused: all readings (docs/method.md, 8), and the LLM's likelihood of the best items by them; "
        "fast: the same without the LLM; the others by the LLM alone",
    )
    k: Many = Field(10, description="length of a list")
    exclude_seen: bool = Field(True, description="never recommend what is in the history")
    score: Literal["catalogue", "vocabulary"] = Field(
        "catalogue", description="beam, rerank: probabilities among the items, or of their texts among all texts"
    )
    beams: Few = Field(20, description="beam: items that are searched side by side, k at least")
    samples: Few = Field(32, description="sample: texts drawn per user [S]")
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = Field(0.5, description="sample [S]")
    eps: Positive = Field(1 / 5000, description="sample: of the quasi-round-robin [S]")
    order: Literal["likelihood", "paper"] = Field(
        "likelihood", description="sample: exact matches first, or BM25 only [S]"
    )
    rerank: Many = Field(
        100, description="rerank: items closest to v_U, fused: best items by `fast`, that are scored exactly"
    )
    fusion: Weight = Field(
        0.0, description="rerank: this much of the cosine is added to the log-probability; see `calrec-lite tune`"
    )
    transitions: Weight = Field(
        0.0,
        description="rerank: this much of the log of what followed the last items in training is added, and the items "
        "it puts first become candidates too; see `calrec-lite tune`",
    )
    index: Literal["exact", "faiss"] = Field("exact", description="dense, rerank: faiss beyond some million items")
    batch_tokens: Count | Literal["auto"] = Field(
        "auto",
        description="prompt tokens decoded together; a shorter prompt counts as one of 64; auto: as many as half of "
        "the free memory holds, up to 65536 on a GPU and 4096 on a CPU",
    )

    @property
    def counts_transitions(self) -> bool:
        """Whether lists need to know what followed what."""
        return self.fits or (self.strategy == "rerank" and self.transitions > 0)

    @property
    def fits(self) -> bool:
        """Whether lists need a user tower and fitted weights."""
        return self.strategy in ("fused", "fast")


class TowerSettings(Section):
    """The light user tower, trained over the finished model's item vectors (docs/method.md, 8)."""

    dim: Few = Field(128, description="numbers of a user's vector")
    layers: Few = Field(1, description="of the transformer")
    heads: Few = Field(2, description="of attention")
    length: Few = Field(20, description="latest items of a history that it reads; more where they are long")
    dropout: Share = Field(0.5, description="share of states left out in training")
    memory: bool = Field(True, description="a vector of its own for each item, added to that of its text")
    learning_rate: Positive = Field(1e-3, description="of AdamW")
    weight_decay: Weight = Field(0.1, description="of its weights")
    batch_size: Many = Field(128, description="stretches of `length` items of one step")
    negatives: Many | None = Field(
        None, description="items drawn for the softmax of a step, for catalogues beyond some 100,000; null: all items"
    )
    epochs: Count = Field(40, description="at most")
    patience: Count = Field(4, description="stop after so many epochs without a better NDCG@10 on validation")
    valid_users: Count | None = Field(5000, description="users, drawn by the seed, for that; null: all")

    @model_validator(mode="after")
    def _divides(self) -> "TowerSettings":
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} must be a multiple of heads = {self.heads}")
        return self


class Fused(Section):
    """What `strategy: fused` and `fast` add up, and how their weights are fitted on validation users."""

    tower: TowerSettings = TowerSettings()
    users: Count | None = Field(5000, description="for the weights; null: all")
    likelihood_users: Count = Field(
        300, description="of those whose next item is a candidate, for the weights with the LLM's likelihood"
    )
