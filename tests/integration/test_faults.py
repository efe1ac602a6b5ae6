"""The fault matrix: every fault × unary or stream × deadline × alone or with a fallback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest

from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.config import Integration as Settings
from atmosphere_grpc.domain import IntegrationState
from atmosphere_grpc.integrations import registry
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.fakes import (
    ColdModel,
    FakeServer,
    LlamaFarm,
    Ollama,
    OpenAI,
    Pause,
    Reply,
    Stall,
    answer_events,
    event,
    text,
)
from tests.fakes.sockets import accepting, refusing
from tests.integration.conftest import (
    CHAT_PATH,
    PATIENCE_S,
    Served,
    Told,
    UntoldError,
    chat_request,
    content,
    read,
    serving,
    told,
)

#: How long an integration lets a call wait where it answers at all, in seconds.
FIRST_TOKEN_S = 0.4
IDLE_S = 0.3
#: A caller's deadlines, in seconds: with time for everything, and for less than one wait.
AMPLE_S, SHORT_S = 20.0, 0.25
#: What a call may take longer than its deadline, in seconds (the contract of the fault matrix).
OVERSHOOT_S = 0.05
MAXIMUM = 3
#: How often a call is made before its status must have come before gRPC's own.
TRIES = 5
SECOND = "from the other"
HALF = event(text("Half"))


@dataclass(frozen=True)
class Fault:
    """How a backend fails, and what becomes of a call that nothing else can answer.

    Attributes:
        reply: What it answers each chat with; None where that is made elsewhere.
        reason: Of the failure; empty where the call succeeds all the same.
        attempts: How many are made.
        text: What a stream has sent before.
        waits: Whether a short deadline runs out first.
        phase: What it is waited for then.
    """

    reply: Reply | None
    reason: str
    attempts: int = 1
    text: str = ""
    waits: bool = False
    phase: str = ""


FAULTS = {
    "refused": Fault(None, "BACKEND_UNAVAILABLE", MAXIMUM),
    "accepts and never answers": Fault(None, "DEADLINE_EXCEEDED", waits=True, phase="FIRST_TOKEN"),
    "headers only": Fault(
        Reply.stream(Stall()), "DEADLINE_EXCEEDED", waits=True, phase="FIRST_TOKEN"
    ),
    "slow first token": Fault(None, "", waits=True, phase="FIRST_TOKEN", text="Hello world"),
    "stalls mid-stream": Fault(
        Reply.stream(HALF, Stall()), "DEADLINE_EXCEEDED", text="Half", waits=True, phase="IDLE"
    ),
    "dies mid-stream": Fault(Reply.until_eof(HALF), "STREAM_TRUNCATED", text="Half"),
    "garbage": Fault(Reply.stream(event("{]")), "BACKEND_CONTRACT"),
    "429": Fault(Reply.json({}, 429), "BACKEND_BUSY", MAXIMUM),
    "500": Fault(Reply.json({}, 500), "BACKEND_ERROR"),
    "cold load": Fault(None, "", waits=True, phase="FIRST_TOKEN", text="Hello world"),
}
STATUSES = {
    "BACKEND_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": grpc.StatusCode.DEADLINE_EXCEEDED,
    "STREAM_TRUNCATED": grpc.StatusCode.INTERNAL,
    "BACKEND_CONTRACT": grpc.StatusCode.INTERNAL,
    "BACKEND_BUSY": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "BACKEND_ERROR": grpc.StatusCode.INTERNAL,
}
#: How long what is merely slow takes, in seconds: more than SHORT_S, less than FIRST_TOKEN_S.
SLOW_S = 0.33
DEADLINES = {"no deadline": None, "ample": AMPLE_S, "short": SHORT_S}
CELLS = [*product(FAULTS, ("unary", "stream"), DEADLINES, ("alone", "with fallback"))]


def integration(name: str, url: str, **settings: Any) -> Integration:
    given = {
        "id": name,
        "base_urls": [url],
        "default_model": "fake-model",
        "timeouts": {"connect": 5, "first_token": FIRST_TOKEN_S, "idle": IDLE_S, "load": 0.4},
        **settings,
    }
    made = integration_of(Settings.model_validate(given))
    assert isinstance(made, Integration)
    return made


@asynccontextmanager
async def served_with(fault: str, tmp_path: Path, *, fallback: bool) -> AsyncIterator[Served]:
    """A server whose first integration has a fault, and whose second one is well."""
    how = FAULTS[fault]
    async with AsyncExitStack() as stack:
        more: dict[str, Any] = {"fallback": [{"integration": "second"}]} if fallback else {}
        match fault:
            case "refused":
                url = f"http://{stack.enter_context(refusing())}/v1"
            case "accepts and never answers":
                url = f"http://{stack.enter_context(accepting())}/v1"
                # The first look at it is not what this is about.
                stack.enter_context(mock.patch.object(registry, "PROBE_TIMEOUT_S", 0.2))
            case "cold load":
                fake = FakeServer(Ollama(cold=ColdModel(SLOW_S)))
                url = (await stack.enter_async_context(fake)).url
                more["kind"] = "ollama"
            case _:
                fake = await stack.enter_async_context(FakeServer())
                slow = Reply.stream(*answer_events()).after(Pause(SLOW_S))
                fake.always(CHAT_PATH, how.reply or slow)
                url = fake.base_url
        integrations = [integration("first", url, **more)]
        if fallback:
            other = await stack.enter_async_context(FakeServer(OpenAI([SECOND])))
            integrations.append(integration("second", other.base_url))
        served = await stack.enter_async_context(
            serving(tmp_path, *integrations, attempts={"maximum": MAXIMUM, "backoff": 0.01})
        )
        yield served


@dataclass(frozen=True)
class Outcome:
    """What a caller gets: text, how it failed if it did, the attempts, and after how long."""

    text: str
    failure: Told | None
    attempts: list[chat_pb2.Attempt]
    took_s: float


async def call(served: Served, how: str, deadline_s: float | None) -> Outcome:
    """A call that names its integration's model only, so that it may go elsewhere."""
    began = time.monotonic()
    said, attempts, failure = "", list[chat_pb2.Attempt](), None
    if how == "stream":
        events, failure = await read(served.stub.Chat(chat_request(), timeout=deadline_s))
        said = content(events)
        if failure is None:
            attempts = list(events[-1].completed.attempts)
    else:
        request = execution_pb2.ExecuteRequest(intent="hi")
        try:
            response = await served.stub.Execute(request, timeout=deadline_s)
            said, attempts = response.data.message.content, list(response.attempts)
        except grpc.aio.AioRpcError as error:
            failure = told(error)
    return Outcome(said, failure, attempts, time.monotonic() - began)


