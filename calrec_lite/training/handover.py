"""From one stage to the next: where it starts, and what merging and quantising cost (docs/architecture.md)."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calrec_lite.method.batch import Collator
from calrec_lite.method.rows import Rows
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import load_model, placement
from calrec_lite.model.parity import parity
from calrec_lite.recipe import Base
from calrec_lite.run import Run
from calrec_lite.training.validation import validation_loss

PARITY_ROWS = 8


def stage_origin(run: Run, index: int) -> tuple[Path, Path | None]:
    """The weights a stage starts from and the adapter it carries on, if any (docs/architecture.md); both still whole.

    `merge`: the merged weights of the stage before. `continue`: what that stage itself started from, with its adapter.
    """
    if index == 0:
        return run.base, None
    before = run.stages[index - 1]
    if run.recipe.stages[index].handover == "merge":
        return before.intact(before.merged), None
    return stage_origin(run, index - 1)[0], before.intact(before.adapter)


@dataclass(frozen=True)
class TrainedStates:
    """What later comparisons need of the trained model once it is freed: a GPU holds one model at a time."""

    states: list[Tensor]  # (T, D) each, on the CPU: of the first validation rows, with the adapter
    head: Tensor  # (V, D), on the CPU
    collator: Collator


@torch.no_grad()
def validation_states(towers: Towers, valid: Rows) -> Iterator[Tensor]:
    """(T, D) of the rows on which models are compared, one after the other."""
    towers.decoder.eval()
    for i in range(min(PARITY_ROWS, len(valid))):
        yield towers.states(torch.from_numpy(valid[i].tokens).unsqueeze(0).to(towers.head.device))[0].detach()


def check_merge(trained: TrainedStates, valid: Rows, merged: Path, run: Run) -> dict[str, Any]:
    """Adapter model against merged model, as `placement` loads it: logits on some rows, and the validation loss."""
    quantised, device = placement(merged, run.loading)
    towers = Towers(load_model(merged, run.loading, quantised, device))
    head = trained.head.to(towers.head.device)
    before = ((states.to(head.device) @ head.T).cpu() for states in trained.states)
    after = ((states @ towers.head.T).cpu() for states in validation_states(towers, valid))
    facts = asdict(parity(before, after))
    nats = validation_loss(towers, valid, trained.collator)
    return {"parity": facts, "valid_nats_merged": nats, "merged_quantised": quantised}


def check_handover(collator: Collator, valid: Rows, run: Run, index: int, facts: dict[str, Any]) -> dict[str, Any]:
    """The validation loss of the merged weights quantised afresh, and that with which the next stage will start.

    Prints a warning where it has risen too far.
    """
    base = run.loading
    handover = run.recipe.stages[index + 1].handover if index + 1 < len(run.stages) else None
    requantised = facts["valid_nats_merged"]
    if (base.load_in_4bit or base.load_in_8bit) and not facts["merged_quantised"]:
        requantised = validation_loss(Towers(load_model(run.stages[index].merged, base)), valid, collator)
    by_handover = {"continue": facts["valid_nats_after"], "merge": requantised, None: facts["valid_nats_merged"]}
    measured = {"valid_nats_requantised": requantised, "valid_nats_handed_on": by_handover[handover]}
    if warning := handover_warning({**facts, **measured}, base, run.recipe.optim.handover_tolerance):
        print(f"WARNING: the hand-over after stage {run.stages[index].folder.name} {warning}")
    return measured


def handover_rise(facts: dict[str, Any]) -> float:
    """Nats an item that a stage's hand-over costs, the worse of merging and handing on; NaN if either is no number."""
    nats = np.array([facts["valid_nats_merged"], facts["valid_nats_handed_on"]])
    if facts.get("merged_quantised"):  # then the first was measured on other weights than those on disk
        nats = nats[1:]
    return float(nats.max() - facts["valid_nats_after"])  # unlike Python's, this max() keeps a NaN


def handover_warning(facts: dict[str, Any], base: Base, tolerance: float) -> str | None:
    """What a costly hand-over costs and what helps against it; None where the rise is within the tolerance."""
    rise = handover_rise(facts)
    if rise <= tolerance:
        return None
    merged, handed_on = facts["valid_nats_merged"], facts["valid_nats_handed_on"]
    quantised = "load_in_4bit" if base.load_in_4bit else "load_in_8bit" if base.load_in_8bit else None
    if not math.isfinite(rise):
        remedy = "A model gives no number any more: under another `name`, set a lower optim.learning_rate"
    elif facts.get("merged_quantised") and handed_on == merged:
        remedy = (
            "They could be measured only quantised, being too large for the GPU: what is exported may have lost less. "
            "To lose nothing between stages, set `handover: continue` under another `name`"
        )
    elif quantised and handed_on > merged:  # the next stage starts from merged weights, quantised
        remedy = f"Under another `name`, set `handover: continue` for the next stage, or base.{quantised}: false"
    elif quantised:
        remedy = (
            "The adapter was trained around quantised weights and is added to the original ones: "
            f"under another `name`, set base.{quantised}: false"
        )
        if base.load_in_4bit:
            remedy += "; or write the weights it was trained around by `calrec-lite merge --base dequantized`"
    else:
        remedy = (
            "Sums are rounded as the base's files are stored, and as base.dtype says when they are loaded: under "
            "another `name`, train from a base stored in float32 with base.dtype: float32"
        )
    return (
        f"costs {rise:.3f} nats an item ({facts['valid_nats_after']:.3f}; merged {merged:.3f}; as the next stage "
        f"loads it {handed_on:.3f}): part of what the stage learnt is lost. {remedy}"
    )
