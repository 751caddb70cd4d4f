"""Which rows make each optimiser step, in which order."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from calrec_lite.method.rows import Rows


class StepSampler(Sampler[list[int]]):
    """The rows of each optimiser step: one domain a step, rows of similar length together, order drawn by the seed.

    One domain a step, because texts of another domain are negatives that are too easy to tell apart.
    An incomplete last step of a domain is filled with rows drawn again, so that the number of
    negatives never changes.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, 0
        counts = np.bincount(rows.domain, minlength=len(rows.parts))
        self.steps = int(sum(-(-c // batch_size) for c in counts))

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        steps: list[np.ndarray] = []
        for d in range(len(self.rows.parts)):
            order = random.permutation(np.flatnonzero(self.rows.domain == d))
            missing = -len(order) % self.batch_size
            order = np.concatenate([order, random.choice(order, missing)]) if missing else order
            for pool in range(0, len(order), 32 * self.batch_size):  # sorted within pools: shuffled, yet little padding
                part = order[pool : pool + 32 * self.batch_size]
                part = part[np.argsort(self.rows.length[part], kind="stable")]
                steps += list(part.reshape(-1, self.batch_size))
        for i in random.permutation(len(steps)):
            yield steps[i].tolist()
