"""Every RPC over real gRPC, answered by the real embedded models."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.integration.conftest import (
    EMBEDDED,
    NODE,
    Served,
    broken,
    chat_request,
    content,
    failure_of,
    first_delta,
    read,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

pytestmark = EMBEDDED

CHAT = "smollm2-135m-instruct"
EMBED = "all-minilm-l6-v2"
PNG = b"\x89PNG\r\n\x1a\n"
#: Far more than a test has time for.
ENDLESS = chat_pb2.SamplingOptions(max_tokens=3500, temperature=1.5, seed=1)


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def greedy(**fields: Any) -> chat_pb2.SamplingOptions:
    return chat_pb2.SamplingOptions(temperature=0, **fields)


def check_attempts(attempts: Iterable[chat_pb2.Attempt], model: str) -> None:
    (attempt,) = attempts
    assert (attempt.integration_id, attempt.model) == ("embedded", model)
    assert attempt.endpoint.startswith("127.0.0.1:")
    assert (attempt.status_code, attempt.reason) == (0, "")
    assert 0 <= attempt.time_to_first_token_ms <= attempt.latency_ms


async def chat(served: Served, text: str, **fields: Any) -> list[chat_pb2.ChatResponse]:
    events, failure = await read(served.stub.Chat(chat_request(text, **fields)))
    assert failure is None
    return events


# --- Execute -----------------------------------------------------------------------------------


async def test_execute_answers_an_intent_and_says_what_happened(embedded: Served) -> None:
    request = execution_pb2.ExecuteRequest(intent="Say hello.", sampling=greedy(max_tokens=32))
    response = await embedded.stub.Execute(request)
    assert response.success
    assert "Hello" in response.data.message.content
    assert response.data.message.role == "assistant"
    assert (response.data.model, response.data.integration_id) == (CHAT, "embedded")
    assert response.data.finish_reason == chat_pb2.FINISH_REASON_STOP
    assert (response.node_id, response.capability) == (NODE, "chat")
    route = response.route
    assert route.method == chat_pb2.ROUTE_METHOD_DEFAULT
    assert (route.capability, route.integration_id, route.model) == ("chat", "embedded", CHAT)
    assert "default" in route.explanation
    usage = response.data.usage
    assert usage.source == chat_pb2.USAGE_SOURCE_REPORTED
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= 32
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    check_attempts(response.attempts, CHAT)
    (attempt,) = response.attempts
    assert 0 < attempt.time_to_first_token_ms <= attempt.latency_ms <= response.execution_time_ms


async def test_execute_embeds_and_says_that_it_was_asked_to(embedded: Served) -> None:
    request = execution_pb2.ExecuteRequest(intent="a cat", capability="embed")
    response = await embedded.stub.Execute(request)
    (vector,) = response.data.embeddings
    assert len(vector.values) == 384
    assert not response.data.HasField("message")
    assert (response.capability, response.data.model) == ("embed", EMBED)
    assert response.route.method == chat_pb2.ROUTE_METHOD_EXPLICIT
    assert "names capability embed" in response.route.explanation
    assert response.data.usage.source == chat_pb2.USAGE_SOURCE_REPORTED
    check_attempts(response.attempts, EMBED)


# --- Chat --------------------------------------------------------------------------------------


async def test_a_chat_is_started_deltas_completed(embedded: Served) -> None:
    events = await chat(embedded, "Count from 1 to 5.", sampling=greedy(max_tokens=40))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "completed"
    assert set(kinds[1:-1]) == {"delta"}
    assert len(kinds) > 4, "the answer did not stream"
    started, completed = events[0].started, events[-1].completed
    assert started.id
    assert (started.model, started.integration_id) == (CHAT, "embedded")
    assert abs(started.created.ToSeconds() - time.time()) < 30
    assert (started.route.integration_id, started.route.model) == ("embedded", CHAT)
    assert content(events).strip()
    assert completed.usage.source == chat_pb2.USAGE_SOURCE_REPORTED
    assert 0 < completed.time_to_first_token_ms <= completed.latency_ms
    check_attempts(completed.attempts, CHAT)


@pytest.mark.parametrize("fields", [{"model": CHAT}, {"integration_id": "embedded"}])
async def test_a_chat_that_names_where_it_goes_is_explicit(
    embedded: Served, fields: dict[str, str]
) -> None:
    events = await chat(embedded, "hi", sampling=greedy(max_tokens=1), **fields)
    route = events[0].started.route
    assert route.method == chat_pb2.ROUTE_METHOD_EXPLICIT
    assert next(iter(fields.values())) in route.explanation


async def test_max_tokens_ends_an_answer_with_length(embedded: Served) -> None:
    events = await chat(embedded, "Tell me a story.", sampling=greedy(max_tokens=5))
    completed = events[-1].completed
    assert completed.finish_reason == chat_pb2.FINISH_REASON_LENGTH
    assert completed.usage.completion_tokens == 5


async def test_greedy_sampling_repeats_itself(embedded: Served) -> None:
    sampling = greedy(max_tokens=24)
    first = await chat(embedded, "Name three colours.", sampling=sampling)
    second = await chat(embedded, "Name three colours.", sampling=sampling)
    assert content(first)
    assert content(first) == content(second)


async def test_logprobs_tell_each_token(embedded: Served) -> None:
    sampling = greedy(max_tokens=6, logprobs=True, top_logprobs=3)
    events = await chat(embedded, "Say hello.", sampling=sampling)
    tokens = [item for event in events for item in event.delta.logprobs]
    assert len(tokens) == events[-1].completed.usage.completion_tokens
    assert "".join(item.token for item in tokens).startswith(content(events))
    for item in tokens:
        assert item.logprob <= 0
        assert len(item.top) == 3
        # Greedy: the token is the likeliest one.
        assert item.top[0].token == item.token
        assert [other.logprob for other in item.top] == sorted(
            (other.logprob for other in item.top), reverse=True
        )


async def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(embedded: Served) -> None:
    prompt = "Count from 1 to 9, separated by commas: 1, 2, 3,"
    free = content(await chat(embedded, prompt, sampling=greedy(max_tokens=40)))
    stop = free[len(free) // 2 :][:3]
    events = await chat(embedded, prompt, sampling=greedy(max_tokens=40, stop=[stop]))
    assert content(events) == free[: free.index(stop)]
    assert events[-1].completed.finish_reason == chat_pb2.FINISH_REASON_STOP


async def test_two_chats_are_answered_at_the_same_time(embedded: Served) -> None:
    sampling = greedy(max_tokens=60)
    begun = [asyncio.Event(), asyncio.Event()]

    async def follow(own: asyncio.Event, other: asyncio.Event, text: str) -> str:
        events: list[chat_pb2.ChatResponse] = []
        other_was_under_way = False
        async for event in embedded.stub.Chat(chat_request(text, sampling=sampling)):
            events.append(event)
            if event.HasField("delta"):
                own.set()
                other_was_under_way = other.is_set()
        assert other_was_under_way
        return content(events)

    answers = await asyncio.gather(
        follow(begun[0], begun[1], "Write about the sea."),
        follow(begun[1], begun[0], "Write about mountains."),
    )
    assert all(answers)
    assert answers[0] != answers[1]


async def test_a_prompt_beyond_the_context_says_how_long_it_is(embedded: Served) -> None:
    events, failure = await broken(embedded.stub.Chat(chat_request("word " * 5000)))
    assert not events
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "CONTEXT_OVERFLOW"
    assert failure.metadata["context_length"] == "4096"
    assert int(failure.metadata["prompt_tokens"]) > 5000
    assert (failure.metadata["integration_id"], failure.metadata["model"]) == ("embedded", CHAT)


async def test_an_image_is_refused_by_its_path(embedded: Served) -> None:
    image = chat_pb2.Image(data=PNG, media_type="image/png")
    parts = [chat_pb2.ContentPart(text="What is this?"), chat_pb2.ContentPart(image=image)]
    messages = [
        chat_pb2.Message(role="system", content="Be brief."),
        chat_pb2.Message(role="user", parts=parts),
    ]
    events, failure = await broken(embedded.stub.Chat(chat_pb2.ChatRequest(messages=messages)))
    assert not events
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "UNSUPPORTED_PARAMETER"
    assert [*failure.fields] == ["messages[1].parts[1].image"]


async def test_a_chat_on_the_embedding_model_is_unsupported(embedded: Served) -> None:
    _, failure = await broken(embedded.stub.Chat(chat_request(model=EMBED)))
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    assert failure.reason == "CAPABILITY_UNSUPPORTED"
    assert EMBED in failure.message


async def test_cancelled_chats_free_their_slots(embedded: Served) -> None:
    request = chat_request("Tell me a story.", sampling=ENDLESS)
    calls: list[Any] = []
    for _ in range(2):  # as many as there are slots
        calls.append(embedded.stub.Chat(request))
        await first_delta(calls[-1])
    calls.append(embedded.stub.Chat(request))
    await until(lambda: embedded.server.in_flight == 3, "the call that has to wait")
    for call in calls:
        call.cancel()
    began = time.monotonic()
    await chat(embedded, "hi", sampling=greedy(max_tokens=1))
    assert time.monotonic() - began < 5
    await until(lambda: embedded.server.in_flight == 0, "the cancelled calls to end")


async def test_calls_one_right_after_the_other_all_succeed(embedded: Served) -> None:
    # llama.cpp closes a connection after each stream: none may be used that it is closing.
    for _ in range(100):
        await chat(embedded, "hi", sampling=greedy(max_tokens=1))


# --- Embed -------------------------------------------------------------------------------------


async def test_embeddings_tell_what_is_alike(embedded: Served) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market crashed."]
    response = await embedded.stub.Embed(execution_pb2.EmbedRequest(input=texts))
    cat, kitten, stocks = (item.values for item in response.embeddings)
    assert cosine(cat, cat) == pytest.approx(1, abs=1e-3)
    assert cosine(cat, kitten) > 0.5
    assert cosine(cat, stocks) < 0.2
    assert (response.model, response.integration_id) == (EMBED, "embedded")
    assert response.usage.source == chat_pb2.USAGE_SOURCE_REPORTED
    check_attempts(response.attempts, EMBED)


async def test_an_embedding_by_the_chat_model_is_unsupported(embedded: Served) -> None:
    request = execution_pb2.EmbedRequest(input=["a"], model=CHAT)
    failure = await failure_of(embedded.stub.Embed(request))
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    assert failure.reason == "CAPABILITY_UNSUPPORTED"
    assert CHAT in failure.message


async def test_vectors_of_another_length_are_refused(embedded: Served) -> None:
    request = execution_pb2.EmbedRequest(input=["a"], dimensions=128)
    failure = await failure_of(embedded.stub.Embed(request))
    assert failure.reason == "UNSUPPORTED_PARAMETER"
    assert [*failure.fields] == ["dimensions"]


# --- what there is -----------------------------------------------------------------------------


async def test_list_models_tells_both_by_pages_too(embedded: Served) -> None:
    response = await embedded.stub.ListModels(execution_pb2.ListModelsRequest())
    assert [model.id for model in response.models] == [EMBED, CHAT]
    assert [list(model.capabilities) for model in response.models] == [["embed"], ["chat"]]
    assert [model.is_default for model in response.models] == [False, True]
    chat_model = response.models[1]
    assert chat_model.context_length == 4096
    assert chat_model.size_bytes > 50_000_000
    assert chat_model.state == execution_pb2.MODEL_STATE_LOADED
    assert "demo model" in chat_model.description
    assert not response.unavailable
    first = await embedded.stub.ListModels(execution_pb2.ListModelsRequest(page_size=1))
    request = execution_pb2.ListModelsRequest(page_size=1, page_token=first.next_page_token)
    second = await embedded.stub.ListModels(request)
    assert [*first.models, *second.models] == list(response.models)
    assert not second.next_page_token


async def test_list_integrations_says_how_it_is(embedded: Served) -> None:
    response = await embedded.stub.ListIntegrations(execution_pb2.ListIntegrationsRequest())
    (integration,) = response.integrations
    assert (integration.id, integration.kind) == ("embedded", "embedded")
    assert integration.state == execution_pb2.INTEGRATION_STATE_UP
    assert integration.default_model == CHAT
    assert list(integration.capabilities) == ["chat", "embed", "generate"]
    assert len(integration.endpoints) == 2
    assert integration.latency_ms > 0
    assert integration.last_probe.ToSeconds() > 0
    assert (integration.error, integration.error_reason) == ("", "")


async def test_test_integration_answers(embedded: Served) -> None:
    request = execution_pb2.TestIntegrationRequest(integration_id="embedded")
    response = await embedded.stub.TestIntegration(request)
    assert response.success
    assert response.response
    assert response.model_used == CHAT
    assert 0 < response.time_to_first_token_ms <= response.latency_ms
    assert response.usage.source == chat_pb2.USAGE_SOURCE_REPORTED
    assert (response.error, response.error_reason) == ("", "")


async def test_route_says_what_execute_would_do_and_calls_no_model(embedded: Served) -> None:
    intent = "What is the capital of France?"
    began = time.monotonic()
    default = await embedded.stub.Route(execution_pb2.RouteRequest(intent=intent))
    assert default.route.method == chat_pb2.ROUTE_METHOD_DEFAULT
    assert (default.route.integration_id, default.route.model) == ("embedded", CHAT)
    named = await embedded.stub.Route(execution_pb2.RouteRequest(intent=intent, model=CHAT))
    assert named.route.method == chat_pb2.ROUTE_METHOD_EXPLICIT
    assert time.monotonic() - began < 1


# --- health and reflection ---------------------------------------------------------------------


@pytest.mark.parametrize("service", ["", "atmosphere.v1.Execution"])
async def test_health_is_serving(embedded: Served, service: str) -> None:
    stub: Any = health_pb2_grpc.HealthStub(embedded.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    checked = await stub.Check(request)
    assert checked.status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(request)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_tells_the_services_and_the_contract(
    embedded: Served, version: str
) -> None:
    method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    call: Any = embedded.channel.stream_stream(
        method,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
    listed = await call.read()
    names = {service.name for service in listed.list_services_response.service}
    assert {"atmosphere.v1.Execution", "grpc.health.v1.Health"} <= names
    await call.write(
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="atmosphere.v1.Execution")
    )
    found = await call.read()
    assert found.file_descriptor_response.file_descriptor_proto
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
