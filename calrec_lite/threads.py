"""How many threads compute: one pool, of all physical cores that this process may use."""

import math
import os
from contextlib import suppress
from pathlib import Path

import psutil

CPUS = Path("/sys/devices/system/cpu")
GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def cores(cpus: Path = CPUS, groups: Path = GROUPS) -> int:
    """Physical cores that this process may use: within its affinity, and at most what its container may have.

    A second thread on a core (SMT) shares its arithmetic units: matrix products gain nothing by it.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    try:
        physical = len({(cpus / f"cpu{n}" / "topology" / "thread_siblings_list").read_text() for n in allowed})
    except OSError:
        physical = min(psutil.cpu_count(logical=False) or len(allowed), len(allowed))
    return max(1, min([physical, *map(_group_limit, control_groups(groups))]))


def control_groups(groups: Path) -> list[Path]:
    """Folders of the control group that this process is in, and of those around it."""
    path = ""
    with suppress(OSError, StopIteration):
        lines = OWN_GROUP.read_text().splitlines()
        path = next(line for line in lines if line.startswith("0::")).removeprefix("0::").strip("/")
    folder = groups / path
    return [folder, *(above for above in folder.parents if above.is_relative_to(groups))]


def _group_limit(group: Path) -> int:
    """Cores that a control group (a container, a service) may have, begun ones as whole; of both versions of it."""
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))  # `max` is no number: no limit
    with suppress(OSError, ValueError):
        quota, period = ((group / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            return math.ceil(int(quota) / int(period))
    return os.cpu_count() or 1


def share_cores() -> None:
    """Give all cores to torch's thread pool and one thread to NumPy's; what the user has set stays.

    To be called before either is imported: both read the environment once. `data` sets the number of DuckDB's threads;
    they end with its connection, before anything is trained.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def described(threads: int) -> str:
    """`2 threads`, and why it is no more where the machine has more cores."""
    machine = psutil.cpu_count(logical=False) or threads
    text = f"{threads} thread{'s' if threads > 1 else ''}"
    if threads >= machine:
        return text
    allowed = cores()
    why = "as was asked for" if threads != allowed else "all that this process may use"
    return f"{text} of {machine} cores, {why}"
