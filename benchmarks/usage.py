"""What a server uses: the CPU and the memory of its whole tree of processes."""

from __future__ import annotations

import contextlib
import sys
import time

import psutil


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of a process and its descendants."""
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            total += _process_s(process)
    return total


def _process_s(process: psutil.Process) -> float:
    if sys.platform == "linux":  # the process's CPU clock, in ns; else it is in steps of 10 ms
        return time.clock_gettime((~process.pid << 3) | 2)
    times = process.cpu_times()
    return times.user + times.system


def rss_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; pages that they share count for each."""
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total
