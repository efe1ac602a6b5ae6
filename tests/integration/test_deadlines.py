"""Whose time was used up, and in which phase; told in time, by the backend's socket too."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from atmosphere_grpc.calls.envelope import LAST_BOUND_S
from atmosphere_grpc.config import Deadlines
from atmosphere_grpc.integrations import registry
from atmosphere_grpc.integrations.integration import Timeouts
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.fakes import MODEL, FakeServer, Pause, Reply, Stall, event, text
from tests.fakes.sockets import accepting, unanswering
from tests.integration.conftest import (
    CHAT_PATH,
    EMBED_PATH,
    Served,
    Told,
    chat_request,
    content,
    generating,
    openai,
    read,
    serving,
    told,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

#: How much later than its time a call may end, in seconds; 0.05 is what an idle machine keeps to.
OVERSHOOT_S = 0.5
LIMIT_S = 0.3
#: Far more than a test has time for.
LONG_S = 50.0
#: How often a call is made before its status must have come before gRPC's own.
TRIES = 5

NOTHING = Reply.raw(Stall())
HEADERS = Reply.stream(Stall())
ONE_TOKEN = Reply.stream(event(text("a")), Stall())
FOREVER = Reply.stream(*[part for _ in range(2000) for part in (event(text("a")), Pause(0.02))])


@dataclass(frozen=True)
class Case:
    """What is waited for, who bounds it, and what is told.

    Attributes:
        reply: What the backend does.
        phase: The phase told.
        says: A piece of the message: whose limit it was.
        sent: The text that came before.
        limits: The integration's.
        deadlines: The server's.
        timeout: The caller's.
    """

    reply: Reply
    phase: str
    says: str
    sent: str = ""
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(LONG_S, LONG_S, LONG_S))
    deadlines: Deadlines = field(default_factory=Deadlines)
    timeout: float | None = LONG_S


FIRST, IDLE = Timeouts(LONG_S, LIMIT_S, LONG_S), Timeouts(LONG_S, LONG_S, LIMIT_S)
DEFAULT, MAXIMUM = Deadlines(default=LIMIT_S), Deadlines(default=LIMIT_S, maximum=LIMIT_S)
OWN, CALLERS = "within its limit of 0.3 s", "the caller's deadline of 0."
SERVERS, AT_MOST = (
    "the server's default deadline of 0.3 s",
    "the server's maximum deadline of 0.3 s",
)

CASES = {
    "no headers, the integration's": Case(NOTHING, "FIRST_TOKEN", OWN, timeouts=FIRST),
    "no headers, the caller's": Case(NOTHING, "FIRST_TOKEN", CALLERS, timeout=LIMIT_S),
    "no headers, the server's": Case(
        NOTHING, "FIRST_TOKEN", SERVERS, deadlines=DEFAULT, timeout=None
    ),
    "no token, the integration's": Case(HEADERS, "FIRST_TOKEN", OWN, timeouts=FIRST),
    "no token, the caller's": Case(HEADERS, "FIRST_TOKEN", CALLERS, timeout=LIMIT_S),
    "no token, the server's": Case(
        HEADERS, "FIRST_TOKEN", SERVERS, deadlines=DEFAULT, timeout=None
    ),
    "no second token, the integration's": Case(ONE_TOKEN, "IDLE", OWN, "a", timeouts=IDLE),
    "no second token, the caller's": Case(ONE_TOKEN, "TOTAL", CALLERS, "a", timeout=LIMIT_S),
    "no second token, the server's": Case(
        ONE_TOKEN, "TOTAL", SERVERS, "a", deadlines=DEFAULT, timeout=None
    ),
    "no end, the caller's": Case(FOREVER, "TOTAL", CALLERS, "a", timeout=LIMIT_S),
    "no end, the server's": Case(FOREVER, "TOTAL", SERVERS, "a", deadlines=DEFAULT, timeout=None),
    "no end, the server's at most": Case(FOREVER, "TOTAL", AT_MOST, "a", deadlines=MAXIMUM),
}


async def timed_out(
    call: Callable[[], Any], finish: Callable[[Any], Awaitable[grpc.aio.AioRpcError]]
) -> Told:
    """How a call ended that was made until its status came before gRPC's own.

    A caller's gRPC ends a call by itself when its time is over, a few milliseconds after the
    server does. On a busy machine it may be the first.
    """
    for _ in range(TRIES):
        began = time.monotonic()
        error = await finish(call())
        took = time.monotonic() - began
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert took < LIMIT_S + OVERSHOOT_S
        assert took > LIMIT_S * 0.8
        if any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata()):
            return told(error)
    raise AssertionError(f"the server's status came too late {TRIES} times")


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


class Heard:
    """What a chat sent until it failed."""

    def __init__(self) -> None:
        self.events: list[chat_pb2.ChatResponse] = []

    async def __call__(self, call: Any) -> grpc.aio.AioRpcError:
        self.events.clear()
        try:
            async for item in call:
                self.events.append(item)
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError("the chat ended well")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_a_chat_says_which_phase_used_whose_time_up(
    fake: FakeServer, tmp_path: Path, case: Case
) -> None:
    fake.always(CHAT_PATH, case.reply)
    heard = Heard()
    integration = openai(fake.base_url, timeouts=case.timeouts)
    async with serving(tmp_path, integration, deadlines=case.deadlines) as served:
        failure = await timed_out(
            lambda: served.stub.Chat(chat_request(), timeout=case.timeout), heard
        )
        assert failure.reason == "DEADLINE_EXCEEDED"
        assert failure.metadata["phase"] == case.phase
        assert failure.metadata["integration_id"] == "fake"
        assert case.says in failure.message
        assert set(content(heard.events)) == set(case.sent)
        assert failure.retry_after_s is None
        await fake.client_gone()  # and so the model stops
        await until(lambda: served.server.in_flight == 0, "the call to be over")


@pytest.mark.parametrize(
    ("connect_s", "timeout"), [(LIMIT_S, LONG_S), (1.0, LIMIT_S)], ids=["integration", "caller"]
)
async def test_a_host_that_does_not_answer_is_told_as_connecting(
    tmp_path: Path, connect_s: float, timeout: float
) -> None:
    with ExitStack() as stack:
        address = stack.enter_context(unanswering())
        integration = openai(
            f"http://{address}/v1",
            timeouts=Timeouts(connect_s=connect_s),
            default_model=MODEL,  # there is none to be asked for
        )
        async with serving(tmp_path, integration) as served:
            failure = await timed_out(
                lambda: served.stub.Chat(chat_request(), timeout=timeout), Heard()
            )
    assert failure.metadata["phase"] == "CONNECT"
    assert address in failure.message


async def test_a_host_that_accepts_and_says_nothing_is_told_as_the_first_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "PROBE_TIMEOUT_S", 0.1)
    with accepting() as address:
        integration = openai(f"http://{address}/v1", timeouts=FIRST, default_model=MODEL)
        async with serving(tmp_path, integration) as served:
            failure = await timed_out(lambda: served.stub.Chat(chat_request()), Heard())
    assert failure.metadata["phase"] == "FIRST_TOKEN"


@pytest.mark.parametrize("rpc", ["Execute", "Embed"])
async def test_unary_calls_are_bounded_too(served: Served, fake: FakeServer, rpc: str) -> None:
    fake.always(CHAT_PATH, HEADERS)
    fake.always(EMBED_PATH, NOTHING)
    request: Any = {
        "Execute": execution_pb2.ExecuteRequest(intent="a"),
        "Embed": execution_pb2.EmbedRequest(input=["a"]),
    }[rpc]
    method = getattr(served.stub, rpc)
    failure = await timed_out(lambda: method(request, timeout=LIMIT_S), error_of)
    assert failure.metadata["phase"] == "FIRST_TOKEN"
    await fake.client_gone()


async def test_a_test_that_takes_too_long_says_so_in_its_answer(
    fake: FakeServer, tmp_path: Path
) -> None:
    fake.always(CHAT_PATH, ONE_TOKEN)
    async with serving(tmp_path, openai(fake.base_url, timeouts=IDLE)) as served:
        request = execution_pb2.TestIntegrationRequest(integration_id="fake")
        tested = await served.stub.TestIntegration(request)
    assert (tested.success, tested.error_reason) == (False, "DEADLINE_EXCEEDED")
    assert tested.response == "a"
    assert LIMIT_S * 1000 <= tested.latency_ms < (LIMIT_S + OVERSHOOT_S) * 1000


async def test_a_caller_that_reads_nothing_is_let_go(fake: FakeServer, tmp_path: Path) -> None:
    flood = event(text("a" * 60_000))
    fake.always(CHAT_PATH, Reply.stream(*[flood] * 2000))
    async with serving(
        tmp_path, openai(fake.base_url), deadlines=Deadlines(default=LIMIT_S)
    ) as served:
        began = time.monotonic()
        call = served.stub.Chat(chat_request())
        request = await generating(fake)
        await request.gone.wait()
        assert time.monotonic() - began < LIMIT_S + LAST_BOUND_S + OVERSHOOT_S
        events, failure = await read(call)
        await until(lambda: served.server.in_flight == 0, "the call to be over")
    assert events
    assert failure is not None
    assert failure.metadata["phase"] == "TOTAL"


async def test_time_that_is_up_before_the_call_begins_is_no_fault(served: Served) -> None:
    error = await error_of(
        served.stub.Execute(execution_pb2.ExecuteRequest(intent="a"), timeout=0.000001)
    )
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await served.stub.Execute(execution_pb2.ExecuteRequest(intent="a"))).success
