"""How many cores this process may use: not those of the machine where it is given fewer."""

from __future__ import annotations

import os
from pathlib import Path

#: What a container is given of the CPU: `<microseconds> <of so many>`, or `max`.
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def cores(cpu_max: Path = CPU_MAX) -> int:
    """The cores, at least 1; of a share of one, one."""
    if hasattr(os, "sched_getaffinity"):
        known = len(os.sched_getaffinity(0))
    else:
        known = os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(known, int(quota) // int(period)))
    except (OSError, ValueError):  # there is no such limit
        return known
