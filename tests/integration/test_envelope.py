"""Around every call: its request id, the status with its details, and its line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.domain import Begun, Delta
from atmosphere_grpc.execution.core import Execution
from atmosphere_grpc.integrations.integration import Integration, IntegrationSpec
from atmosphere_grpc.log import JsonLines, RequestId
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.fakes import (
    DONE,
    MODEL,
    USAGE,
    Close,
    FakeServer,
    OpenAI,
    Reply,
    Reset,
    Stall,
    Until,
    event,
    text,
)
from tests.integration.conftest import (
    CHAT_PATH,
    EMBED_PATH,
    Served,
    broken,
    chat_request,
    content,
    failure_of,
    first_delta,
    openai,
    read,
    serving,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from atmosphere_grpc.domain import BackendEvent

ACCESS = "atmosphere_grpc.access"
SECRET = "sk-do-not-tell"
PROMPT, ANSWER = "a prompt that is private", "an answer that is private"
EMOJI = "\N{PILE OF POO}"
GARBAGE = ["", "with blank", "x" * 129]
list_integrations = execution_pb2.ListIntegrationsRequest


def request_id_of(trailers: Any) -> str:
    """The one request id among trailers."""
    (value,) = (value for key, value in trailers if key == "x-request-id")
    assert isinstance(value, str)
    return value


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The whole log, its records marked with their requests as those of a server are."""
    caplog.set_level(logging.DEBUG, "atmosphere_grpc")
    mark = RequestId()
    caplog.handler.addFilter(mark)
    yield caplog
    caplog.handler.removeFilter(mark)


def lines(log: pytest.LogCaptureFixture, logger: str = "", request_id: str = "") -> list[str]:
    """The lines of a logger and of a request."""
    told = [(record, record.getMessage() + vars(record)["request"]) for record in log.records]
    return [
        line
        for record, line in told
        if record.name.startswith(logger) and line.endswith(request_id)
    ]


def for_operators(log: pytest.LogCaptureFixture) -> str:
    """What is logged at the level that servers run at."""
    return "".join(record.getMessage() for record in log.records if record.levelno >= logging.INFO)


async def test_the_callers_request_id_is_repeated_on_ok_and_on_error(
    served: Served, fake: FakeServer
) -> None:
    metadata = (("x-request-id", "mine-1"),)
    unary = served.stub.ListIntegrations(list_integrations(), metadata=metadata)
    await unary
    assert request_id_of(await unary.trailing_metadata()) == "mine-1"
    stream = served.stub.Chat(chat_request(), metadata=metadata)
    await read(stream)
    assert request_id_of(await stream.trailing_metadata()) == "mine-1"
    fake.script(CHAT_PATH, Reply.json({}, 500))
    _, failure = await broken(served.stub.Chat(chat_request(), metadata=metadata))
    assert failure.request_id == "mine-1"
    failure = await failure_of(
        served.stub.Execute(execution_pb2.ExecuteRequest(), metadata=metadata)
    )
    assert failure.request_id == "mine-1"


@pytest.mark.parametrize("given", [None, *GARBAGE])
async def test_a_request_id_is_made_where_none_can_be_taken(
    served: Served, log: pytest.LogCaptureFixture, given: str | None
) -> None:
    metadata = () if given is None else (("x-request-id", given),)
    call = served.stub.ListIntegrations(list_integrations(), metadata=metadata)
    await call
    made = request_id_of(await call.trailing_metadata())
    assert re.fullmatch("[0-9a-f]{32}", made)
    (line,) = lines(log, ACCESS)
    assert line.endswith(f"request_id={made}")


async def test_each_call_has_one_line_in_the_log_without_what_was_said(
    served: Served, fake: FakeServer, log: pytest.LogCaptureFixture
) -> None:
    fake.script(CHAT_PATH, Reply.stream(event(text(ANSWER)), Close()))
    fake.script(CHAT_PATH, *[OpenAI([ANSWER]).chat({"stream": True})] * 2)
    await broken(served.stub.Chat(chat_request(PROMPT)))
    await read(served.stub.Chat(chat_request(PROMPT)))
    await served.stub.Execute(execution_pb2.ExecuteRequest(intent=PROMPT))
    await served.stub.Embed(execution_pb2.EmbedRequest(input=[PROMPT]))
    await failure_of(served.stub.Execute(execution_pb2.ExecuteRequest()))
    await health_stub(served).Check(health_pb2.HealthCheckRequest())
    end = r" caller=ipv4:.* duration_ms=\d+\.\d request_id=[0-9a-f]{32}"
    expected = [
        "call method=Chat code=INTERNAL reason=STREAM_TRUNCATED",
        "call method=Chat code=OK",
        "call method=Execute code=OK",
        "call method=Embed code=OK",
        "call method=Execute code=INVALID_ARGUMENT reason=INVALID_FIELD",
    ]
    told = lines(log, ACCESS)
    assert len(told) == len(expected)
    for line, begin in zip(told, expected, strict=True):
        assert re.fullmatch(re.escape(begin) + end, line)
    assert PROMPT not in log.text
    assert ANSWER not in log.text


