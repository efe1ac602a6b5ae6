"""The end of a drain: how long a server goes on refusing."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from atmosphere_grpc.calls.in_flight import InFlight
from atmosphere_grpc.errors import Failure


def refused(calls: InFlight) -> None:
    with pytest.raises(Failure, match="this server is stopping"):
        calls.enter("Chat", cast(Any, None))


async def took_s(calls: InFlight, quiet_s: float, limit_s: float) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await calls.quiet(quiet_s, limit_s)
    return loop.time() - began


async def test_a_server_that_nobody_calls_ends_at_once() -> None:
    calls = InFlight()
    calls.close()
    assert await took_s(calls, 5, 5) < 1


async def test_it_goes_on_refusing_until_callers_have_heard() -> None:
    calls = InFlight()
    calls.close()
    refused(calls)
    asyncio.get_running_loop().call_later(0.1, refused, calls)
    assert 0.28 < await took_s(calls, 0.2, 5) < 2


async def test_but_not_for_ever() -> None:
    calls = InFlight()
    calls.close()

    async def call_on() -> None:
        while True:
            refused(calls)
            await asyncio.sleep(0.01)

    calling = asyncio.create_task(call_on())
    await asyncio.sleep(0.05)
    assert 0.25 < await took_s(calls, 0.2, 0.3) < 2
    calling.cancel()
