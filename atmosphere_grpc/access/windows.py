"""Counting in windows of time: what is needed of a storage, and one in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

#: How often windows that are over are swept out, in seconds.
SWEEP_S = 60.0


class Windows(Protocol):
    """Counts by name; a window begins with the first count in it. Times are Unix times.

    The storages of the package limits are such.
    """

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Counts, in a window of so many seconds; gives the count."""
        ...

    async def get(self, key: str) -> int:
        """The count; 0 where there is no window."""
        ...

    async def get_expiry(self, key: str) -> float:
        """When the window is over; now, where there is none."""
        ...


class MemoryWindows:
    """Windows in this process.

    The package's own goes through all of them with each count, in a task of its own.

    Args:
        clock: The time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._windows: dict[str, tuple[int, float]] = {}  # the count, and when it is over
        self._sweep_at = clock() + SWEEP_S

    def __len__(self) -> int:
        return len(self._windows)

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Counts, in a window of so many seconds; gives the count."""
        now = self._clock()
        if now >= self._sweep_at:
            self._windows = {name: item for name, item in self._windows.items() if item[1] > now}
            self._sweep_at = now + SWEEP_S
        count, over_at = self._windows.get(key, (0, 0.0))
        if over_at <= now:
            count, over_at = 0, now + expiry
        count += amount
        self._windows[key] = count, over_at
        return count

    async def get(self, key: str) -> int:
        """The count; 0 where there is no window."""
        count, over_at = self._windows.get(key, (0, 0.0))
        return count if over_at > self._clock() else 0

    async def get_expiry(self, key: str) -> float:
        """When the window is over; now, where there is none."""
        window = self._windows.get(key)
        return window[1] if window is not None else self._clock()
