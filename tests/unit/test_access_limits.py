"""How much a caller may do: exact, also when calls come at the same time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from limits.aio.storage import MemoryStorage
from limits.errors import StorageError

from atmosphere_grpc.access import limits as module
from atmosphere_grpc.access.caller import Caller
from atmosphere_grpc.access.limits import Limits
from atmosphere_grpc.access.policy import Permit, Policy
from atmosphere_grpc.access.windows import MemoryWindows
from atmosphere_grpc.errors import Failure, Reason


def caller(name: str = "a", **limits: int) -> Caller:
    policy = Policy(**limits)  # type: ignore[arg-type]
    return Caller(name, name, policy, Permit(policy))


async def let_in(limits: Limits, who: Caller, tokens: int = 0) -> Failure | None:
    """How a call is refused, if it is; else it costs its tokens."""
    try:
        async with limits.call(who) as bill:
            await asyncio.sleep(0)
            bill.tokens = tokens
    except Failure as failure:
        return failure
    return None


async def test_as_many_calls_at_the_same_time_are_let_in_as_are_allowed() -> None:
    limits, who = Limits(), caller(requests_per_minute=50)
    refused = await asyncio.gather(*(let_in(limits, who) for _ in range(300)))
    assert refused.count(None) == 50
    failure = next(filter(None, refused))
    assert failure.reason is Reason.RATE_LIMITED
    assert failure.retry_after_s is not None
    assert 0 < failure.retry_after_s <= 60
    assert "50 requests in a minute" in failure.message


async def test_another_caller_is_not_held_up() -> None:
    limits = Limits()
    assert await let_in(limits, caller("a", requests_per_minute=1)) is None
    assert await let_in(limits, caller("b", requests_per_minute=1)) is None
    assert await let_in(limits, caller("a", requests_per_minute=1)) is not None


async def test_tokens_are_charged_afterwards_and_refused_next() -> None:
    limits, who = Limits(), caller(tokens_per_minute=100)
    assert await let_in(limits, who, 60) is None
    assert await let_in(limits, who, 60) is None  # 60 were used up, of 100
    failure = await let_in(limits, who)
    assert failure is not None
    assert "100 tokens in a minute are used up" in failure.message


async def test_tokens_of_calls_at_the_same_time_are_all_charged() -> None:
    limits, who = Limits(), caller(tokens_per_minute=1000)
    await asyncio.gather(*(let_in(limits, who, 10) for _ in range(99)))
    assert await let_in(limits, who, 9) is None
    assert await let_in(limits, who, 1) is None
    assert await let_in(limits, who) is not None


async def test_a_call_that_is_cancelled_is_charged_and_gives_its_place_back() -> None:
    limits, who = Limits(), caller(tokens_per_minute=10, max_concurrency=1)
    entered = asyncio.Event()

    async def call() -> None:
        async with limits.call(who) as bill:
            bill.tokens = 10
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await entered.wait()
    failure = await let_in(limits, who)
    assert failure is not None
    assert "1 calls of this caller are in flight" in failure.message
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    failure = await let_in(limits, who)
    assert failure is not None
    assert "tokens" in failure.message


async def test_places_in_flight_are_exact() -> None:
    limits, who, go = Limits(), caller(max_concurrency=7), asyncio.Event()

    async def call() -> bool:
        try:
            async with limits.call(who):
                await go.wait()
        except Failure:
            return False
        return True

    calls = [asyncio.create_task(call()) for _ in range(40)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    go.set()
    assert sum(await asyncio.gather(*calls)) == 7
    assert await let_in(limits, who) is None


async def test_a_call_that_is_refused_takes_no_place() -> None:
    limits, who = Limits(), caller(requests_per_minute=1, max_concurrency=1)
    assert await let_in(limits, who) is None
    for _ in range(3):
        failure = await let_in(limits, who)
        assert failure is not None
        assert "requests" in failure.message


class Broken(MemoryStorage):
    """A storage that cannot be reached."""

    asked = 0

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        Broken.asked += 1
        raise StorageError(ConnectionError("redis://:canary@host"))

    async def get(self, key: str) -> int:
        return await self.incr(key, 0)


async def test_without_its_storage_a_server_counts_for_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits, who = Limits(Broken()), caller(requests_per_minute=5)
    refused = [await let_in(limits, who) for _ in range(8)]
    assert refused.count(None) == 5
    assert Broken.asked == 1  # then it is left alone for a while
    assert "auth.limits_storage cannot be used (ConnectionError)" in caplog.text
    assert "canary" not in caplog.text


async def test_without_limits_nothing_is_counted() -> None:
    limits = Limits(Broken())
    before = Broken.asked
    assert await let_in(limits, caller(), 10**9) is None
    assert Broken.asked == before


async def test_a_changed_limit_forgets_nothing() -> None:
    limits = Limits()
    for _ in range(3):
        assert await let_in(limits, caller(requests_per_minute=5, tokens_per_minute=50), 10) is None
    failure = await let_in(limits, caller(requests_per_minute=3))
    assert failure is not None
    assert "3 requests" in failure.message
    failure = await let_in(limits, caller(tokens_per_minute=30))
    assert failure is not None
    assert "30 tokens" in failure.message


class Hanging(MemoryStorage):
    """A storage that never answers."""

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        await asyncio.Event().wait()
        return 0


async def test_a_storage_that_hangs_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "STORAGE_TIMEOUT_S", 0.05)
    limits, who = Limits(Hanging()), caller(requests_per_minute=5)
    refused = await asyncio.gather(*(let_in(limits, who) for _ in range(20)))
    assert refused.count(None) == 5
    assert caplog.text.count("cannot be used (TimeoutError)") == 1


async def test_a_window_begins_anew_and_those_that_are_over_are_swept_out() -> None:
    now = 1000.0
    windows = MemoryWindows(lambda: now)
    assert [await windows.incr("a", 60, amount) for amount in (1, 4)] == [1, 5]
    assert await windows.get_expiry("a") == 1060
    for i in range(100):
        await windows.incr(f"b{i}", 60)
    now = 1060.0
    assert await windows.get("a") == 0
    assert await windows.incr("a", 60) == 1
    assert len(windows) == 1
