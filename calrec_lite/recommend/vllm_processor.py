"""The catalogue as a logits processor of vLLM, which loads this module by its name wherever it draws.

By itself: `vllm serve EXPORT --logits-processors calrec_lite.recommend.vllm_processor:CatalogueProcessor`.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

from calrec_lite.data.transitions import Transitions
from calrec_lite.decode.steering import Steering
from calrec_lite.model.tokenizer import load_tokenizer
from calrec_lite.package.layout import open_package
from calrec_lite.recommend.vllm_rows import BatchRows, SlotRows, asked_history
from calrec_lite.text.encoding import Encoder


class CatalogueProcessor(V2LogitsProcessor, V1LogitsProcessor):
    """Both interfaces in one, as which runner serves a model is known only to the engine: V2 gives the states of its
    requests, V1 a device and whether memory is pinned."""

    def __init__(self, vllm_config: Any, states_or_device: Any, is_pin_memory: bool | None = None) -> None:
        if vllm_config.speculative_config is not None:
            raise ValueError("CatalogueProcessor: not together with speculative decoding")
        legacy = isinstance(states_or_device, torch.device)
        device = states_or_device if legacy else states_or_device.device
        slots = vllm_config.scheduler_config.max_num_seqs if legacy else states_or_device.max_num_reqs
        steering = _steering(vllm_config.model_config.model, slots, device)
        self.rows: Any = BatchRows(steering) if legacy else SlotRows(steering, states_or_device)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        asked_history(sampling_params)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        self.rows.update_state(batch_update)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        return bool(self.rows.add_request(req_idx, sampling_params))

    def apply(self, logits: Tensor, *context: Any) -> Tensor:
        """Logits to log P; V2 gives the step's context, too."""
        return self.rows.apply(logits, *context)  # type: ignore[no-any-return]


def _steering(folder: str, slots: int, device: torch.device) -> Steering:
    """Of the items of the export that vLLM has opened."""
    package = open_package(folder)
    encoder = Encoder(load_tokenizer(package.folder), package.text)
    transitions = None
    if package.info.collaborative:
        transitions = Transitions.open(package.transitions_file(), package.aliases, len(package.ids))
    return Steering(package.catalogue(encoder, transitions), encoder.end, slots, device)