async def outcome_of(
    tmp_path: Path, fault: str, how: str, deadline_s: float | None, *, fallback: bool
) -> Outcome:
    """The outcome of a call that was made until its status came before gRPC's own.

    A caller's gRPC ends a call by itself when its time is over. On a busy machine it may be the
    first, a few milliseconds before the server's status arrives; in time it is all the same.
    """
    for _ in range(TRIES):
        async with served_with(fault, tmp_path, fallback=fallback) as served:
            # Where the first is known to be down, a call is routed to the second at once; that is
            # another test's. Here it goes down after it was looked at.
            _as_if_up(served)
            began = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    return await call(served, how, deadline_s)
            except UntoldError:
                assert deadline_s is not None
                assert time.monotonic() - began <= deadline_s + OVERSHOOT_S
    raise AssertionError(f"the server's status came too late {TRIES} times")


@pytest.mark.parametrize(("fault", "how", "deadline", "others"), CELLS)
async def test_every_fault_is_told_as_it_is_within_its_time(
    tmp_path: Path, fault: str, how: str, deadline: str, others: str
) -> None:
    expected, deadline_s = FAULTS[fault], DEADLINES[deadline]
    short = deadline == "short" and expected.waits
    # A part of an answer was sent to the caller: nothing follows it.
    begun = how == "stream" and expected.text and expected.reason
    outcome = await outcome_of(tmp_path, fault, how, deadline_s, fallback=others == "with fallback")
    if deadline_s is not None:
        assert outcome.took_s <= deadline_s + OVERSHOOT_S
    # Once an answer has begun, its next token may be waited for as long as the call has.
    stalled = short and expected.phase == "IDLE"
    failed = (expected.reason or short) and not begun and not stalled
    if others == "with fallback" and failed:
        assert outcome.failure is None, outcome.failure
        assert outcome.text == SECOND
        assert [item.integration_id for item in outcome.attempts] == ["first", "second"]
        first, second = outcome.attempts
        reason = "DEADLINE_EXCEEDED" if short else expected.reason
        assert (first.reason, first.status_code) == (reason, STATUSES[reason].value[0])
        assert second.status_code == 0
        return
    if not expected.reason and not short:
        assert outcome.failure is None, outcome.failure
        assert outcome.text == expected.text
        assert [item.reason for item in outcome.attempts] == [""]
        return
    failure = outcome.failure
    assert failure is not None, outcome
    assert failure.reason == ("DEADLINE_EXCEEDED" if short else expected.reason)
    assert failure.code is STATUSES[failure.reason]
    if failure.reason == "DEADLINE_EXCEEDED":
        phase = "TOTAL" if short and expected.phase == "IDLE" else expected.phase
        assert failure.metadata["phase"] == phase
        assert failure.metadata["limit"] == ("call" if short else "integration")
    assert outcome.text == (expected.text if begun else "")
    made = failure.metadata["attempts"].split("; ")
    assert len(made) == (1 if short else expected.attempts)
    assert all(item.startswith("first@127.0.0.1:") for item in made)


def _as_if_up(served: Served) -> None:
    for item in served.server.registry:
        for endpoint in item.endpoints:
            endpoint.state = IntegrationState.UP


# --- retries and fallbacks ---------------------------------------------------------------------


