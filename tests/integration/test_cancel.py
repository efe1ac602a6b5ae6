"""A caller that goes away stops the backend, whatever the call was waiting for."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from atmosphere_client import AsyncAtmosphereClient, CallCancelledError
from atmosphere_grpc.integrations.integration import Limits, Timeouts
from atmosphere_grpc.v1 import execution_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionStub
from tests.fakes import (
    MODEL,
    FakeServer,
    Pause,
    Reply,
    Request,
    Send,
    Stall,
    Until,
    answer_events,
    event,
    text,
)
from tests.fakes.sockets import unanswering
from tests.integration.conftest import (
    CHAT_PATH,
    EMBED_PATH,
    Served,
    chat_request,
    content,
    first_delta,
    generating,
    no_open_requests,
    no_tasks_but,
    openai,
    read,
    serving,
    tasks,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

#: How long it may take until the backend's socket closes, in seconds; a few milliseconds as a rule.
CLOSE_S = 0.5
#: The same of the second best of three, which a busy machine keeps to as well.
PROMPT_S = 0.1

NOTHING = Reply.raw(Stall())
HEADERS = Reply.stream(Stall())
ONE_TOKEN = Reply.stream(event(text("a")), Stall())
DRIP = Reply.stream(*[part for _ in range(5000) for part in (event(text("a")), Pause(0.002))])


class Counted(Send):
    """Counts what is written."""

    written = 0

    def pieces(self) -> Iterator[bytes]:
        Counted.written += 1
        return super().pieces()


#: Far more than all buffers between the backend and a caller hold.
FLOOD = Reply.stream(*[event(text("a" * 50_000))] * 2000)


@pytest.fixture(autouse=True)
async def nothing_is_left(
    served: Served, fake: FakeServer, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[None]:
    """After each test no call is in flight, no task is left, and nothing was complained of."""
    before = tasks()
    yield
    await until(lambda: served.server.in_flight == 0, "the calls to end")
    await no_tasks_but(before)
    await no_open_requests(fake)
    records = [*caplog.get_records("call"), *caplog.records]
    assert not [record.getMessage() for record in records if record.levelno >= logging.ERROR]


async def gone_soon(request: Request, cancelled_at: float) -> None:
    """The backend has seen its client leave, soon after a loop time."""
    async with asyncio.timeout(5):
        await request.gone.wait()
    assert request.gone_at is not None
    assert request.gone_at - cancelled_at < CLOSE_S


def now() -> float:
    return asyncio.get_running_loop().time()


async def ended(call: Any) -> None:
    """The call is over for the caller, too."""
    assert await call.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    "reply", [NOTHING, HEADERS], ids=["before headers", "before the first token"]
)
async def test_a_chat_that_waits_is_cancelled(
    served: Served, fake: FakeServer, reply: Reply
) -> None:
    fake.script(CHAT_PATH, reply)
    call = served.stub.Chat(chat_request())
    request = await generating(fake)
    cancelled_at = now()
    call.cancel()
    await gone_soon(request, cancelled_at)
    await ended(call)


@pytest.mark.parametrize("rpc", ["Chat", "Execute", "TestIntegration"])
@pytest.mark.parametrize(
    "reply", [NOTHING, HEADERS, ONE_TOKEN, DRIP], ids=["nothing", "headers", "one token", "drip"]
)
async def test_the_backend_sees_a_cancel_within_a_tenth_of_a_second(
    served: Served, fake: FakeServer, rpc: str, reply: Reply
) -> None:
    requests: dict[str, Any] = {
        "Chat": chat_request(),
        "Execute": execution_pb2.ExecuteRequest(intent="a"),
        "TestIntegration": execution_pb2.TestIntegrationRequest(integration_id="fake"),
    }
    fake.always(CHAT_PATH, reply)
    took: list[float] = []
    for count in (1, 2, 3):
        call: Any = getattr(served.stub, rpc)(requests[rpc])
        request = await generating(fake, count)
        if rpc == "Chat" and reply in (ONE_TOKEN, DRIP):
            await first_delta(call)
        cancelled_at = now()
        call.cancel()
        await gone_soon(request, cancelled_at)
        assert request.gone_at is not None
        took.append(request.gone_at - cancelled_at)
    assert sorted(took)[1] < PROMPT_S


async def test_a_handshake_is_given_up_with_its_call(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            shaking.set()
        gone.set()
        writer.close()

    shaking = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    timeouts = Timeouts(connect_s=0.2)
    integration = openai(f"https://127.0.0.1:{port}/v1", timeouts=timeouts, default_model=MODEL)
    async with server, serving(tmp_path, integration) as served:
        await gone.wait()  # the probe
        for event_ in (gone, shaking):
            event_.clear()
        call = served.stub.Chat(chat_request())
        await shaking.wait()
        call.cancel()
        async with asyncio.timeout(PROMPT_S):
            await gone.wait()
        await ended(call)


@pytest.mark.parametrize("reply", [ONE_TOKEN, DRIP], ids=["that stalls", "that goes on"])
async def test_a_chat_is_cancelled_in_the_middle_of_an_answer(
    served: Served, fake: FakeServer, reply: Reply
) -> None:
    fake.script(CHAT_PATH, reply)
    call: Any = served.stub.Chat(chat_request())
    await first_delta(call)
    cancelled_at = now()
    call.cancel()
    await gone_soon(fake.requests[-1], cancelled_at)
    await ended(call)


async def test_a_caller_that_has_stopped_reading_halts_the_backend_and_can_cancel(
    served: Served, fake: FakeServer
) -> None:
    steps = tuple(Counted(step.data) for step in FLOOD.steps if isinstance(step, Send))
    for count in range(1, 6):  # what the cancel meets differs from time to time
        fake.script(CHAT_PATH, Reply(steps))
        Counted.written = 0
        call: Any = served.stub.Chat(chat_request())
        request = await generating(fake, count)
        await first_delta(call)
        # No more is taken from the backend than the caller reads: its flood comes to a halt.
        seen = 0
        while Counted.written > seen:
            seen = Counted.written
            await asyncio.sleep(0.1)
        assert seen < len(steps)
        cancelled_at = now()
        call.cancel()
        await gone_soon(request, cancelled_at)
        await ended(call)


@pytest.mark.parametrize(
    ("method", "request_", "reply"),
    [
        ("Execute", execution_pb2.ExecuteRequest(intent="a"), NOTHING),
        ("Execute", execution_pb2.ExecuteRequest(intent="a"), ONE_TOKEN),
        ("Execute", execution_pb2.ExecuteRequest(intent="a"), DRIP),
        ("Execute", execution_pb2.ExecuteRequest(intent="a", capability="embed"), NOTHING),
        ("Embed", execution_pb2.EmbedRequest(input=["a"]), NOTHING),
        ("TestIntegration", execution_pb2.TestIntegrationRequest(integration_id="fake"), DRIP),
    ],
)
async def test_a_unary_call_is_cancelled(
    served: Served, fake: FakeServer, method: str, request_: Any, reply: Reply
) -> None:
    fake.always(CHAT_PATH, reply)
    fake.always(EMBED_PATH, reply)
    call = getattr(served.stub, method)(request_)
    request = await generating(fake)
    cancelled_at = now()
    call.cancel()
    await gone_soon(request, cancelled_at)
    await ended(call)


async def test_a_list_is_cancelled(served: Served, fake: FakeServer) -> None:
    first_probe = await fake.arrived(1)
    await first_probe.answered.wait()
    fake.always("/v1/models", NOTHING)
    call = served.stub.ListModels(execution_pb2.ListModelsRequest())
    request = await fake.arrived(2)
    cancelled_at = now()
    call.cancel()
    await gone_soon(request, cancelled_at)
    await ended(call)


async def test_a_call_is_cancelled_while_it_connects(tmp_path: Path) -> None:
    with unanswering() as address:
        integration = openai(
            f"http://{address}/v1", timeouts=Timeouts(connect_s=0.2), default_model=MODEL
        )
        async with serving(tmp_path, integration) as served:
            before = tasks()
            call = served.stub.Chat(chat_request())
            await until(lambda: served.server.in_flight == 1, "the call to arrive")
            call.cancel()
            await ended(call)
            await until(lambda: served.server.in_flight == 0, "the call to end")
            await no_tasks_but(before)


async def test_a_call_is_cancelled_while_it_waits_for_its_turn(
    tmp_path: Path, fake: FakeServer
) -> None:
    fake.always(CHAT_PATH, Reply.stream(Stall()))
    item = openai(fake.base_url, limits=Limits(max_concurrency=1, max_queue=1))
    async with serving(tmp_path, item) as served:
        running = served.stub.Chat(chat_request())
        await generating(fake)
        waiting = served.stub.Chat(chat_request())
        await until(lambda: item.limiter.waiting == 1, "one to wait")
        waiting.cancel()
        await until(lambda: item.limiter.waiting == 0, "it to leave", within_s=CLOSE_S)
        running.cancel()
        await until(lambda: item.limiter.active == 0, "the other to end", within_s=CLOSE_S)
    assert len([request for request in fake.requests if request.body]) == 1


async def test_a_connection_that_breaks_cancels_its_calls(served: Served, fake: FakeServer) -> None:
    fake.always(CHAT_PATH, DRIP)
    async with grpc.aio.insecure_channel(served.address) as channel:
        calls: list[Any] = [ExecutionStub(channel).Chat(chat_request()) for _ in range(3)]
        requests = [await generating(fake, count) for count in (1, 2, 3)]
        closed_at = now()
    for request in requests:
        await gone_soon(request, closed_at)
    for call in calls:
        await ended(call)


async def test_leaving_the_clients_stream_stops_the_backend(
    served: Served, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, DRIP)
    async with served.client.chat("hi") as stream:
        async for _ in stream:
            break
        left_at = now()
    await gone_soon(fake.requests[-1], left_at)
    with pytest.raises(CallCancelledError):
        await stream.result()


async def test_cancelling_a_task_of_the_client_stops_the_backend(
    served: Served, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, NOTHING)
    async with AsyncAtmosphereClient(served.address) as client:
        task = asyncio.ensure_future(client.execute("hi"))
        request = await generating(fake)
        cancelled_at = now()
        task.cancel()
        await gone_soon(request, cancelled_at)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_cancelled_call_leaves_the_others_alone(served: Served, fake: FakeServer) -> None:
    go_on = asyncio.Event()
    fake.script(CHAT_PATH, Reply.stream(Until(go_on), *answer_events()), DRIP)
    other = asyncio.ensure_future(read(served.stub.Chat(chat_request())))
    await generating(fake, 1)
    call = served.stub.Chat(chat_request())
    request = await generating(fake, 2)
    cancelled_at = now()
    call.cancel()
    await gone_soon(request, cancelled_at)
    go_on.set()
    events, failure = await other
    assert failure is None
    assert content(events) == "Hello world"
