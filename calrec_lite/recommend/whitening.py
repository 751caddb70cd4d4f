"""Text vectors of a catalogue made comparable: centred, and all directions of the same variance."""

from collections.abc import Sequence
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
        centred = vectors - mean
        variance, directions = torch.linalg.eigh(centred.T @ centred / len(vectors))  # ascending; columns
        deviation, directions = variance.clamp(min=0).sqrt().flip(0), directions.flip(1)
        kept = ((deviation > LEAST * deviation[0]) & (deviation > 0)).nonzero()[:, 0][: min(MOST, len(vectors) // 2)]
        if not len(kept):  # a single item, or all alike
            return cls(mean.float(), vectors.new_zeros(vectors.shape[1], 1).float())
        matrix = directions[:, kept] / deviation[kept]
        return cls(mean.float(), matrix.float())

    @classmethod
    def of_layers(cls, vectors: Tensor) -> "tuple[Whitening, ...]":
        """One for each layer of (N, L, D), or one for (N, D)."""
        vectors = vectors if vectors.dim() == 3 else vectors.unsqueeze(1)
        return tuple(cls.of(layer) for layer in vectors.unbind(1))

    def __call__(self, vectors: Tensor) -> Tensor:
        """(N, W) unit vectors of (N, D)."""
        return F.normalize((vectors - self.mean) @ self.matrix, dim=-1)


def whitened(vectors: Tensor, whitenings: Sequence[Whitening]) -> Tensor:
    """(N, W) unit vectors of (N, L, D) or (N, D): each layer's, one after the other, so that cosines are their mean."""
    vectors = vectors if vectors.dim() == 3 else vectors.unsqueeze(1)
    layers = [whitening(layer) for whitening, layer in zip(whitenings, vectors.unbind(1), strict=True)]
    return torch.cat(layers, 1) / len(layers) ** 0.5
