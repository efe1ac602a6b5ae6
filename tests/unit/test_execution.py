"""A decision carried out: attempts, whole answers, and what happens when a backend fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atmosphere_grpc.backends.language import LanguageOnly
from atmosphere_grpc.domain import (
    Answer,
    BackendEvent,
    Begun,
    Capability,
    ChatCall,
    ChatEvent,
    Completed,
    Delta,
    EmbedCall,
    Embeddings,
    EmbedResult,
    ExecuteCall,
    Finished,
    FinishReason,
    Image,
    IntegrationState,
    Message,
    Model,
    RouteDecision,
    Sampling,
    Started,
    Target,
    TestCall,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageSource,
)
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.execution.budget import Budget, Deadlines
from atmosphere_grpc.execution.core import Execution
from atmosphere_grpc.integrations.integration import Integration, IntegrationSpec, Timeouts
from atmosphere_grpc.integrations.registry import Registry

USAGE = Usage(3, 4, 7, source=UsageSource.REPORTED)
DONE = Finished(FinishReason.STOP, USAGE)
BROKEN = Failure(Reason.STREAM_TRUNCATED, 'integration "a": its stream ended')
REFUSED = Failure(Reason.BACKEND_UNAVAILABLE, 'integration "a": refused – is it running?')
USER = (Message("user", "Hello"),)


class Backend(LanguageOnly):
    """Does what it is told to: lists models, plays a script, and waits for ever at a None."""

    def __init__(
        self, *models: str | Model, script: tuple[BackendEvent | Failure | None, ...] = ()
    ) -> None:
        self.listed = tuple(Model(item) if isinstance(item, str) else item for item in models)
        self.script = script or (Begun("id-1", ""), Delta("Hi"), DONE)
        self.down: Failure | None = None
        self.endpoints = ("backend.test:1",)
        self.chats: list[tuple[str, ChatCall]] = []
        self.embeds: list[tuple[str, EmbedCall]] = []
        self.waiting = asyncio.Event()
        self.closed = 0
        self.asked = 0

    async def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        assert connect_s > 0
        self.chats.append((model, call))
        try:
            for step in self.script:
                if step is None:
                    self.waiting.set()
                    await asyncio.Event().wait()
                elif isinstance(step, Failure):
                    raise step
                else:
                    yield step
        finally:
            self.closed += 1

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        self.embeds.append((model, call))
        if None in self.script:
            self.waiting.set()
            await asyncio.Event().wait()
        return Embeddings(([0.5],) * len(call.input), model, USAGE)

    async def models(self) -> tuple[Model, ...]:
        self.asked += 1
        if self.down is not None:
            raise self.down
        return self.listed

    def is_cold(self, model: str) -> bool:
        return False

    async def warm(self, model: str) -> None:
        raise AssertionError

    def lists_all_models(self, capability: Capability) -> bool:
        return bool(self.listed)

    async def aclose(self) -> None:
        raise NotImplementedError


def execution(timeouts: Timeouts = Timeouts(), **backends: Backend) -> Execution:  # noqa: B008
    specs = {name: IntegrationSpec(name, "openai", timeouts=timeouts) for name in backends}
    return Execution(Registry([Integration(specs[name], backends[name]) for name in backends]))


def budget(seconds: float | None = None) -> Budget:
    return Budget(seconds, Deadlines(default_s=10))


def call(model: str = "", integration_id: str = "", **fields: Any) -> ChatCall:
    return ChatCall(Target("chat", integration_id, model), USER, **fields)


async def events(of: Execution, sent: ChatCall) -> list[ChatEvent]:
    async with aclosing(of.chat(sent, budget())) as stream:
        return [event async for event in stream]


async def failure(work: Awaitable[object]) -> Failure:
    with pytest.raises(Failure) as caught:
        await work
    return caught.value


# --- chat -------------------------------------------------------------------------------------


async def test_a_chat_is_started_then_told_then_completed() -> None:
    backend = Backend("llama")
    started, delta, completed = await events(execution(a=backend), call())
    assert isinstance(started, Started)
    assert (started.id, started.model, started.integration_id) == ("id-1", "llama", "a")
    assert started.created > 1e9
    assert (started.route.integration_id, started.route.model) == ("a", "llama")
    assert delta == Delta("Hi")
    assert isinstance(completed, Completed)
    assert (completed.finish_reason, completed.usage) == (FinishReason.STOP, USAGE)
    assert 0 < completed.time_to_first_token_ms <= completed.latency_ms
    (attempt,) = completed.attempts
    assert (attempt.integration_id, attempt.endpoint) == ("a", "backend.test:1")
    assert (attempt.model, attempt.reason) == ("llama", None)
    assert 0 < attempt.time_to_first_token_ms <= attempt.latency_ms <= completed.latency_ms
    assert backend.chats == [("llama", call())]
    assert backend.closed == 1


async def test_an_answer_that_names_its_model_and_no_id_is_given_one() -> None:
    of = execution(a=Backend("llama", script=(Begun("", "llama-3.2-q4"), DONE)))
    first, second = [(await events(of, call()))[0] for _ in range(2)]
    assert isinstance(first, Started)
    assert isinstance(second, Started)
    assert first.model == "llama-3.2-q4"
    assert first.id.startswith("atmosphere-")
    assert first.id != second.id


async def test_an_answer_without_a_delta_has_no_first_token() -> None:
    of = execution(a=Backend("llama", script=(Begun(), DONE)))
    _, completed = await events(of, call())
    assert isinstance(completed, Completed)
    assert completed.time_to_first_token_ms == 0
    assert completed.attempts[0].time_to_first_token_ms == 0
    assert completed.latency_ms > 0


async def test_what_came_before_a_failure_was_sent() -> None:
    of = execution(a=Backend("llama", script=(Begun(), Delta("H"), BROKEN)))
    async with aclosing(of.chat(call(), budget())) as stream:
        assert isinstance(await anext(stream), Started)
        assert await anext(stream) == Delta("H")
        failed = await failure(anext(stream))
    assert failed.reason is Reason.STREAM_TRUNCATED
    assert failed.metadata.pop("attempts").startswith("a@backend.test:1 llama STREAM_TRUNCATED")
    assert failed.metadata == {"integration_id": "a", "model": "llama"}


async def test_a_chat_closed_early_closes_the_backends_stream() -> None:
    backend = Backend("llama", script=(Begun(), Delta("H"), None))
    async with aclosing(execution(a=backend).chat(call(), budget())) as stream:
        assert isinstance(await anext(stream), Started)
        assert await anext(stream) == Delta("H")
        assert backend.closed == 0
    assert backend.closed == 1


@pytest.mark.parametrize("before", [(), (Begun(),), (Begun(), Delta("H"))])
@pytest.mark.parametrize("how", ["chat", "execute", "test"])
async def test_a_cancelled_call_is_cancelled_and_closes_the_backends_stream(
    before: tuple[BackendEvent, ...], how: str
) -> None:
    backend = Backend("llama", script=(*before, None))
    of = execution(a=backend)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "chat": lambda: events(of, call()),
        "execute": lambda: of.execute(ExecuteCall(Target(), "Hello"), budget()),
        "test": lambda: of.test(TestCall("a", "Hello"), budget()),
    }
    task = asyncio.ensure_future(calls[how]())
    await backend.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert backend.closed == 1


async def test_a_cancelled_embedding_is_cancelled() -> None:
    backend = Backend("minilm", script=(None,))
    task = asyncio.create_task(execution(a=backend).embed(EmbedCall(Target(), ("x",)), budget()))
    await backend.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("before", "timeouts", "seconds", "phase"),
    [
        ((), Timeouts(first_token_s=0.01), None, "FIRST_TOKEN"),
        ((Begun(),), Timeouts(first_token_s=0.01), None, "FIRST_TOKEN"),  # no token yet
        ((Begun(), Delta("H")), Timeouts(idle_s=0.01), None, "IDLE"),
        ((), Timeouts(), 0.1, "FIRST_TOKEN"),
        ((Begun(), Delta("H")), Timeouts(), 0.1, "TOTAL"),
    ],
)
async def test_time_that_is_used_up_is_told_with_its_phase_and_stops_the_backend(
    before: tuple[BackendEvent, ...], timeouts: Timeouts, seconds: float | None, phase: str
) -> None:
    backend = Backend("llama", script=(*before, None))
    of = execution(timeouts, a=backend)
    failed = await failure(of.execute(ExecuteCall(Target(), "Hello"), budget(seconds)))
    assert failed.reason is Reason.DEADLINE_EXCEEDED
    attempts = failed.metadata.pop("attempts")
    assert attempts.startswith("a@backend.test:1 llama DEADLINE_EXCEEDED ")
    assert failed.metadata == {
        "phase": phase,
        "limit": "integration" if seconds is None else "call",
        "integration_id": "a",
        "model": "llama",
    }
    assert backend.closed == 1


SEEN = Message("user", parts=("See", Image(url="https://x.test/a.png")))


@pytest.mark.parametrize("accepts", [True, None])
async def test_images_go_to_a_model_that_is_not_known_to_refuse_them(accepts: bool | None) -> None:
    backend = Backend(Model("m", accepts_images=accepts))
    sent = ChatCall(Target(), (SEEN,))
    await events(execution(a=backend), sent)
    assert backend.chats == [("m", sent)]


async def test_images_are_refused_for_a_model_that_takes_none() -> None:
    backend = Backend(Model("m", accepts_images=False))
    failed = await failure(events(execution(a=backend), ChatCall(Target(), (*USER, SEEN))))
    assert failed.reason is Reason.UNSUPPORTED_PARAMETER
    assert [bad.field for bad in failed.violations] == ["messages[1].parts[1].image"]
    assert backend.chats == []
    await events(execution(a=backend), call())  # a text is welcome


@pytest.mark.parametrize("accepts", [True, None, False])
async def test_tools_are_refused_for_a_model_that_is_known_to_know_none(
    accepts: bool | None,
) -> None:
    backend = Backend(Model("m", accepts_tools=accepts))
    sent = call(tools=(Tool("now"),))
    if accepts is not False:
        await events(execution(a=backend), sent)
        assert backend.chats == [("m", sent)]
        return
    failed = await failure(events(execution(a=backend), sent))
    assert failed.reason is Reason.UNSUPPORTED_PARAMETER
    assert [bad.field for bad in failed.violations] == ["tools"]
    assert backend.chats == []


LOOK = Target("vision")


async def test_an_image_is_looked_at_by_a_model_that_takes_it_rather_than_the_first() -> None:
    blind, seeing = Model("a", accepts_images=False), Model("c", accepts_images=True)
    backend = Backend(blind, "b", seeing)
    result = await execution(a=backend).execute(ExecuteCall(LOOK, "", messages=(SEEN,)), budget())
    assert (result.route.model, result.route.capability) == ("c", Capability.VISION)
    backend = Backend(blind, "b")  # of the other it is not known
    result = await execution(a=backend).execute(ExecuteCall(LOOK, "", messages=(SEEN,)), budget())
    assert result.route.model == "b"


@pytest.mark.parametrize("model", ["", "m"])
async def test_no_image_is_looked_at_where_none_is_taken(model: str) -> None:
    backend = Backend(Model("m", accepts_images=False))
    sent = ExecuteCall(Target("vision", model=model), "", messages=(SEEN,))
    for method in ("execute", "route"):
        failed = await failure(getattr(execution(a=backend), method)(sent, budget()))
        assert failed.reason is Reason.CAPABILITY_UNSUPPORTED
        assert "cannot see images (vision)" in failed.message
    assert backend.chats == []


async def test_an_image_of_an_intent_is_told_by_its_place_among_the_arguments() -> None:
    backend = Backend(Model("m", accepts_images=False))
    sent = ExecuteCall(Target("chat"), "", messages=(*USER, SEEN), system="Be brief.")
    failed = await failure(execution(a=backend).execute(sent, budget()))
    assert failed.reason is Reason.UNSUPPORTED_PARAMETER
    assert [bad.field for bad in failed.violations] == ["kwargs.messages[1].content[1].image_url"]


# --- execute ----------------------------------------------------------------------------------


async def test_a_unary_answer_is_put_together_from_its_stream() -> None:
    script = (
        Begun("id-1", "llama-3"),
        Delta("It ", "Let "),
        Delta("is", "me see", (ToolCallDelta(1, "c1", "now"), ToolCallDelta(0, "c0", "weather"))),
        Delta(tool_calls=(ToolCallDelta(0, arguments='{"a":'), ToolCallDelta(1, arguments="{}"))),
        Delta(tool_calls=(ToolCallDelta(0, arguments="1}"),)),
        Finished(FinishReason.TOOL_CALLS, USAGE),
    )
    result = await execution(a=Backend("llama", script=script)).execute(
        ExecuteCall(Target(), "Hello"), budget()
    )
    outcome = result.outcome
    assert isinstance(outcome, Answer)
    assert outcome.message == Message(
        "assistant",
        "It is",
        reasoning="Let me see",
        tool_calls=(ToolCall("c0", "weather", '{"a":1}'), ToolCall("c1", "now", "{}")),
    )
    assert outcome.started.model == "llama-3"
    assert outcome.completed.finish_reason is FinishReason.TOOL_CALLS
    assert result.route == outcome.started.route
    assert result.execution_time_ms >= outcome.completed.latency_ms > 0


async def test_an_unary_answer_that_breaks_off_is_no_answer() -> None:
    backend = Backend("llama", script=(Begun(), Delta("H"), BROKEN))
    failed = await failure(execution(a=backend).execute(ExecuteCall(Target(), "Hello"), budget()))
    assert failed is BROKEN


INTENTS = [
    ({}, (Message("user", "Hello"),)),
    ({"prompt": "Hi"}, (Message("user", "Hi"),)),
    ({"system": "Be brief."}, (Message("system", "Be brief."), Message("user", "Hello"))),
    ({"messages": (Message("user", "Yo"),)}, (Message("user", "Yo"),)),
    (
        {"messages": (Message("user", "Yo"),), "system": "S"},
        (Message("system", "S"), Message("user", "Yo")),
    ),
]


@pytest.mark.parametrize(("said", "messages"), INTENTS)
async def test_an_intent_is_a_chat(said: dict[str, Any], messages: tuple[Message, ...]) -> None:
    backend = Backend("llama")
    sampling = Sampling(temperature=0.7)
    sent = ExecuteCall(Target(), "Hello", sampling=sampling, extra={"n": 1}, **said)
    await execution(a=backend).execute(sent, budget())
    ((_, chat),) = backend.chats
    assert (chat.messages, chat.sampling, chat.extra) == (messages, sampling, {"n": 1})


@pytest.mark.parametrize(("text", "embedded"), [(None, "Hello"), ("Hi", "Hi")])
async def test_an_intent_is_an_embedding(text: str | None, embedded: str) -> None:
    backend = Backend("minilm")
    sent = ExecuteCall(Target("embed"), "Hello", text=text, extra={"n": 1})
    result = await execution(a=backend).execute(sent, budget())
    ((model, asked),) = backend.embeds
    assert (model, asked.input, asked.extra) == ("minilm", (embedded,), {"n": 1})
    assert result.route.capability is Capability.EMBED
    assert isinstance(result.outcome, EmbedResult)
    assert result.outcome.embeddings.vectors == ([0.5],)
    assert [item.reason for item in result.outcome.attempts] == [None]


MISUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("chat", {"text": "x"}, ["kwargs.text"]),
    ("chat", {"intent": ""}, ["intent"]),
    ("embed", {"intent": ""}, ["intent"]),
    ("embed", {"prompt": "x"}, ["kwargs.prompt"]),
    ("embed", {"messages": USER, "system": "x"}, ["kwargs.messages", "kwargs.system"]),
    ("embed", {"sampling_fields": ("kwargs.seed",)}, ["kwargs.seed"]),
]


@pytest.mark.parametrize(("capability", "said", "fields"), MISUSED)
@pytest.mark.parametrize("method", ["execute", "route"])
async def test_what_a_capability_has_no_use_for_is_rejected(
    method: str, capability: str, said: dict[str, Any], fields: list[str]
) -> None:
    backend = Backend("llama")
    sent = ExecuteCall(Target(capability), **{"intent": "Hello", **said})
    failed = await failure(getattr(execution(a=backend), method)(sent, budget()))
    assert failed.reason is Reason.INVALID_FIELD
    assert [bad.field for bad in failed.violations] == fields
    assert (backend.chats, backend.embeds) == ([], [])


# --- where calls go ----------------------------------------------------------------------------


async def test_an_unknown_model_is_looked_for_once_more_before_it_is_not_found() -> None:
    backend = Backend("llama")
    of = execution(a=backend)
    await events(of, call())
    backend.listed = (Model("llama"), Model("fresh"))
    await events(of, call("fresh"))
    assert backend.chats[-1][0] == "fresh"
    asked = backend.asked
    failed = await failure(events(of, call("frsh")))
    assert failed.reason is Reason.MODEL_NOT_FOUND
    assert failed.metadata["nearest"].startswith("fresh")
    assert backend.asked == asked + 1


async def test_when_nothing_answers_each_integration_is_named() -> None:
    a, b = Backend(), Backend()
    a.down = REFUSED
    b.down = Failure(Reason.BACKEND_UNAVAILABLE, 'integration "b": no answer within 5 s')
    failed = await failure(events(execution(a=a, b=b), call()))
    assert failed.reason is Reason.BACKEND_UNAVAILABLE
    assert failed.message == f"{REFUSED.message}; {b.down.message}"


Targets = st.builds(
    Target,
    st.sampled_from(["", "chat", "embed", "generate", "rag", "vision", "classify", "paint"]),
    st.sampled_from(["", "a", "b", "down", "nobody"]),
    st.sampled_from(["", "llama", "minilm", "both", "lama"]),
)


async def outcome(work: Awaitable[Any]) -> RouteDecision | tuple[Reason, str]:
    try:
        result = await work
    except Failure as failed:
        return failed.reason, failed.message
    return result if isinstance(result, RouteDecision) else result.route


def fleet() -> Execution:
    a = Backend(Model("llama", capabilities=("chat",)), "both")
    b, down = Backend("minilm", "both"), Backend()
    down.down = REFUSED
    return execution(a=a, b=b, down=down)


@given(Targets, st.booleans())
def test_a_route_is_what_execute_then_does(target: Target, probed: bool) -> None:
    async def both() -> None:
        of, sent = fleet(), ExecuteCall(target, "Hello")
        if probed:
            await of.list_models("", budget())
        routed = await outcome(of.route(sent, budget()))
        assert routed == await outcome(of.execute(sent, budget()))

    asyncio.run(both())


async def test_a_route_calls_no_model() -> None:
    backend = Backend("llama")
    route = await execution(a=backend).route(ExecuteCall(Target(), "Hello"), budget())
    assert (route.integration_id, route.model) == ("a", "llama")
    assert (backend.chats, backend.embeds) == ([], [])


# --- test, list --------------------------------------------------------------------------------


async def test_an_integration_that_answers_passes_its_test() -> None:
    backend = Backend("llama", "qwen", script=(Begun("", "qwen-2"), Delta("1, "), Delta("2"), DONE))
    result = await execution(a=backend).test(TestCall("a", "Count", "qwen"), budget())
    assert (result.response, result.model, result.usage) == ("1, 2", "qwen-2", USAGE)
    assert (result.error, result.reason) == ("", None)
    assert 0 < result.time_to_first_token_ms <= result.latency_ms
    ((model, chat),) = backend.chats
    assert (model, chat.messages) == ("qwen", (Message("user", "Count"),))


@pytest.mark.parametrize(
    ("script", "text", "model"),
    [
        ((REFUSED,), "", "llama"),
        ((Begun("", "llama-3"), Delta("1, "), Delta("2"), BROKEN), "1, 2", "llama-3"),
    ],
)
async def test_a_backend_that_fails_its_test_is_told_with_what_it_said_before(
    script: tuple[BackendEvent | Failure, ...], text: str, model: str
) -> None:
    of = execution(a=Backend("llama", script=script))
    result = await of.test(TestCall("a", "Count", "llama"), budget())
    failed = script[-1]
    assert isinstance(failed, Failure)
    assert (result.response, result.model) == (text, model)
    assert (result.error, result.reason) == (failed.message, failed.reason)
    assert result.usage.source is UsageSource.MISSING


async def test_an_integration_that_is_down_fails_its_test_and_not_the_call() -> None:
    backend = Backend()
    backend.down = REFUSED
    result = await execution(a=backend).test(TestCall("a", "Count"), budget())
    assert (result.error, result.reason) == (REFUSED.message, REFUSED.reason)


@pytest.mark.parametrize(
    ("integration_id", "model", "reason"),
    [
        ("b", "", Reason.INTEGRATION_NOT_FOUND),
        ("a", "lama", Reason.MODEL_NOT_FOUND),
    ],
)
async def test_what_a_test_names_must_exist(
    integration_id: str, model: str, reason: Reason
) -> None:
    of = execution(a=Backend("llama"))
    await of.list_models("", budget())  # as a server does at its start
    failed = await failure(of.test(TestCall(integration_id, "Count", model), budget()))
    assert failed.reason is reason


async def test_models_are_listed_in_order_beside_what_is_down() -> None:
    down = Backend("forgotten")
    down.down = REFUSED
    of = execution(zeta=Backend("b", "a"), down=down, alpha=Backend("c"))
    listed = await of.list_models("", budget())
    assert [(item.integration_id, item.model.id, item.is_default) for item in listed.models] == [
        ("alpha", "c", True),
        ("zeta", "a", False),
        ("zeta", "b", True),  # the first that it lists, in its own order
    ]
    (missing,) = listed.unavailable
    assert (missing.integration_id, missing.error) == ("down", REFUSED.message)
    assert missing.reason is REFUSED.reason
    states = [status.state for status in of.list_integrations()]
    assert states == [IntegrationState.UP, IntegrationState.DOWN, IntegrationState.UP]


async def test_models_of_one_integration_are_listed_without_asking_the_others() -> None:
    a, b = Backend("x"), Backend("y")
    listed = await execution(a=a, b=b).list_models("b", budget())
    assert [item.model.id for item in listed.models] == ["y"]
    assert (a.asked, b.asked) == (0, 1)
    failed = await failure(execution(a=a).list_models("c", budget()))
    assert failed.reason is Reason.INTEGRATION_NOT_FOUND
