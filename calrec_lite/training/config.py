"""`CALRecConfig`: transformers' TrainingArguments and what CALRec adds, in TRL's style."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from calrec_lite.errors import InputError
from calrec_lite.recipe import Loss, Recommend, Text


@dataclass
class CALRecConfig(TrainingArguments):
    """TrainingArguments and what CALRec adds.

    `per_device_train_batch_size` is the logical batch: the rows of one optimiser step, all of them negatives, which
    several processes share out among them. Gradient accumulation stays at 1: `micro_batch_size` bounds the memory
    instead, and never changes the objective.

    Attributes:
        objective: weights, temperature, targets, softmax (docs/method.md, sections 3 and 5).
        text: the wording of items and histories, and their limits in tokens.
        recommend: how `CALRecTrainer.recommender` makes lists.
        micro_batch_size: full-length rows in memory at once, to begin with; `auto`: as many as are estimated to fit.
        micro_batch_auto: whether that number is an estimate, which may grow.
        offload_checkpoints: keep in RAM what gradient checkpointing keeps for the backward pass (CUDA).
        compile_layers: fuse each layer's kernels by torch.compile.
        cuda_graph: replay the decoder's kernels from CUDA graphs.
        max_seconds: of training, after which it ends; the learning rate falls over them. None: `max_steps` decides.
        warmup_share: of max_seconds; where `max_steps` decides, `warmup_steps` is used instead.

    Raises:
        InputError: gradient accumulation, or more processes than rows in a step.
    """

    objective: Loss = field(default_factory=lambda: Loss())
    text: Text = field(default_factory=lambda: Text())
    recommend: Recommend = field(default_factory=lambda: Recommend(strategy="beam"))
    per_device_train_batch_size: int = 16
    learning_rate: float = 5e-4
    lr_scheduler_type: str = "cosine"
    num_train_epochs: float = 1.0
    logging_steps: float = 10
    report_to: str | list[str] | None = "none"
    micro_batch_size: int | str = "auto"
    max_seconds: float | None = None
    warmup_share: float = 0.0
    micro_batch_auto: bool = False
    offload_checkpoints: bool = False
    compile_layers: bool = False
    cuda_graph: bool = False
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_accumulation_steps != 1:
            raise InputError("gradient_accumulation_steps adds no negatives: raise the batch size instead")
        if self.world_size > self.per_device_train_batch_size:
            raise InputError(
                f"a step of {self.per_device_train_batch_size} rows cannot be shared out among {self.world_size} "
                "processes: start fewer, or raise the batch size"
            )
        if self.micro_batch_size != "auto" and (
            not isinstance(self.micro_batch_size, int) or self.micro_batch_size < 1
        ):
            raise InputError(f"micro_batch_size: {self.micro_batch_size!r}; give a number of rows, or `auto`")
        if self.gradient_checkpointing and not self.gradient_checkpointing_kwargs:
            self.gradient_checkpointing_kwargs = {"use_reentrant": False}  # the adapter's inputs need no gradient so

    @property
    def checkpointing(self) -> bool | str:
        """As a recipe says it: `optim.gradient_checkpointing`."""
        return "offload" if self.offload_checkpoints else bool(self.gradient_checkpointing)

    def to_dict(self) -> dict[str, Any]:
        """As TrainingArguments, with the sections as plain data (loggers want JSON)."""
        sections = ("objective", "text", "recommend")
        return {**super().to_dict(), **{name: getattr(self, name).model_dump() for name in sections}}
