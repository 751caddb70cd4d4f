"""How much memory there still is: of the machine's, and of what a container or a service may have."""

from pathlib import Path

import psutil

from calrec_lite.threads import GROUPS, control_groups

VERSIONS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)  # of control groups: where each says its limit, what is used, and in what is used the files


def free_ram(groups: Path = GROUPS) -> int:
    """Bytes of RAM that this process can still take."""
    free = psutil.virtual_memory().available
    for group in control_groups(groups):
        for cap, usage, cache in VERSIONS:
            try:
                lines = (group / cap).with_name("memory.stat").read_text().splitlines()
                # Files that were read are given back before anything else is.
                used = int((group / usage).read_text()) - int(dict(line.split() for line in lines)[cache])
                free = min(free, int((group / cap).read_text()) - used)
            except (OSError, ValueError, KeyError):  # another version of it, no group, or no limit ("max")
                continue
    return max(0, free)
