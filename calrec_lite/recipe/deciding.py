"""Which keys of a recipe decide its weights: one list, for resuming a run and for stages that cells share."""

from pathlib import Path
from typing import Any

# Keys that change memory, speed, reports or what is printed, never the weights.
FREE = {
    "base": ("license",),
    "optim": (
        "micro_batch_size",
        "gradient_checkpointing",
        "compile",
        "cuda_graph",
        "fsdp",
        "handover_tolerance",
        "eval_every",
        "save_every",
        "log_every",
        "report_to",
    ),
}
SECTIONS = ("seed", "base", "domains", "text", "stages", "loss", "optim")  # how lists are made may change afterwards
# Data are compared by the fingerprint of what was prepared, wherever it lay and whatever its columns are called.
READING = ("reader", "interactions", "items", "headerless", "columns", "fields", "html", "encoding", "on_bad_rows")


def without_free(values: dict[str, Any]) -> dict[str, Any]:
    """A resolved recipe without the keys that decide nothing, and the base's path in full, however it is written."""
    decided = {
        section: {key: value for key, value in keys.items() if key not in FREE[section]} if section in FREE else keys
        for section, keys in values.items()
    }
    domains = {name: {k: v for k, v in spec.items() if k not in READING} for name, spec in values["domains"].items()}
    return {**decided, "domains": domains, "base": {**decided["base"], "model": _absolute(decided["base"]["model"])}}


def changed(old: dict[str, Any], new: dict[str, Any], dtype: str) -> list[str]:
    """Sections that decide the weights and differ between two resolved recipes.

    Args:
        dtype: number type that the old one's run computes in: a new recipe's `auto` accepts it. `auto`: none was
            chosen yet, so a new recipe may ask for one.
    """
    new_dtype = new["base"]["dtype"]
    old = {**old, "base": {**old["base"], "dtype": new_dtype if "auto" in (new_dtype, dtype) else dtype}}
    old, new = without_free(old), without_free(new)
    return [section for section in SECTIONS if old[section] != new[section]]


def _absolute(model: str) -> str:
    """A path of this machine in full, however it is written; a Hub id or an address as it is."""
    path, hash_, rest = model.partition("#")
    return f"{Path(path).expanduser().resolve()}{hash_}{rest}" if Path(path).expanduser().exists() else model
