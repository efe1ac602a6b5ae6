"""How many calls an integration is given at a time, and how many wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atmosphere_grpc.errors import Failure, Reason


class Limiter:
    """Permits for calls, in the order of their asking.

    Args:
        name: Whose calls they are, for messages.
        max_concurrency: The most permits that are held at a time.
        max_queue: The most calls that wait for one.
    """

    def __init__(self, name: str, max_concurrency: int, max_queue: int) -> None:
        self._name = name
        self._max_queue = max_queue
        self._permits = asyncio.Semaphore(max_concurrency)
        self._idle = asyncio.Event()
        self._idle.set()
        self.active = 0
        self.waiting = 0

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[None]:
        """A permit, as long as the block runs.

        Raises:
            Failure: QUEUE_FULL.
        """
        if self._permits.locked() and self.waiting >= self._max_queue:
            raise Failure(
                Reason.QUEUE_FULL,
                f'integration "{self._name}": {self.active} calls run and {self.waiting} wait, '
                "which is all it takes (limits)",
            )
        self._idle.clear()
        self.waiting += 1
        try:
            await self._permits.acquire()
        except BaseException:
            self.waiting -= 1
            self._note_idle()
            raise
        self.waiting -= 1
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1
            self._permits.release()
            self._note_idle()

    async def idle(self) -> None:
        """Waits until no call runs or waits."""
        await self._idle.wait()

    def _note_idle(self) -> None:
        if not self.active and not self.waiting:
            self._idle.set()
