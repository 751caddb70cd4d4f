"""A base that fits no card: its frozen layers split among processes (FSDP2), each put together where it is computed."""

from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from calrec_lite.errors import InputError


def shard_layers(model: PeftModel, device: torch.device) -> None:
    """Keep an equal part of each decoder layer in each process, on its device; adapters, embedding and head whole.

    A layer's numbers are gathered for its forward and again for its backward pass, and let go after each: some three
    layers are whole at a time. From then on every process has to run as many forwards and backwards as every other one.

    Args:
        model: whole, on the CPU or the device, the adapter in place.

    Raises:
        InputError: the decoder is of a kind whose layers are not known.
    """
    causal: Any = model.get_base_model()
    decoder = causal.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise InputError(f"optim.fsdp: the layers of a {type(causal).__name__} are not known: load it in 4 bits")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # No name may hold a frozen parameter: it is moved to the device whole, and has to go once its part is taken.
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    whole |= set(model.parameters()) - set(layers.parameters())
    for part in (*layers, decoder):  # the decoder has no share of its own: its layers' gathering is led by it
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    model.to(device)  # what is not split
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of layers that were whole: what is free decides how many rows fit


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard_layers` was called on it, or on what holds it as its decoder."""
    return any(isinstance(part, FSDPModule) for part in model.modules())
