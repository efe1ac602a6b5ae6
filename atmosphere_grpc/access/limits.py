"""How much a caller may do: calls and tokens a minute, calls in flight.

A minute begins with a caller's first call in it. Counting is one step of the storage, so that calls
at the same time are not let in by the same count.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import StorageError

from atmosphere_grpc.access.caller import Caller
from atmosphere_grpc.errors import Failure, Reason

log = logging.getLogger(__name__)
T = TypeVar("T")

NAMESPACE = "atmosphere"
#: How long a shared storage may take, in seconds.
STORAGE_TIMEOUT_S = 1.0
#: How long one that failed is left alone, in seconds.
STORAGE_PAUSE_S = 5.0


class Bill:
    """What a call has cost so far.

    Attributes:
        tokens: Those that its caller is charged with once it is over.
    """

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = 0


class Limits:
    """Counts what callers do.

    Args:
        shared: Where it is counted for several servers; None: in this process. As long as it
            fails, each server counts for itself.
        aclose: Closes that.
    """

    def __init__(
        self,
        shared: Storage | None = None,
        aclose: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._shared = FixedWindowRateLimiter(shared) if shared is not None else None
        self._aclose = aclose
        self._paused_until = 0.0
        self._in_flight: Counter[str] = Counter()
        self._charging: set[asyncio.Task[bool]] = set()

    @contextlib.asynccontextmanager
    async def call(self, caller: Caller) -> AsyncIterator[Bill]:
        """Lets a call in, and charges its caller with what its bill says at the end.

        Raises:
            Failure: RATE_LIMITED, with the time after which there is room.
        """
        bill = Bill()
        with self._share(caller):
            await self._enter(caller)
            try:
                yield bill
            finally:
                if bill.tokens and caller.policy.tokens_per_minute is not None:
                    await self._charge(caller, bill.tokens)

    async def aclose(self) -> None:
        """Charges what is still to be charged, and closes the storage."""
        await asyncio.gather(*self._charging)
        if self._aclose is not None:
            await self._aclose()

    @contextlib.contextmanager
    def _share(self, caller: Caller) -> Iterator[None]:
        most, account = caller.policy.max_concurrency, caller.account
        if most is not None and self._in_flight[account] >= most:
            raise _limited(f"{most} calls of this caller are in flight", None, caller)
        self._in_flight[account] += 1
        try:
            yield
        finally:
            self._in_flight[account] -= 1
            if not self._in_flight[account]:
                del self._in_flight[account]

    async def _enter(self, caller: Caller) -> None:
        policy, account = caller.policy, caller.account
        if policy.tokens_per_minute is not None:
            tokens = _a_minute(policy.tokens_per_minute)
            if not await self._ask(lambda counter: counter.test(tokens, "tokens", account)):
                raise await self._over(caller, tokens, "tokens")
        if policy.requests_per_minute is not None:
            requests = _a_minute(policy.requests_per_minute)
            if not await self._ask(lambda counter: counter.hit(requests, "requests", account)):
                raise await self._over(caller, requests, "requests")

    async def _over(self, caller: Caller, item: RateLimitItemPerMinute, what: str) -> Failure:
        stats = await self._ask(
            lambda counter: counter.get_window_stats(item, what, caller.account)
        )
        left_s = max(0.001, stats.reset_time - time.time())
        return _limited(f"{item.amount} {what} in a minute are used up", left_s, caller)

    async def _charge(self, caller: Caller, tokens: int) -> None:
        item = _a_minute(caller.policy.tokens_per_minute or 1)
        charging = self._ask(
            lambda counter: counter.hit(item, "tokens", caller.account, cost=tokens)
        )
        if self._shared is None:  # takes no time
            await charging
            return
        # The call may be cancelled meanwhile, which must not be a way to pay nothing.
        task = asyncio.create_task(charging)
        self._charging.add(task)
        task.add_done_callback(self._charging.discard)
        await asyncio.shield(task)

    async def _ask(self, do: Callable[[FixedWindowRateLimiter], Awaitable[T]]) -> T:
        if self._shared is not None and time.monotonic() >= self._paused_until:
            try:
                async with asyncio.timeout(STORAGE_TIMEOUT_S):
                    return await do(self._shared)
            except (StorageError, OSError) as error:
                self._paused_until = time.monotonic() + STORAGE_PAUSE_S
                cause = getattr(error, "storage_error", error)
                log.warning(
                    "auth.limits_storage cannot be used (%s): this server counts for itself",
                    type(cause).__name__,
                )
        return await do(self._own)


def _a_minute(amount: int) -> RateLimitItemPerMinute:
    return RateLimitItemPerMinute(amount, 1, NAMESPACE)


def _limited(what: str, retry_after_s: float | None, caller: Caller) -> Failure:
    return Failure(
        Reason.RATE_LIMITED,
        f"{what}, which is all that is allowed – retry later",
        retry_after_s=retry_after_s,
        detail=caller.name,
    )
