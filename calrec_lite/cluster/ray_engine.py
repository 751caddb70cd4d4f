"""Parts of a work done by actors of Ray Data, each with a model of its own.

Ray starts an actor that died anew and its part with it; what a part writes appears when it is whole, so doing one twice
does no harm. Of each part there is at last a `_state/NAME.json`, which says what came of it: it is done.
"""

import json
import logging
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from calrec_lite.cluster.parts import Place
from calrec_lite.errors import InputError, RunError, one_line

RESTARTS = 10  # of one actor, before the run is given up
SPARE = 2  # local CPUs by Ray's count beyond the workers': Ray Data has actors of its own, which idle
RUN = "_state/run.json"


@dataclass(frozen=True)
class Job:
    """What an actor needs to know.

    Attributes:
        model, opening: of `Recommender.from_pretrained`.
        out: folder of the parts.
        identity: what comes out depends on; a run that was begun with other values is not continued.
        parts: each has a `name`.
        option: of the command, which names `out`.
    """

    model: str
    opening: Mapping[str, Any]
    out: str
    identity: Mapping[str, Any]
    parts: Sequence[Any] = field(default=(), kw_only=True)
    option: str = field(default="--out", kw_only=True)


class Actor(ABC):
    """Its model is loaded once, then it takes part after part."""

    def __init__(self, job: Any) -> None:
        from calrec_lite.recommend.recommender import Recommender

        self.job, self.place = job, Place(job.out)
        self.recommender = Recommender.from_pretrained(job.model, **job.opening)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        faults = [self._done(self.job.parts[int(number)]) for number in batch["number"]]
        return {"fault": [text for text, _ in faults], "input": [wrong for _, wrong in faults]}

    def _done(self, part: Any) -> tuple[str, bool]:
        """What is wrong with a part that cannot be done, and whether it is the user's input; empty: it is done."""
        try:
            with tempfile.TemporaryDirectory(prefix="calrec-lite-") as work:
                self.place.write(_state(part), self.do(part, Path(work)))
        except (InputError, RunError, OSError) as error:
            return f"{part}: {one_line(error)}", isinstance(error, InputError)
        return "", False

    @abstractmethod
    def do(self, part: Any, work: Path) -> Mapping[str, Any]:
        """Put what comes of a part into `self.place`, by way of the empty folder `work`; what its state says."""


def by_ray(
    actor: type[Actor], job: Job, workers: int | None, address: str | None, progress: bool
) -> list[Mapping[str, Any]]:
    """Do the parts that are left to do. Returns the states of all.

    Args:
        workers: actors, each with a model; each takes a GPU where the cluster has some. Default: as many, or 1.
        address: of a cluster, as `ray.init` takes it; default: RAY_ADDRESS, or Ray is started here.

    Raises:
        InputError: for an unfinished run of other input or options, and what makes parts fail however often they are
            done.
        RunError: parts could not be done; the same call does those that are left.
    """
    every, place = job.parts, Place(job.out, job.option)
    identity = {**job.identity, "parts": len(every)}
    dtype = _begun(place, identity)
    left = [number for number, part in enumerate(every) if place.read(_state(part)) is None]
    if left:
        with _ray(address, workers) as ray:
            gpus = int(ray.cluster_resources().get("GPU", 0))
            if dtype is None:
                dtype = _dtype_of_workers(ray, gpus, job.model)
                place.write(RUN, {**identity, "dtype": dtype})
            job = replace(job, opening={**job.opening, "dtype": dtype}, out=place.absolute)  # workers are elsewhere
            faults = _run(ray, actor, job, left, min(workers or gpus or 1, len(left)), min(gpus, 1), progress)
        if faults:
            raise _failed(faults, len(every))
    return [place.read(_state(part)) or {} for part in every]


def _begun(place: Place, identity: Mapping[str, Any]) -> str | None:
    """The number type of the parts that there are already; None: there are none. Raises InputError for other ones."""
    begun = place.read(RUN)
    if begun is None:
        return None
    dtype = begun.pop("dtype", None)
    identity = json.loads(json.dumps(identity))  # as it is read back
    if differing := [key for key in {**begun, **identity} if begun.get(key) != identity.get(key)]:
        raise InputError(
            f"{place.called}: begun with another {', another '.join(differing)}; start with the same, or name another "
            "folder"
        )
    return dtype


def _dtype_of_workers(ray: Any, gpus: int, model: str) -> str:
    """The number type that suits the machines of the workers: chosen once, as it may be measured."""
    if not gpus:
        return _dtype(model)
    return str(ray.get(ray.remote(num_cpus=1, num_gpus=1)(_dtype).remote(model)))


def _dtype(model: str) -> str:
    from calrec_lite.model.device import dtype_here
    from calrec_lite.package.layout import locate

    return dtype_here(locate(model)).dtype


def _failed(faults: Sequence[tuple[str, bool]], parts: int) -> InputError | RunError:
    """The error for parts that failed: their faults as an actor tells them. What needs mending comes first."""
    if wrong := [text for text, is_input in faults if is_input]:
        return InputError(f"{len(wrong)} of {parts} parts cannot be done as they are given; {wrong[0]}")
    return RunError(f"{len(faults)} of {parts} parts failed, the same command does them; {faults[0][0]}")


def _run(
    ray: Any, actor: type[Actor], job: Job, left: Sequence[int], workers: int, gpus: int, progress: bool
) -> list[tuple[str, bool]]:
    """What is wrong with parts that could not be done, as `Actor._done` says it."""
    ray.data.DataContext.get_current().enable_progress_bars = progress
    try:
        rows = ray.data.from_items([{"number": n} for n in left], override_num_blocks=len(left))
        done = rows.map_batches(
            actor,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=RESTARTS,
        )
        return [(row["fault"], bool(row["input"])) for row in done.take_all() if row["fault"]]
    except (ray.exceptions.RayError, OSError) as error:
        raise RunError(f"--engine ray: {one_line(error)}; the same command does the parts that are left") from error


@contextmanager
def _ray(address: str | None, workers: int | None) -> Iterator[Any]:
    """The library, connected to a cluster or to one of its own on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported unless asked for
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("--engine ray: needs the extra: pip install 'calrec-lite[ray]'") from None
    asked = address or os.environ.get("RAY_ADDRESS")
    cpus = max(os.cpu_count() or 1, (workers or 1) + SPARE)
    local: dict[str, Any] = {} if asked else {"num_cpus": cpus, "include_dashboard": False}
    try:
        ray.init(address=asked, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--address {asked}: {one_line(error)}") from None
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield ray
    finally:
        ray.shutdown()


def _state(part: Any) -> str:
    return f"_state/{part.name}.json"
