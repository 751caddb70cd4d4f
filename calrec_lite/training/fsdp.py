"""A model to train in one process or several: whole in each, or split among them where it fits no card (FSDP2)."""

from pathlib import Path

import torch
from peft import PeftModel

from calrec_lite.errors import InputError
from calrec_lite.model.base import add_adapter, load_model, placement
from calrec_lite.model.device import device
from calrec_lite.model.sharded import shard_layers
from calrec_lite.processes import Processes
from calrec_lite.run import Run


def model_to_train(run: Run, base: Path, carried: Path | None, processes: Processes) -> PeftModel:
    """The base with an adapter, fresh or `carried`; split among the processes where the recipe or its size asks for it.

    A base that is split is loaded by one process after another, so that RAM holds one whole one at a time.

    Raises:
        InputError: `optim.fsdp` does not go with the rest of the recipe, or with such a base.
    """
    optim, loading = run.recipe.optim, run.loading

    def adapted(where: torch.device | None = None) -> PeftModel:
        whole = load_model(base, loading, where=where)
        return add_adapter(whole, loading, bool(optim.gradient_checkpointing), carried)

    if not processes.by_first(lambda: splits(run, base, processes)):
        return adapted()
    model: PeftModel | None = None
    for rank in range(processes.size):
        if rank == processes.rank:
            model = adapted(torch.device("cpu"))
            shard_layers(model, device())
        processes.totals([1])  # the next one begins here
    assert model is not None
    return model


def splits(run: Run, base: Path, processes: Processes) -> bool:
    """Whether the base is to be split: as `optim.fsdp` says; `auto`: where it is not quantised and does not fit a card.

    Raises:
        InputError: the recipe asks for it, and for what does not go with it.
    """
    optim, quantised = run.recipe.optim, run.recipe.base.load_in_4bit or run.recipe.base.load_in_8bit
    if optim.fsdp is True and quantised:
        raise InputError(
            "optim.fsdp: a quantised base is whole in each process: set it to auto, or base.load_in_4bit and "
            "base.load_in_8bit to false"
        )
    if processes.size == 1 or quantised:
        return False
    wanted = optim.fsdp is True
    if optim.fsdp == "auto" and not optim.compile:
        wanted = placement(base, run.loading)[1] != device()
    if wanted and optim.compile:
        raise InputError("optim.compile: not with a base that is split among processes (optim.fsdp): set it to false")
    if wanted:
        print(f"the base is split among {processes.size} processes (FSDP2)", flush=True)
    return wanted
