"""Several processes that train as one: which one this is, what they add up, and what the first tells the others."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from calrec_lite.errors import InputError, OthersEnded, one_line
from calrec_lite.launcher import process_count

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # for which the others wait while the first prepares, merges or measures
COMMUNICATION = re.compile("gloo|nccl", re.IGNORECASE)  # whose errors have no class of their own
FOREIGN = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


class Share(NamedTuple):
    """One of so many parts of a list: every so-many-th value, which of a sorted list makes parts alike."""

    rank: int = 0
    size: int = 1

    def dealt(self, values: Sequence[T]) -> list[T]:
        """All values: those of the first part, then those of the second one, ..."""
        return [value for rank in range(self.size) for value in values[rank :: self.size]]

    def own(self, n: int) -> slice:
        """Where this part is among n dealt values."""
        first = sum(len(range(rank, n, self.size)) for rank in range(self.rank))
        return slice(first, first + len(range(self.rank, n, self.size)))


class Processes:
    """This process among those that train together, in steps of which each does its share.

    Sums are recorded until the next step begins: where memory runs out in one process, it does its share again, in
    smaller parts, without the others knowing.

    Args:
        rank: of this process, from 0.
        size: how many there are; 1: this one alone, and nothing is sent.
        waiting: a group of all, on CPUs, that waits for long; None where there is one process.
    """

    def __init__(self, rank: int = 0, size: int = 1, waiting: Any = None) -> None:
        self.rank, self.size, self._waiting = rank, size, waiting
        self._sums: list[Tensor] = []  # of this step, in order
        self._next = 0

    @property
    def share(self) -> Share:
        """Of a step's rows and texts, this process's part."""
        return Share(self.rank, self.size)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def begin_step(self) -> None:
        """Forget the sums of the step before."""
        self._sums, self._next = [], 0

    def begin_again(self) -> None:
        """Do this step's share once more: what was added up already is not sent again."""
        self._next = 0

    def summed(self, value: Tensor) -> Tensor:
        """The sum of all processes' tensors; equal, to the bit, in all of them."""
        if self.size == 1:
            return value
        if self._next == len(self._sums):
            total = value.detach().clone().contiguous()
            with self._together():
                dist.all_reduce(total)
            self._sums.append(total)
        self._next += 1
        return self._sums[self._next - 1].clone()

    def gathered(self, own: Tensor, first: int, total: int) -> Tensor:
        """(total, D) of all processes, this one's rows from `first` on. The gradient at these is the sum of all's."""
        return own if self.size == 1 or not total else _Gathered.apply(own, first, total, self)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by the sum of all processes', all of them in one message."""
        if self.size == 1:
            return
        with_gradient = [p for p in parameters if p.requires_grad]
        for parameter in with_gradient:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in with_gradient if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        with self._together():
            dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))

    def totals(self, counts: Sequence[int]) -> list[int]:
        """The sum of each count; on CPUs, so that no device is waited for."""
        if self.size == 1:
            return list(counts)
        total = torch.tensor(counts, dtype=torch.int64)
        with self._together():
            dist.all_reduce(total, group=self._waiting)
        return [int(count) for count in total]

    def most(self, counts: Sequence[int]) -> list[int]:
        """The largest of each count; on CPUs, as `totals`."""
        largest = torch.tensor(counts, dtype=torch.int64)
        with self._together():
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._waiting)
        return [int(count) for count in largest]

    def tell(self, value: T | None = None) -> T | None:
        """What the first process says; the others wait for it."""
        if self.size == 1:
            return value
        told = [value]
        with self._together():
            dist.broadcast_object_list(told, src=0, group=self._waiting)
        return told[0]

    def by_first(self, work: Callable[[], T]) -> T:
        """The result of `work`, done by the first process while the others wait. It has to be picklable."""
        return self.tell(work() if self.first else None)  # type: ignore[return-value]

    def copy_first(self, parameters: Iterable[Tensor]) -> None:
        """Give all processes the first one's values of what is trained."""
        if self.size > 1:
            with self._together(), torch.no_grad():
                for parameter in parameters:
                    if parameter.requires_grad:
                        dist.broadcast(parameter.data, src=0)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Around work in which torch itself sends between processes (FSDP2)."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or COMMUNICATION.search(str(error))):
                raise
            raise self._alone(error) from error

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's errors of communication are of this class
            raise self._alone(error) from error

    def _alone(self, error: RuntimeError) -> OthersEnded:
        reason = one_line(error, 150)
        return OthersEnded(
            f"process {self.rank} of {self.size}: another one has ended, or does not answer ({reason}); the same "
            "command goes on where it stopped"
        )


class _Gathered(torch.autograd.Function):
    """Rows of all processes one after the other: a sum of what is zero but for one's own, and so is its gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, first: int, total: int, processes: Processes) -> Tensor:
        ctx.rows, ctx.processes = slice(first, first + len(own)), processes
        padded = own.new_zeros(total, *own.shape[1:])
        padded[ctx.rows] = own
        return processes.summed(padded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return ctx.processes.summed(gradient)[ctx.rows], None, None, None


ALONE, WHOLE = Processes(), Share()


@lru_cache(1)
def joined() -> Processes:
    """The processes that a launcher (torchrun, `accelerate launch`) started, met by the first call; or this one alone.

    Raises:
        InputError: accelerate is told to share out the model itself.
        OthersEnded: they do not meet.
    """
    if process_count() == 1:
        return ALONE
    if engine := next((name for key, name in FOREIGN.items() if os.environ.get(key, "").lower() == "true"), None):
        raise InputError(f"accelerate's configuration asks for {engine}: turn it off; here optim.fsdp splits a base")
    from accelerate import PartialState
    from accelerate.utils import check_cuda_p2p_ib_support

    if torch.cuda.is_available() and not check_cuda_p2p_ib_support():  # RTX 40: what accelerate's own launcher sets
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")
    try:
        state = PartialState(cpu=not torch.cuda.is_available())
        waiting = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:  # no address, or a process that never came
        raise OthersEnded(f"the processes do not meet ({one_line(error)}); see to the launcher's settings") from error
    return Processes(state.process_index, state.num_processes, waiting)
