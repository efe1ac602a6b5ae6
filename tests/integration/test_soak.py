"""Many calls at a time, some of them cancelled at a random moment: nothing of them is left."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest

from atmosphere_client import UnavailableError
from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.config import Integration as Settings
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.fakes import Close, FakeServer, Pause, Reply, answer_events
from tests.integration.conftest import (
    CHAT_PATH,
    EMBED_PATH,
    EMBEDDED,
    Served,
    chat_request,
    generating,
    no_open_requests,
    no_tasks_but,
    openai,
    serving,
    tasks,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONCURRENCY = 16
#: How many calls are cancelled at random.
SOAK_CALLS = int(os.environ.get("ATMOSPHERE_SOAK_CALLS", "600"))
RPCS = ("Chat", "Execute", "Embed")
GROWTH_BYTES = 20 * 1024 * 1024
#: By how much of itself this process may grow while calls are cancelled at random: it holds 120 MB.
GROWTH = 0.05
SHORT = chat_pb2.SamplingOptions(max_tokens=12)
REQUESTS: dict[str, Any] = {
    "Chat": chat_request("Tell me a story.", sampling=SHORT),
    "Execute": execution_pb2.ExecuteRequest(intent="Tell me a story.", sampling=SHORT),
    "Embed": execution_pb2.EmbedRequest(input=["a story", "another"]),
}


@dataclass(frozen=True)
class Plan:
    """A call, and for how long its caller waits; None: to its end."""

    rpc: str
    patience_s: float | None


def plans(count: int, seed: int, patience_s: float) -> list[Plan]:
    """Calls of which about a half is cancelled, at any moment within `patience_s`."""
    draw = random.Random(seed)  # noqa: S311 - the same each time
    return [
        Plan(draw.choice(RPCS), draw.choice([None, draw.uniform(0, patience_s)]))
        for _ in range(count)
    ]


async def carried_out(served: Served, plan: Plan) -> bool:
    """Calls; whether the answer came to its end. Fails for any end but that and a cancel."""
    call: Any = getattr(served.stub, plan.rpc)(REQUESTS[plan.rpc])
    reading = asyncio.ensure_future(_answer(plan.rpc, call))
    await asyncio.wait({reading}, timeout=plan.patience_s)
    call.cancel()  # does nothing to one that is over
    (outcome,) = await asyncio.gather(reading, return_exceptions=True)
    code = await call.code()
    if code is grpc.StatusCode.CANCELLED:
        assert plan.patience_s is not None
        assert isinstance(outcome, asyncio.CancelledError)
        return False
    assert code is grpc.StatusCode.OK, await call.details()
    assert outcome is None
    return True


async def _answer(rpc: str, call: Any) -> None:
    if rpc != "Chat":
        await call
        return
    last = None
    while (event := await call.read()) is not grpc.aio.EOF:
        last = event
    assert last is not None
    assert last.HasField("completed")


async def carry_out(served: Served, todo: Sequence[Plan]) -> int:
    """Calls as planned, so many at a time; how many answers came to their end."""
    room = asyncio.Semaphore(CONCURRENCY)

    async def one(plan: Plan) -> bool:
        async with room:
            return await carried_out(served, plan)

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(one(plan)) for plan in todo]
    return sum(call.result() for call in calls)


async def check_nothing_is_left(served: Served, before: Any) -> None:
    await until(lambda: served.server.in_flight == 0, "the calls to end")
    await no_tasks_but(before)


def resident_bytes() -> int:
    gc.collect()
    size: int = psutil.Process().memory_info().rss
    return size


async def test_nothing_is_left_of_200_calls(served: Served, fake: FakeServer) -> None:
    drip = [part for item in answer_events(["a"] * 8) for part in (item, Pause(0.003))]
    fake.always(CHAT_PATH, Reply.stream(*drip))
    fake.always(EMBED_PATH, embeddings_reply().after(Pause(0.01)))
    await carry_out(served, plans(200, seed=1, patience_s=0.05))  # to warm up
    before, size = tasks(), resident_bytes()
    todo = plans(200, seed=2, patience_s=0.05)
    whole = await carry_out(served, todo)
    assert whole >= sum(plan.patience_s is None for plan in todo)
    assert whole < len(todo), "none was cancelled"
    await check_nothing_is_left(served, before)
    await no_open_requests(fake)
    assert resident_bytes() - size < GROWTH_BYTES
    assert (await served.client.execute("hi")).success


async def test_no_permit_task_or_memory_is_lost_to_random_cancels_in_any_phase(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two endpoints behind a narrow queue, which fail now and then, with a fallback.

    `make soak` does it 10,000 times.
    """
    # What is captured is kept, and would count as memory that grows.
    caplog.set_level(logging.CRITICAL, "atmosphere_grpc")
    drip = [part for item in answer_events(["a"] * 4) for part in (item, Pause(0.002))]
    ways = [
        Reply.stream(*drip),
        Reply.stream(*drip).after(Pause(0.01)),  # headers late
        Reply.stream(Pause(0.01), *drip),  # first token late
        Reply.json({}, 500),
        Reply.json({}, 429),
        Reply.stream(*drip[:3], Close()),
    ]
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(FakeServer()) for _ in range(3)]
        for i, fake in enumerate(fakes):
            draw = random.Random(i)  # noqa: S311 - the same each time
            count = (SOAK_CALLS + 200) * 2
            fake.script(CHAT_PATH, *(draw.choice(ways) for _ in range(count)))
            fake.script(EMBED_PATH, *[embeddings_reply().after(Pause(0.004))] * count)
        first, second = (
            integration_of(Settings.model_validate(given))
            for given in (
                {
                    "id": "first",
                    "base_urls": [fake.base_url for fake in fakes[:2]],
                    "fallback": ["second"],
                    "limits": {"max_concurrency": 6, "max_queue": 6},
                },
                {"id": "second", "base_urls": [fakes[2].base_url]},
            )
        )
        assert isinstance(first, Integration)
        assert isinstance(second, Integration)
        attempts = {"maximum": 3, "backoff": 0.005, "max_backoff": 0.01}
        served = await stack.enter_async_context(
            serving(tmp_path, first, second, attempts=attempts, progress_interval=0.003)
        )
        await cancel_at_random(served, plans(200, seed=5, patience_s=0.04))  # to warm up
        before, size, cancelled = tasks(), 0, 0
        for begun in range(0, SOAK_CALLS, 200):
            todo = plans(200, seed=6 + begun, patience_s=0.04)
            cancelled += await cancel_at_random(served, todo)
            await check_nothing_is_left(served, before)
            for integration in (first, second):
                limiter, endpoints = integration.limiter, integration.endpoints
                assert (limiter.active, limiter.waiting) == (0, 0)
                assert not any(item.active for item in endpoints)
            for fake in fakes:
                await no_open_requests(fake)
                fake.requests.clear()  # which it would remember for ever, in this process
            size = size or resident_bytes()
        assert cancelled > SOAK_CALLS / 10
        # The clients and the fakes are in this process too.
        assert resident_bytes() < size * (1 + GROWTH)


