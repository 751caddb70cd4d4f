"""Which row of vLLM's logits is which text, by the interfaces of both its model runners; nothing of vLLM is imported.

A request asks for an item by `extra_args={"catalogue": [...]}`: what of its history the catalogue knows, as indices,
oldest first. Its prompt ends in the tokens that all items begin with (`Trie.root`). Other requests stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calrec_lite.decode.steering import Steering

ASKED = "catalogue"  # the key in a request's `extra_args`


def asked_history(sampling_params: Any) -> np.ndarray | None:
    """The history of a request that asks for an item; None: it does not.

    Raises:
        ValueError: what it says is no list of indices.
    """
    history = (sampling_params.extra_args or {}).get(ASKED)
    if history is None:
        return None
    if not isinstance(history, list) or any(type(i) is not int or i < 0 for i in history):
        raise ValueError(f"`{ASKED}` holds the history's items as indices of the catalogue, such as [3, 17] or []")
    return np.array(history, np.int64)


class SlotRows:
    """Model runner V2: a request keeps its slot, the device has the tokens, the host knows how many.

    Args:
        states: vLLM's `LogitsProcRequestState`.
    """

    def __init__(self, steering: Steering, states: Any) -> None:
        self.steering, self.states = steering, states
        self.asks = np.zeros(states.max_num_reqs, np.bool_)
        self.read = np.zeros(states.max_num_reqs, np.int64)  # how many of each one's tokens the steering knows

    def add_request(self, slot: int, sampling_params: Any) -> bool:
        """A request that comes in, or comes back with what it has drawn so far; returns whether it asks for an item."""
        history = asked_history(sampling_params)
        self.asks[slot], self.read[slot] = history is not None, 0
        if history is not None:
            self.steering.begin(slot, history)
        return history is not None

    def apply(self, logits: Tensor, context: Any) -> Tensor:
        """By the step's `LogitsContext`: without speculative decoding a row is a request."""
        slots = context.idx_mapping_np
        prompts = self.states.prompt_len.np[slots]
        drawn = context.seq_lens_upper_bound_np - prompts
        rows = np.flatnonzero(self.asks[slots] & (drawn >= 0))  # below that a prompt is not read to its end yet
        if not len(rows):
            return logits
        slots, prompts, drawn = slots[rows].astype(np.int64), prompts[rows], drawn[rows]
        on_device = torch.from_numpy(slots).to(logits.device, non_blocking=True)
        self._read(slots, on_device, prompts, drawn)
        where = torch.from_numpy(rows).to(logits.device, non_blocking=True)
        self.steering.apply(logits, where, on_device, drawn)
        return logits

    def _read(self, slots: np.ndarray, on_device: Tensor, prompts: np.ndarray, drawn: np.ndarray) -> None:
        """Take the tokens since the last step: one, or of a request that came back all."""
        while (behind := np.flatnonzero(self.read[slots] < drawn)).size:
            place = prompts[behind] + self.read[slots[behind]]
            some, places = (
                torch.from_numpy(a.astype(np.int64)).to(on_device.device, non_blocking=True) for a in (behind, place)
            )
            tokens = self.states.all_token_ids.gpu[on_device[some], places].long()
            self.steering.read(on_device[some], tokens)
            self.read[slots[behind]] += 1


@dataclass
class _Text:
    """A request of the V1 runner: its slot in the steering, the list vLLM adds its tokens to, how many are read."""

    slot: int
    tokens: Sequence[int]
    read: int = 0


class BatchRows:
    """Model runner V1: requests come, go and move among the rows of a batch, the host has the tokens."""

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self.texts: dict[int, _Text] = {}  # row -> text
        self.free = list(range(len(steering.histories)))

    def update_state(self, update: Any) -> None:
        """By a step's `BatchUpdate`: what is removed, added, moved, in this order."""
        if update is None:
            return
        for row in update.removed:
            self._drop(row)
        for row, params, _, tokens in update.added:
            self._drop(row)
            history = asked_history(params)
            if history is not None:
                self.texts[row] = _Text(self.free.pop(), tokens)
                self.steering.begin(self.texts[row].slot, history)
        for row, to, direction in update.moved:
            moved, there = self.texts.pop(row, None), self.texts.pop(to, None)
            if moved is not None:
                self.texts[to] = moved
            if there is not None and direction.name == "SWAP":
                self.texts[row] = there
            elif there is not None:
                self.free.append(there.slot)

    def _drop(self, row: int) -> None:
        if (text := self.texts.pop(row, None)) is not None:
            self.free.append(text.slot)

    def apply(self, logits: Tensor) -> Tensor:
        """Of all rows that ask for an item."""
        if not self.texts:
            return logits
        rows, texts = zip(*self.texts.items())
        while behind := [text for text in texts if text.read < len(text.tokens)]:
            slots, tokens = [t.slot for t in behind], [t.tokens[t.read] for t in behind]
            self.steering.read(*torch.tensor([slots, tokens], device=logits.device))
            for text in behind:
                text.read += 1
        where, slots = torch.tensor([rows, [t.slot for t in texts]], device=logits.device)
        self.steering.apply(logits, where, slots, np.array([t.read for t in texts]))
        return logits
