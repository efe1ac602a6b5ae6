"""How many calls an integration is given at a time, and who waits for their turn, fairly."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from typing import Self

from atmosphere_grpc.errors import Failure, Reason

#: How many calls that were served last are looked at for how long one takes.
OBSERVED = 64
#: How much the latest call weighs in the mean.
WEIGHT = 0.2


class Turn:
    """A call's place, granted or in the queue, from when the block begins until it ends.

    Attributes:
        caller: Whose it is.
        granted: Done once it is its turn.
    """

    __slots__ = ("_limiter", "began", "caller", "granted", "served")

    def __init__(self, limiter: Limiter, caller: str) -> None:
        self._limiter = limiter
        self.caller = caller
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began = 0.0
        self.served = False

    def __enter__(self) -> Self:
        self._limiter.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._limiter.leave(self)

    def done(self) -> None:
        """Notes that the call was served, so that its time counts as what a call takes."""
        self.served = True


class Limiter:
    """Turns for calls: one after another within a caller, by turns between callers.

    Args:
        name: Whose calls they are, for messages.
        max_concurrency: The most calls that run at a time.
        max_queue: The most calls that wait.
    """

    def __init__(self, name: str, max_concurrency: int, max_queue: int) -> None:
        self._name = name
        self._max = max_concurrency
        self._max_queue = max_queue
        # By caller, whose turn it is next first; no queue is empty.
        self._queues: OrderedDict[str, deque[Turn]] = OrderedDict()
        self._idle = asyncio.Event()
        self._idle.set()
        self._observed: deque[float] = deque(maxlen=OBSERVED)
        self._mean_s = 0.0
        self.active = 0
        self.waiting = 0

    @property
    def fastest_s(self) -> float:
        """The shortest time that a call took lately, in seconds; 0 when none was seen."""
        return min(self._observed, default=0.0)

    def turn(self, caller: str = "") -> Turn:
        """A turn, for a `with` block, which raises QUEUE_FULL where there is no room."""
        return Turn(self, caller)

    def ahead(self, turn: Turn) -> int:
        """How many calls in the queue have their turn before this one; 0 for a granted one."""
        own = self._queues.get(turn.caller)
        if own is None or turn not in own:
            return 0
        place = own.index(turn)
        count, before = place, True
        for caller, queue in self._queues.items():
            if caller == turn.caller:
                before = False
            else:
                count += min(len(queue), place + before)
        return count

    def least_wait_s(self, turn: Turn) -> float:
        """The shortest time in which it can be a turn's turn, by the fastest calls seen lately."""
        # The calls that run may all end at once; those after them have to be served first.
        return self.fastest_s * (self.ahead(turn) // self._max)

    async def idle(self) -> None:
        """Waits until no call runs or waits."""
        await self._idle.wait()

    def enter(self, turn: Turn) -> None:
        """Grants a turn, or puts it into the queue.

        Raises:
            Failure: QUEUE_FULL, with the time after which there should be room.
        """
        if self.active < self._max and not self.waiting:
            self._idle.clear()
            self._grant(turn)
            return
        if self.waiting >= self._max_queue:
            raise Failure(
                Reason.QUEUE_FULL,
                f'integration "{self._name}": of its calls {self.active} run and {self.waiting} '
                "wait, which is all that its limits allow",
                retry_after_s=self._room_in_s(),
            )
        self._queues.setdefault(turn.caller, deque()).append(turn)
        self.waiting += 1

    def leave(self, turn: Turn) -> None:
        """Ends a turn, however it went; the next in the queue has theirs."""
        if turn.granted.done():
            self.active -= 1
            if turn.served:
                self._observe(time.monotonic() - turn.began)
            self._grant_next()
        else:
            self._drop(turn)
        if not self.active and not self.waiting:
            self._idle.set()

    def _grant(self, turn: Turn) -> None:
        self.active += 1
        turn.began = time.monotonic()
        turn.granted.set_result(None)

    def _grant_next(self) -> None:
        while self.active < self._max and self._queues:
            caller, queue = next(iter(self._queues.items()))
            turn = queue.popleft()
            self.waiting -= 1
            if queue:
                self._queues.move_to_end(caller)
            else:
                del self._queues[caller]
            self._grant(turn)

    def _drop(self, turn: Turn) -> None:
        queue = self._queues[turn.caller]
        queue.remove(turn)
        self.waiting -= 1
        if not queue:
            del self._queues[turn.caller]

    def _observe(self, took_s: float) -> None:
        first = not self._observed
        self._observed.append(took_s)
        self._mean_s = took_s if first else self._mean_s + WEIGHT * (took_s - self._mean_s)

    def _room_in_s(self) -> float | None:
        """When a place in the queue should be free: when one call has been served."""
        return math.ceil(1000 * self._mean_s / self._max) / 1000 if self._observed else None
