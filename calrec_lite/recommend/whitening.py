"""Text vectors of a catalogue made comparable: centred, and all directions of the same variance."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 768  # coordinates that are kept; of few items half as many as these: with N - 1, all pairs are equally far apart
LEAST = 1e-3  # of the largest standard deviation: a direction that varies less is noise


@dataclass(frozen=True)
class Whitening:
    """`(vector - mean) @ matrix`, as fitted on a catalogue.

    A language model's vectors share one large common part, so that all cosines are near 1; whitened, those of an
    untouched LLM rank items as well as a sentence encoder's (docs/method.md, 8).

    Attributes:
        mean: (D,).
        matrix: (D, W) principal directions over their standard deviations, the largest first.
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> "Whitening":
        """Fitted on vectors (N, D)."""
        vectors = vectors.double()
        mean = vectors.mean(0)
        _, deviation, directions = torch.linalg.svd(vectors - mean, full_matrices=False)
        kept = (deviation > LEAST * deviation[0]).nonzero()[:, 0][: min(MOST, len(vectors) // 2)]
        if not len(kept):  # a single item, or all alike
            return cls(mean.float(), vectors.new_zeros(vectors.shape[1], 1).float())
        matrix = directions[kept].T / deviation[kept] * len(vectors) ** 0.5
        return cls(mean.float(), matrix.float())

    def __call__(self, vectors: Tensor) -> Tensor:
        """(N, W) unit vectors of (N, D)."""
        return F.normalize((vectors - self.mean) @ self.matrix, dim=-1)
