"""Dataclasses of tensors that move to a device as one."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor


class OnDevice:
    """A dataclass of tensors that moves as one."""

    def to(self, device: torch.device | str) -> Any:
        """On the device; from pinned memory the copy runs beside the host's work."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Any:
        """In page-locked memory; the data loader calls it where there is a GPU."""
        return self._map_tensors(Tensor.pin_memory)

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> Any:
        mapped = {f.name: _mapped(getattr(self, f.name), change) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **mapped)  # type: ignore[type-var]


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, OnDevice):
        return value._map_tensors(change)
    return [_mapped(v, change) for v in value] if isinstance(value, list) else value