async def test_the_line_of_a_call_says_how_it_went(
    served: Served, fake: FakeServer, log: pytest.LogCaptureFixture
) -> None:
    fake.script(CHAT_PATH, Reply.json({}, 503))
    await read(served.stub.Chat(chat_request(), metadata=(("x-request-id", "mine"),)))
    (record,) = (record for record in log.records if record.name == ACCESS)
    told = json.loads(JsonLines().format(record))
    times = [told.pop(f"{name}_ms") for name in ("queue", "first_token", "duration")]
    assert 0 <= times[0] <= times[1] <= times[2] < 10_000
    assert told.pop("time")
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", told.pop("caller"))
    assert told == {
        "level": "info",
        "logger": ACCESS,
        "message": "call",
        "method": "Chat",
        "code": "OK",
        "capability": "chat",
        "decided": "default",
        "integration": "fake",
        "model": MODEL,
        "attempts": 2,
        "finish_reason": "stop",
        "prompt_tokens": USAGE["prompt_tokens"],
        "completion_tokens": USAGE["completion_tokens"],
    }
    assert vars(record)["request"] == " request_id=mine"


def health_stub(served: Served) -> Any:
    return health_pb2_grpc.HealthStub(served.channel)


async def test_a_cancelled_call_has_its_line_too(
    served: Served, fake: FakeServer, log: pytest.LogCaptureFixture
) -> None:
    fake.script(CHAT_PATH, Reply.stream(event(text("a")), Stall()))
    call: Any = served.stub.Chat(chat_request())
    await first_delta(call)
    call.cancel()
    await until(lambda: bool(lines(log, ACCESS)), "the line of the cancelled call")
    (line,) = lines(log, ACCESS)
    assert line.startswith("call method=Chat code=CANCELLED ")


# --- faults of our own -------------------------------------------------------------------------


async def test_an_unforeseen_exception_is_internal_and_only_logged(
    served: Served, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    def fault(_: Execution) -> None:
        raise LookupError(SECRET)

    monkeypatch.setattr(Execution, "list_integrations", fault)
    failure = await failure_of(served.stub.ListIntegrations(list_integrations()))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert SECRET not in str(failure)
    assert "LookupError" not in str(failure)
    (record,) = (record for record in log.records if record.exc_info)
    assert vars(record)["request"] == f" request_id={failure.request_id}"
    assert SECRET in log.text


class Faulty(OpenAIBackend):
    """Fails in a way that no backend should, in the middle of an answer."""

    async def chat(self, *_: Any, **__: Any) -> AsyncGenerator[BackendEvent, None]:
        yield Begun("id", "model")
        yield Delta("what was sent")
        raise LookupError(SECRET)


async def test_an_unforeseen_exception_in_a_stream_leaves_what_was_sent(
    fake: FakeServer, tmp_path: Path
) -> None:
    backend = Faulty(WireSettings("faulty", fake.base_url))
    async with serving(
        tmp_path, Integration(IntegrationSpec("faulty", "openai"), backend)
    ) as served:
        events, failure = await broken(served.stub.Chat(chat_request()))
    assert content(events) == "what was sent"
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert SECRET not in str(failure)


# --- faults of a backend -----------------------------------------------------------------------

ERROR = event({"error": {"message": SECRET, "code": 500}})


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        pytest.param([Reset()], "STREAM_TRUNCATED", id="connection reset"),
        pytest.param([], "STREAM_TRUNCATED", id="stream ended"),
        pytest.param([DONE], "STREAM_TRUNCATED", id="done without finish_reason"),
        pytest.param([ERROR], "BACKEND_ERROR", id="error in the stream"),
        pytest.param([b"data: {nope\n\n"], "BACKEND_CONTRACT", id="not JSON"),
    ],
)
async def test_a_failure_after_the_first_delta_leaves_what_was_sent(
    served: Served, fake: FakeServer, rest: list[Any], reason: str
) -> None:
    arrived = asyncio.Event()
    parts = [event(text("what ")), event(text("was sent")), Until(arrived), *rest]
    fake.script(CHAT_PATH, Reply.stream(*parts))
    call: Any = served.stub.Chat(chat_request())
    events: list[chat_pb2.ChatResponse] = []
    while content(events) != "what was sent":
        events.append(await call.read())
    arrived.set()
    more, failure = await broken(call)
    assert not more
    kinds = [item.WhichOneof("event") for item in events]
    assert kinds[0] == "started"
    assert set(kinds[1:]) == {"delta"}
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, reason)
    assert failure.metadata["integration_id"] == "fake"
    assert failure.metadata["model"] == "fake-model"
    assert SECRET not in str(failure)