async def cancel_at_random(served: Served, todo: Sequence[Plan]) -> int:
    """Calls as planned, that may fail; how many were cancelled."""
    room = asyncio.Semaphore(CONCURRENCY)

    async def one(plan: Plan) -> bool:
        async with room:
            call: Any = getattr(served.stub, plan.rpc)(REQUESTS[plan.rpc])
            reading = asyncio.ensure_future(_answer(plan.rpc, call))
            await asyncio.wait({reading}, timeout=plan.patience_s)
            call.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return await call.code() is grpc.StatusCode.CANCELLED

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(one(plan)) for plan in todo]
    return sum(call.result() for call in calls)


def embeddings_reply() -> Reply:
    """Two vectors."""
    return Reply.json(
        {"data": [{"index": i, "embedding": [0.5, 0.5]} for i in range(2)], "model": "fake-model"}
    )


@EMBEDDED
async def test_nothing_is_left_of_40_calls_of_the_embedded_models(embedded: Served) -> None:
    await carry_out(embedded, plans(16, seed=3, patience_s=0.5))  # to warm up
    await until(lambda: embedded.server.in_flight == 0, "the calls to end")
    before, size = tasks(), resident_bytes()
    todo = plans(40, seed=4, patience_s=0.5)
    whole = await carry_out(embedded, todo)
    assert whole >= sum(plan.patience_s is None for plan in todo)
    assert whole < len(todo), "none was cancelled"
    await check_nothing_is_left(embedded, before)
    assert resident_bytes() - size < GROWTH_BYTES
    async with asyncio.timeout(5):  # a free slot
        assert (await embedded.client.execute("hi", max_tokens=1)).success


# --- connections that a backend closes when it has answered ------------------------------------


async def test_a_call_is_sent_again_when_its_connection_had_been_closed(
    served: Served, fake: FakeServer
) -> None:
    await served.client.execute("hi")
    fake.script(CHAT_PATH, Reply.raw(Close()))  # as if closed before the request came
    response = await served.client.execute("hi")
    assert response.data.message.content == "Hello world"
    assert len(response.attempts) == 1
    again = await generating(fake, 3)
    assert again.connection != fake.requests[-2].connection
    assert again.body == fake.requests[-2].body


async def test_an_attempt_is_not_sent_again_when_a_new_connection_is_closed(
    tmp_path: Path, fake: FakeServer
) -> None:
    fake.always(CHAT_PATH, Reply.raw(Close()))
    async with serving(tmp_path, openai(fake.base_url), attempts={"maximum": 1}) as served:
        with pytest.raises(UnavailableError, match="closed before an answer"):
            await served.client.execute("hi")
    # One over the connection that the probe had used, and one over its own.
    assert [request.path for request in fake.requests].count(CHAT_PATH) == 2
