"""`recommend --engine ray`: parts of files of histories ranked, by the same `Bulk` as the built-in engine's."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calrec_lite.cluster.parts import Part, inputs_of, local_copy, parts_of
from calrec_lite.cluster.ray_engine import Actor, Job, by_ray
from calrec_lite.errors import InputError
from calrec_lite.recommend.bulk import Bulk, Progress
from calrec_lite.recommend.shards import rejects_path

COUNTED = ("users", "rejected", "items", "unknown")


@dataclass(frozen=True)
class ListsJob(Job):
    """`users`: file, folder or pattern of histories. `k`, `limits`, `strict`, `block`: as of `recommend` and `Bulk`."""

    users: str
    k: int | None
    limits: Mapping[str, Any]
    strict: bool
    block: int


class Ranker(Actor):
    """Ranks the users of a part."""

    def __init__(self, job: ListsJob) -> None:
        super().__init__(job)
        self.copies = tempfile.TemporaryDirectory(prefix="calrec-lite-")

    def do(self, part: Part, work: Path) -> Mapping[str, Any]:
        users, out = local_copy(part.source, Path(self.copies.name)), work / f"{part.name}.parquet"
        bulk = Bulk(users, out, {}, self.job.block, self.job.strict, part.shard)
        done = bulk.run(self._lists, lambda name: self.recommender.find(name) is not None, progress=False)
        if (bad := rejects_path(bulk.out)).is_file():
            self.place.put(bad, f"_rejected/{part.name}.jsonl")
        self.place.put(bulk.out, out.name)
        return {name: getattr(done, name) for name in COUNTED}

    def _lists(self, histories: list[list[str]], candidates: list[list[str] | None]) -> Any:
        restriction: dict[str, Any] = {"candidates": candidates} if any(c is not None for c in candidates) else {}
        return self.recommender.recommend(histories, self.job.k, **self.job.limits, **restriction)


def recommend_by_ray(
    job: ListsJob,
    workers: int | None = None,
    address: str | None = None,
    parts: int | None = None,
    progress: bool = True,
) -> Progress:
    """Rank the parts that are left. Returns the totals, those of earlier calls included.

    Args:
        workers, address: as of `by_ray`. parts: of each input file.

    Raises:
        InputError, RunError: for files that cannot be used, and as `by_ray`.
    """
    inputs = inputs_of(job.users)
    identity = {**job.identity, "input": [list(i) for i in inputs]}
    job = replace(job, identity=identity, parts=parts_of([source for source, _ in inputs], parts))
    done = by_ray(Ranker, job, workers, address, progress)
    totals = Progress(complete=True, **{name: sum(int(d.get(name, 0)) for d in done) for name in COUNTED})
    if not totals.users:
        raise InputError(f"--users {job.users}: holds no user, {totals.rejected} lines rejected: {job.out}/_rejected")
    return totals
