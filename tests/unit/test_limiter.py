"""How many calls run at a time, and how many wait."""

from __future__ import annotations

import asyncio

import pytest

from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations.limiter import Limiter


async def test_one_more_than_may_run_waits_and_one_more_than_may_wait_is_refused() -> None:
    limiter = Limiter("x", max_concurrency=1, max_queue=1)
    async with limiter.permit():
        waiting = asyncio.create_task(limiter.permit().__aenter__())
        await asyncio.sleep(0)
        assert (limiter.active, limiter.waiting) == (1, 1)
        with pytest.raises(Failure) as caught:
            await limiter.permit().__aenter__()
        assert caught.value.reason is Reason.QUEUE_FULL
        assert "1 calls run and 1 wait" in caught.value.message
    await waiting
    assert (limiter.active, limiter.waiting) == (1, 0)


async def test_a_permit_is_given_back_however_its_call_ends() -> None:
    limiter = Limiter("x", max_concurrency=1, max_queue=1)
    with pytest.raises(ValueError, match="broken"):
        async with limiter.permit():
            raise ValueError("broken")
    async with limiter.permit():
        waiting = asyncio.create_task(limiter.permit().__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert (limiter.active, limiter.waiting) == (0, 0)
    await asyncio.wait_for(limiter.idle(), 1)
