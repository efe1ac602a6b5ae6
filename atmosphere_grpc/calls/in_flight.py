"""Which calls are in flight, and whether new ones are let in."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any

from atmosphere_grpc.calls.arrival import Arrival
from atmosphere_grpc.errors import Failure, Reason


class InFlight:
    """Counts calls until their status is sent, so that a drain loses no answer."""

    def __init__(self) -> None:
        self.count = 0
        self.by_method: Counter[str] = Counter()
        self._closed = False
        self._refused_at: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self, method: str, arrival: Arrival) -> None:
        """Lets a call of a method in, until it is done.

        Raises:
            Failure: DRAINING.
        """
        if self._closed:
            self._refused_at = asyncio.get_running_loop().time()
            raise Failure(Reason.DRAINING, "this server is stopping – retry, another will answer")
        self.count += 1
        self.by_method[method] += 1
        self._idle.clear()
        arrival.add_done_callback(partial(self._leave, method))

    def close(self) -> None:
        """Lets no more calls in."""
        self._closed = True

    async def drained(self, grace_s: float) -> bool:
        """Waits until no call is in flight; False when `grace_s` was not enough."""
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def quiet(self, quiet_s: float, limit_s: float) -> None:
        """Waits until no call was refused for `quiet_s`, or none ever; at most `limit_s`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while self._refused_at is not None:
            left_s = min(self._refused_at + quiet_s, end) - loop.time()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)

    def _leave(self, method: str, _: Any) -> None:
        self.count -= 1
        self.by_method[method] -= 1
        if not self.count:
            self._idle.set()