@pytest.mark.parametrize(
    ("status", "headers", "code", "reason", "retry_after_s"),
    [
        (429, {"Retry-After": "7"}, grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKEND_BUSY", 7.0),
        (429, {}, grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKEND_BUSY", 1.0),
        (503, {"Retry-After": "3"}, grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE", 3.0),
        (502, {}, grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE", 1.0),
        (401, {}, grpc.StatusCode.FAILED_PRECONDITION, "BACKEND_AUTH", None),
        (500, {"Retry-After": "7"}, grpc.StatusCode.INTERNAL, "BACKEND_ERROR", None),
        (501, {}, grpc.StatusCode.UNIMPLEMENTED, "CAPABILITY_UNSUPPORTED", None),
    ],
)
async def test_what_a_backend_says_goes_to_the_log_and_its_status_to_the_caller(
    tmp_path: Path,
    fake: FakeServer,
    log: pytest.LogCaptureFixture,
    status: int,
    headers: dict[str, str],
    code: grpc.StatusCode,
    reason: str,
    retry_after_s: float | None,
) -> None:
    reply = Reply.json({"error": {"message": SECRET}}, status, headers=headers)
    fake.script(CHAT_PATH, *[reply] * 3)
    fake.script(EMBED_PATH, reply)
    async with serving(tmp_path, openai(fake.base_url), attempts={"maximum": 1}) as served:
        execute = served.stub.Execute(execution_pb2.ExecuteRequest(intent="a"))
        embed = served.stub.Embed(execution_pb2.EmbedRequest(input=["a"]))
        _, chat_failure = await broken(served.stub.Chat(chat_request()))
        failures = (chat_failure, await failure_of(execute), await failure_of(embed))
        tested = await served.stub.TestIntegration(
            execution_pb2.TestIntegrationRequest(integration_id="fake")
        )
    for failure in failures:
        assert (failure.code, failure.reason) == (code, reason)
        assert failure.retry_after_s == retry_after_s
        assert SECRET not in str(failure)
        assert any(SECRET in line for line in lines(log, request_id=failure.request_id))
    assert (tested.success, tested.error_reason) == (False, reason)
    assert SECRET not in str(tested)
    assert SECRET not in for_operators(log)  # it may repeat a prompt


async def test_lists_tell_of_a_backend_without_its_words(
    served: Served, fake: FakeServer, log: pytest.LogCaptureFixture
) -> None:
    fake.always("/v1/models", Reply.json({"error": {"message": SECRET}}, 500))
    models = await served.stub.ListModels(execution_pb2.ListModelsRequest())
    (unavailable,) = models.unavailable
    assert (unavailable.integration_id, unavailable.error_reason) == ("fake", "BACKEND_ERROR")
    integrations = await served.stub.ListIntegrations(list_integrations())
    assert integrations.integrations[0].error_reason == "BACKEND_ERROR"
    assert SECRET not in f"{models}{integrations}"
    assert SECRET in log.text
    assert SECRET not in for_operators(log)


# --- sizes -------------------------------------------------------------------------------------


def long_messages() -> Any:
    messages = [chat_pb2.Message(role=EMOJI * 100, reasoning="a") for _ in range(200)]
    return chat_pb2.ChatRequest(messages=messages)


def long_arguments() -> Any:
    kwargs = Struct()
    kwargs.update({f"{EMOJI * 100}{i}": i for i in range(100)})
    return execution_pb2.ExecuteRequest(intent="a", kwargs=kwargs)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(long_messages(), id="violations"),
        pytest.param(long_arguments(), id="names of arguments"),
        pytest.param(chat_request(model=EMOJI * 5000), id="model"),
        pytest.param(chat_request(integration_id=EMOJI * 5000), id="integration"),
        pytest.param(
            execution_pb2.ExecuteRequest(intent="a", capability=EMOJI * 5000), id="capability"
        ),
    ],
)
async def test_trailers_stay_under_4_kb(tmp_path: Path, request_: Any) -> None:
    models = [f"{EMOJI * 200}{i}" for i in range(9)]
    metadata = (("x-request-id", "r" * 128),)
    async with (
        FakeServer(OpenAI(models=models)) as fake,
        serving(tmp_path, openai(fake.base_url)) as served,
    ):
        if isinstance(request_, chat_pb2.ChatRequest):
            _, failure = await broken(served.stub.Chat(request_, metadata=metadata))
        else:
            failure = await failure_of(served.stub.Execute(request_, metadata=metadata))
    assert failure.message
    assert failure.trailers_size < 4096


async def test_calls_that_come_at_one_instant_are_all_answered(served: Served) -> None:
    calls = [served.stub.ListIntegrations(list_integrations()) for _ in range(2500)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [outcome for outcome in outcomes if isinstance(outcome, BaseException)] == []
