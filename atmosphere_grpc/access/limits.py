"""How much a caller may do: calls and tokens a minute, calls in flight.

A minute begins with a caller's first call in it. Counting is one step of the storage, so that calls
at the same time are not let in by the same count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

from limits.errors import StorageError

from atmosphere_grpc.access.caller import Caller
from atmosphere_grpc.access.windows import MemoryWindows, Windows
from atmosphere_grpc.errors import Failure, Reason

log = logging.getLogger(__name__)
T = TypeVar("T")

NAMESPACE = "atmosphere"
MINUTE_S = 60
#: How long a shared storage may take, in seconds.
STORAGE_TIMEOUT_S = 1.0
#: How long one that failed is left alone, in seconds.
STORAGE_PAUSE_S = 5.0


class Bill:
    """A call that is let in when the block begins, and charged for when it ends.

    Attributes:
        tokens: Those that its caller is charged with.
    """

    __slots__ = ("_caller", "_limits", "tokens")

    def __init__(self, limits: Limits, caller: Caller) -> None:
        self._limits = limits
        self._caller = caller
        self.tokens = 0

    async def __aenter__(self) -> Self:
        await self._limits.enter(self._caller)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._limits.leave(self._caller, self.tokens)


class Limits:
    """Counts what callers do.

    Args:
        shared: Where it is counted for several servers; None: in this process. As long as it
            fails, each server counts for itself.
        aclose: Closes that.
    """

    def __init__(
        self,
        shared: Windows | None = None,
        aclose: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._own: Windows = MemoryWindows()
        self._shared = shared
        self._aclose = aclose
        self._paused_until = 0.0
        self._in_flight: Counter[str] = Counter()
        self._charging: set[asyncio.Task[int]] = set()

    def call(self, caller: Caller) -> Bill:
        """A call, for an `async with` block, which raises a `Failure` where it is not let in."""
        return Bill(self, caller)

    async def enter(self, caller: Caller) -> None:
        """Lets a call in.

        Raises:
            Failure: RATE_LIMITED, with the time after which there is room.
        """
        most, account = caller.policy.max_concurrency, caller.account
        if most is not None and self._in_flight[account] >= most:
            raise _limited(f"{most} calls of this caller are in flight", None, caller)
        self._in_flight[account] += 1
        try:
            await self._count(caller)
        except BaseException:
            self._done(account)
            raise

    async def leave(self, caller: Caller, tokens: int) -> None:
        """Charges the caller of a call that is over."""
        try:
            if tokens and caller.policy.tokens_per_minute is not None:
                await self._charge(caller, tokens)
        finally:
            self._done(caller.account)

    async def aclose(self) -> None:
        """Charges what is still to be charged, and closes the storage."""
        await asyncio.gather(*self._charging)
        if self._aclose is not None:
            await self._aclose()

    def _done(self, account: str) -> None:
        self._in_flight[account] -= 1
        if not self._in_flight[account]:
            del self._in_flight[account]

    async def _count(self, caller: Caller) -> None:
        policy = caller.policy
        if (most := policy.tokens_per_minute) is not None:
            tokens = _name("tokens", caller)
            if await self._ask(lambda windows: windows.get(tokens)) >= most:
                raise await self._over(caller, most, "tokens")
        if (most := policy.requests_per_minute) is not None:
            requests = _name("requests", caller)
            if await self._ask(lambda windows: windows.incr(requests, MINUTE_S)) > most:
                raise await self._over(caller, most, "requests")

    async def _over(self, caller: Caller, most: int, what: str) -> Failure:
        over_at = await self._ask(lambda windows: windows.get_expiry(_name(what, caller)))
        left_s = max(0.001, over_at - time.time())
        return _limited(f"{most} {what} in a minute are used up", left_s, caller)

    async def _charge(self, caller: Caller, tokens: int) -> None:
        name = _name("tokens", caller)
        charging = self._ask(lambda windows: windows.incr(name, MINUTE_S, tokens))
        if self._shared is None:  # takes no time
            await charging
            return
        # The call may be cancelled meanwhile, which must not be a way to pay nothing.
        task = asyncio.create_task(charging)
        self._charging.add(task)
        task.add_done_callback(self._charging.discard)
        await asyncio.shield(task)

    async def _ask(self, do: Callable[[Windows], Awaitable[T]]) -> T:
        if self._shared is not None and time.monotonic() >= self._paused_until:
            try:
                async with asyncio.timeout(STORAGE_TIMEOUT_S):
                    return await do(self._shared)
            except (StorageError, OSError) as error:
                self._pause(getattr(error, "storage_error", error))
        return await do(self._own)

    def _pause(self, cause: Exception) -> None:
        now = time.monotonic()
        if now < self._paused_until:  # by another call that waited at the same time
            return
        self._paused_until = now + STORAGE_PAUSE_S
        log.warning(
            "auth.limits_storage cannot be used (%s): this server counts for itself",
            type(cause).__name__,
        )


def _name(what: str, caller: Caller) -> str:
    """Where something is counted; not by how much is allowed, so that a changed limit forgets none.

    In Redis every key begins with `LIMITS:`.
    """
    return f"{NAMESPACE}/{what}/{caller.account}"


def _limited(what: str, retry_after_s: float | None, caller: Caller) -> Failure:
    return Failure(
        Reason.RATE_LIMITED,
        f"{what}, which is all that is allowed – retry later",
        retry_after_s=retry_after_s,
        detail=caller.name,
    )
