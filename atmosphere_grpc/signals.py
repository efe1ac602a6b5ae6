"""SIGTERM and SIGINT: the first drains, the second stops at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Signals:
    """The first and the second signal; made in the event loop.

    Attributes:
        first: Set with the first.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self._second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._note)

    def _note(self) -> None:
        (self._second if self.first.is_set() else self.first).set()

    async def unless_first(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What the work gives; None when a first signal cut it short."""
        return await unless(self.first, work)

    async def unless_second(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether the work was done before a second signal cut it short."""
        await unless(self._second, work)
        return not self._second.is_set()


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work gives; cancels it, and gives None, when the event comes first."""
    task = asyncio.create_task(work)
    waiter = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        for unfinished in (task, waiter):
            unfinished.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)
