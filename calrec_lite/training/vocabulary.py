"""Which rows of embedding and LM head training reads, and that a GPU holds no others meanwhile."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from peft import PeftModel

from calrec_lite.method.rows import Rows
from calrec_lite.model.trimming import Trimmed, spared_bytes
from calrec_lite.recipe import Loss


class Vocabulary:
    """What of a model's vocabulary its training reads.

    Args:
        data: all rows that are trained on, and measured on meanwhile. loss: of the training.
    """

    def __init__(self, model: PeftModel, data: Sequence[Rows], loss: Loss, device: torch.device) -> None:
        self.model, self.data = model, data
        self.head = loss.softmax == "catalogue" and not loss.vocabulary_weight  # then it reads tokens of items alone
        self._trimmed: Trimmed | None = None
        self._stays_whole = not trims(device)

    @cached_property
    def ids(self) -> np.ndarray:
        """(K,) distinct ids that the rows and their catalogues' texts may hold, ascending."""
        return np.unique(np.concatenate([r.encoder.ids_with(p.catalogue.tokens) for r in self.data for p in r.parts]))

    @property
    def spared_bytes(self) -> int:
        """Bytes that `trimmed` frees on the device."""
        return 0 if self._stays_whole else spared_bytes(self.model, self.ids, self.head)

    @contextmanager
    def trimmed(self) -> Iterator[None]:
        """While it is open the device holds the rows that are read, and RAM the whole weights."""
        try:
            if not self._stays_whole:
                self._trimmed = Trimmed(self.model, self.ids, self.head)
            yield
        finally:
            self._restore()

    def keep_whole(self) -> None:
        """From now on, within `trimmed` too: for who reads any text."""
        self._stays_whole = True
        self._restore()

    def _restore(self) -> None:
        if self._trimmed:
            self._trimmed.restore()


def trims(device: torch.device) -> bool:
    """Whether it saves memory: on a CPU the whole weights would be in the same RAM."""
    return device.type == "cuda"
