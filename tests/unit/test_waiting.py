"""Waiting with signs of life, and tasks that end with their block."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from itertools import pairwise

import pytest

from atmosphere_grpc.domain import Progress, Waiting
from atmosphere_grpc.errors import Failure, Phase
from atmosphere_grpc.execution.budget import Budget, Deadlines
from atmosphere_grpc.execution.waiting import Pulse, running


def budget() -> Budget:
    return Budget(None, Deadlines())


async def beats(pulse: Pulse, future: asyncio.Future[None], limit_s: float) -> list[Progress]:
    limit = budget().within(Phase.FIRST_TOKEN, limit_s, "x")
    return [item async for item in pulse.until(future, limit)]


async def test_what_is_done_is_not_waited_for() -> None:
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    assert await beats(Pulse(budget(), 0.001), done, 0) == []


async def test_a_wait_tells_from_time_to_time_what_it_waits_for() -> None:
    pulse, future = Pulse(budget(), 0.01), asyncio.get_running_loop().create_future()
    pulse.waiting, pulse.ahead = Waiting.QUEUED, lambda: 3
    found: list[Progress] = []
    async for item in pulse.until(future, budget().within(Phase.FIRST_TOKEN, 10, "x")):
        found.append(item)
        if len(found) == 4:
            future.set_result(None)
    assert len(found) == 4
    times = [item.elapsed_ms for item in found]
    assert all(later - earlier >= 5 for earlier, later in pairwise(times))
    assert {(item.waiting, item.queue_position) for item in found} == {(Waiting.QUEUED, 3)}
    pulse.connected()
    assert (pulse.waiting, pulse.ahead()) == (Waiting.FIRST_TOKEN, 0)


async def test_a_wait_that_takes_too_long_leaves_alone_what_it_waits_for() -> None:
    future = asyncio.get_running_loop().create_future()
    with pytest.raises(Failure) as caught:
        await beats(Pulse(budget()), future, 0.01)
    assert caught.value.metadata["phase"] == "FIRST_TOKEN"
    assert not future.done()


async def test_a_task_is_over_when_its_block_is() -> None:
    async with running(asyncio.sleep(60)) as task:
        pass
    assert task.cancelled()


@pytest.mark.parametrize("first", [True, False])
async def test_a_failure_that_nobody_looks_at_is_not_reported_as_lost(
    first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def fails() -> None:
        if not first:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        raise ValueError("lost")

    async with running(fails()):
        await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    assert "never retrieved" not in caplog.text