async def test_a_retry_waits_as_long_as_the_backend_asks_for(tmp_path: Path) -> None:
    async with FakeServer() as fake:
        fake.script(CHAT_PATH, Reply.json({}, 429, headers={"Retry-After": "1"}))
        async with serving(tmp_path, integration("first", fake.base_url)) as served:
            outcome = await call(served, "unary", None)
    assert outcome.failure is None
    assert [item.reason for item in outcome.attempts] == ["BACKEND_BUSY", ""]
    assert outcome.took_s >= 1


@pytest.mark.parametrize(("retry_after", "deadline_s"), [("11", None), ("5", 2.0)])
async def test_a_wait_that_is_too_long_is_the_callers_to_decide(
    tmp_path: Path, retry_after: str, deadline_s: float | None
) -> None:
    async with FakeServer() as fake:
        fake.always(CHAT_PATH, Reply.json({}, 429, headers={"Retry-After": retry_after}))
        async with serving(tmp_path, integration("first", fake.base_url)) as served:
            outcome = await call(served, "unary", deadline_s)
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.retry_after_s) == (
        "BACKEND_BUSY",
        float(retry_after),
    )
    assert outcome.took_s < 1


async def test_a_parameter_that_the_first_would_drop_takes_the_call_to_the_second(
    tmp_path: Path,
) -> None:
    async with FakeServer(LlamaFarm()) as farm, FakeServer(OpenAI([SECOND])) as other:
        first = integration(
            "first",
            farm.url,
            kind="llamafarm",
            project="default/fake",
            fallback=[{"integration": "second"}],
        )
        async with serving(tmp_path, first, integration("second", other.base_url)) as served:
            request = execution_pb2.ExecuteRequest(intent="hi")
            request.sampling.seed = 7
            response = await served.stub.Execute(request)
            request.integration_id = "first"  # a call that names its integration stays there
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.stub.Execute(request)
    assert response.data.message.content == SECOND
    assert response.data.integration_id == "second"
    assert [item.reason for item in response.attempts] == ["UNSUPPORTED_PARAMETER", ""]
    assert told(caught.value).reason == "UNSUPPORTED_PARAMETER"


async def test_a_model_is_called_there_what_the_fallback_says(tmp_path: Path) -> None:
    async with FakeServer() as fake, FakeServer(OpenAI([SECOND], models=["big"])) as other:
        fake.always(CHAT_PATH, Reply.json({}, 500))
        first = integration(
            "first",
            fake.base_url,
            fallback=[{"integration": "second", "models": {"fake-model": "big"}}],
        )
        second = integration("second", other.base_url, default_model="")
        async with serving(tmp_path, first, second) as served:
            events, failure = await read(served.stub.Chat(chat_request(model="fake-model")))
        posted = [request.json["model"] for request in other.requests if request.body]
    assert failure is None
    assert content(events) == SECOND
    assert posted == ["big"]


async def test_a_test_of_an_integration_is_one_attempt_there(tmp_path: Path) -> None:
    async with FakeServer() as fake, FakeServer() as other:
        fake.always(CHAT_PATH, Reply.json({}, 503))
        first = integration("first", fake.base_url, fallback=[{"integration": "second"}])
        async with serving(tmp_path, first, integration("second", other.base_url)) as served:
            response = await served.stub.TestIntegration(
                execution_pb2.TestIntegrationRequest(integration_id="first")
            )
        assert (response.success, response.error_reason) == (False, "BACKEND_UNAVAILABLE")
        assert len([request for request in fake.requests if request.body]) == 1


async def test_what_was_tried_in_vain_is_told_of_all(tmp_path: Path) -> None:
    async with FakeServer() as fake, FakeServer() as other:
        fake.always(CHAT_PATH, Reply.json({}, 500))
        other.always(CHAT_PATH, Reply.json({}, 429))
        first = integration("first", fake.base_url, fallback=[{"integration": "second"}])
        settings: dict[str, Any] = {"attempts": {"maximum": 2}}
        second = integration("second", other.base_url)
        async with serving(tmp_path, first, second, **settings) as served:
            outcome = await call(served, "stream", None)
    failure = outcome.failure
    assert failure is not None
    # The one that a retry can mend, whichever came first.
    assert failure.reason == "BACKEND_BUSY"
    assert failure.retry_after_s is not None
    assert 'integration "second": the backend has too much to do' in failure.message
    assert 'tried as well: integration "first": the backend failed (HTTP 500)' in failure.message
    reasons = [item.split(" ")[2] for item in failure.metadata["attempts"].split("; ")]
    assert reasons == ["BACKEND_ERROR", "BACKEND_BUSY"]
    assert failure.trailers_size < 4096


async def test_a_llamafarm_without_a_project_says_what_to_set(tmp_path: Path) -> None:
    async with FakeServer(LlamaFarm()) as farm:
        made = integration("farm", farm.url, kind="llamafarm", default_model="")
        async with serving(tmp_path, made) as served:
            _, failure = await read(served.stub.Chat(chat_request(integration_id="farm")))
    assert failure is not None
    assert failure.reason == "CAPABILITY_UNSUPPORTED"
    assert "set project: namespace/name, or discover: namespace" in failure.message
