"""Waiting before the first delta: bounded by the call's time, with signs of life."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from atmosphere_grpc.domain import Progress, Waiting
from atmosphere_grpc.execution.budget import Budget, PhaseLimit

T = TypeVar("T")


class Pulse:
    """Says from time to time that a call is alive.

    Args:
        budget: The call's time.
        interval_s: Between two signs of life, in seconds; infinite for none.
    """

    def __init__(self, budget: Budget, interval_s: float = math.inf) -> None:
        self._budget = budget
        self._interval_s = interval_s
        self._next = time.monotonic() + interval_s
        #: Whether it says nothing.
        self.silent = interval_s == math.inf
        #: What the call waits for.
        self.waiting = Waiting.CONNECTING
        #: How many calls are ahead in the queue.
        self.ahead: Callable[[], int] = _nobody

    def connected(self) -> None:
        """Notes that the backend has the request."""
        self.waiting, self.ahead = Waiting.FIRST_TOKEN, _nobody

    async def until(
        self, future: asyncio.Future[Any], limit: PhaseLimit
    ) -> AsyncGenerator[Progress, None]:
        """Waits until a future is done, which it leaves alone; tells that the call is alive.

        Raises:
            Failure: The wait took too long.
        """
        while not future.done():
            left_s = limit.left_s
            if left_s <= 0:
                raise limit.failure()
            due_s = self._next - time.monotonic()
            await asyncio.wait({future}, timeout=min(left_s, max(due_s, 0)))
            if due_s <= left_s and not future.done() and time.monotonic() >= self._next:
                self._next = time.monotonic() + self._interval_s
                yield Progress(self.waiting, self.ahead(), self._budget.elapsed_ms)


@asynccontextmanager
async def running(work: Coroutine[Any, Any, T]) -> AsyncGenerator[asyncio.Task[T], None]:
    """A task that has ended when the block has: cancelled, unless it was done before."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as lost


def _nobody() -> int:
    return 0
