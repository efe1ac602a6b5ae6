"""Events and results as the contract's messages."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest

from atmosphere_grpc.codec import responses
from atmosphere_grpc.codec.responses import (
    encode_chat,
    encode_embed,
    encode_execute,
    encode_integrations,
    encode_models,
    encode_route,
    encode_test,
)
from atmosphere_grpc.domain import (
    Anomalies,
    Anomaly,
    Answer,
    Attempt,
    Capability,
    Classification,
    Classifications,
    Completed,
    Delta,
    Embeddings,
    EmbedResult,
    ExecuteResult,
    FinishReason,
    FittedResult,
    IntegrationState,
    IntegrationStatus,
    ListedModel,
    Message,
    Model,
    ModelList,
    ModelState,
    RouteDecision,
    RouteMethod,
    Started,
    TestResult,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageSource,
)
from atmosphere_grpc.errors import Reason
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

MAX = 2**31 - 1
USAGE = Usage(3, 4, 7, 2, 1, UsageSource.REPORTED)
WIRE_USAGE = chat_pb2.Usage(
    prompt_tokens=3,
    completion_tokens=4,
    total_tokens=7,
    cached_tokens=2,
    reasoning_tokens=1,
    source=chat_pb2.USAGE_SOURCE_REPORTED,
)
ROUTE = RouteDecision(Capability.CHAT, RouteMethod.EXPLICIT, "ollama", "llama", "because")
WIRE_ROUTE = chat_pb2.RouteDecision(
    capability="chat",
    method=chat_pb2.ROUTE_METHOD_EXPLICIT,
    integration_id="ollama",
    model="llama",
    explanation="because",
)
TRIED = (
    Attempt("down", "h:1", "llama", Reason.BACKEND_UNAVAILABLE, 1.5),
    Attempt("ollama", "h:2", "llama", None, 9.5, 2.25),
)
WIRE_TRIED = [
    chat_pb2.Attempt(
        integration_id="down",
        endpoint="h:1",
        model="llama",
        status_code=14,
        reason="BACKEND_UNAVAILABLE",
        latency_ms=1.5,
    ),
    chat_pb2.Attempt(
        integration_id="ollama",
        endpoint="h:2",
        model="llama",
        latency_ms=9.5,
        time_to_first_token_ms=2.25,
    ),
]
STARTED = Started("id-1", "llama-3", "ollama", 1_700_000_000.25, ROUTE)
COMPLETED = Completed(FinishReason.TOOL_CALLS, USAGE, 2.5, 10.5, TRIED)

MAPPINGS: list[tuple[type[Enum], Mapping[Any, int], Any]] = [
    (FinishReason, responses._FINISH, chat_pb2.FinishReason),
    (UsageSource, responses._SOURCE, chat_pb2.UsageSource),
    (RouteMethod, responses._METHOD, chat_pb2.RouteMethod),
    (ModelState, responses._MODEL_STATE, execution_pb2.ModelState),
    (IntegrationState, responses._INTEGRATION_STATE, execution_pb2.IntegrationState),
]


@pytest.mark.parametrize(
    ("ours", "mapping", "wire"), MAPPINGS, ids=[ours.__name__ for ours, *_ in MAPPINGS]
)
def test_every_member_of_an_enum_has_a_number_of_its_own_name(
    ours: type[Enum], mapping: Mapping[Any, int], wire: Any
) -> None:
    assert mapping.keys() == set(ours)
    for member, number in mapping.items():
        expected = "UNSPECIFIED" if member.name == "UNKNOWN" else member.name
        assert wire.Name(number).endswith(f"_{expected}")
    assert len(set(mapping.values())) == len(mapping)


def test_a_start_is_encoded() -> None:
    event = encode_chat(STARTED)
    assert event.WhichOneof("event") == "started"
    started = event.started
    assert (started.id, started.model, started.integration_id) == ("id-1", "llama-3", "ollama")
    assert started.created.ToJsonString() == "2023-11-14T22:13:20.250Z"
    assert started.route == WIRE_ROUTE


def test_a_delta_is_encoded() -> None:
    other = TokenLogprob("Ho", -2.5, b"Ho")
    event = encode_chat(
        Delta(
            "Hi",
            "hm",
            (ToolCallDelta(1, "c1", "weather", '{"a'), ToolCallDelta(0, arguments='":1}')),
            (TokenLogprob("Hi", -0.125, b"Hi", (other,)), TokenLogprob("!", -1.0)),
        )
    )
    delta = chat_pb2.Delta(
        content="Hi",
        reasoning="hm",
        tool_calls=[
            chat_pb2.ToolCallDelta(index=1, id="c1", name="weather", arguments_json_fragment='{"a'),
            chat_pb2.ToolCallDelta(index=0, arguments_json_fragment='":1}'),
        ],
        logprobs=[
            chat_pb2.TokenLogprob(
                token="Hi",
                logprob=-0.125,
                token_bytes=b"Hi",
                top=[
                    chat_pb2.TokenLogprob.Alternative(token="Ho", logprob=-2.5, token_bytes=b"Ho")
                ],
            ),
            chat_pb2.TokenLogprob(token="!", logprob=-1.0),
        ],
    )
    assert event == chat_pb2.ChatResponse(delta=delta)


def test_an_end_is_encoded() -> None:
    assert encode_chat(COMPLETED) == chat_pb2.ChatResponse(
        completed=chat_pb2.Completed(
            finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS,
            usage=WIRE_USAGE,
            time_to_first_token_ms=2.5,
            latency_ms=10.5,
            attempts=WIRE_TRIED,
        )
    )


def test_an_executed_chat_is_encoded() -> None:
    message = Message(
        "assistant", "Hi", tool_calls=(ToolCall("c1", "weather", "{}"),), reasoning="hm"
    )
    result = ExecuteResult(Answer(STARTED, message, COMPLETED), ROUTE, 12.5)
    assert encode_execute(result, "node-1") == execution_pb2.ExecuteResponse(
        success=True,
        data=execution_pb2.ExecutionData(
            message=chat_pb2.Message(
                role="assistant",
                content="Hi",
                reasoning="hm",
                tool_calls=[chat_pb2.ToolCall(id="c1", name="weather", arguments_json="{}")],
            ),
            model="llama-3",
            usage=WIRE_USAGE,
            finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS,
            integration_id="ollama",
        ),
        execution_time_ms=12.5,
        node_id="node-1",
        capability="chat",
        route=WIRE_ROUTE,
        attempts=WIRE_TRIED,
    )


EMBED_ROUTE = RouteDecision(Capability.EMBED, RouteMethod.DEFAULT, "ollama", "minilm", "default")
EMBEDDED = EmbedResult(
    Embeddings(([0.5, -1.0], [0.25, 2.0]), "MiniLM", USAGE), "ollama", EMBED_ROUTE, TRIED
)
VECTORS = [
    execution_pb2.Embedding(values=[0.5, -1.0]),
    execution_pb2.Embedding(values=[0.25, 2.0]),
]


def test_an_executed_embedding_has_vectors_and_no_message() -> None:
    response = encode_execute(ExecuteResult(EMBEDDED, EMBED_ROUTE, 12.5), "node-1")
    assert response.data == execution_pb2.ExecutionData(
        model="MiniLM", usage=WIRE_USAGE, embeddings=VECTORS, integration_id="ollama"
    )
    assert not response.data.HasField("message")
    assert (response.success, response.capability) == (True, "embed")
    assert response.route.method == chat_pb2.ROUTE_METHOD_DEFAULT
    assert list(response.attempts) == WIRE_TRIED


def test_executed_labels_and_scores_are_encoded() -> None:
    labels = Classifications((Classification("a", 0.5, {"a": 0.5, "b": 0.25}),), "mood")
    result = FittedResult(labels, "farm", EMBED_ROUTE, TRIED)
    response = encode_execute(ExecuteResult(result, EMBED_ROUTE, 12.5), "node-1")
    no_usage = chat_pb2.Usage(source=chat_pb2.USAGE_SOURCE_MISSING)
    assert response.data == execution_pb2.ExecutionData(
        model="mood",
        usage=no_usage,
        integration_id="farm",
        classifications=[
            execution_pb2.Classification(label="a", score=0.5, scores={"a": 0.5, "b": 0.25})
        ],
    )
    assert list(response.attempts) == WIRE_TRIED
    scores = Anomalies((Anomaly(0.25, False, 1), Anomaly(0.75, True, 2)), "sensor", 0.0)
    result = FittedResult(scores, "farm", EMBED_ROUTE, TRIED)
    response = encode_execute(ExecuteResult(result, EMBED_ROUTE, 12.5), "node-1")
    assert response.data == execution_pb2.ExecutionData(
        model="sensor",
        usage=no_usage,
        integration_id="farm",
        anomalies=[
            execution_pb2.Anomaly(index=0, score=0.25, raw_score=1),
            execution_pb2.Anomaly(index=1, score=0.75, is_anomaly=True, raw_score=2),
        ],
        anomaly_threshold=0.0,
    )
    assert response.data.HasField("anomaly_threshold")


def test_vectors_are_encoded() -> None:
    assert encode_embed(EMBEDDED) == execution_pb2.EmbedResponse(
        embeddings=VECTORS,
        model="MiniLM",
        usage=WIRE_USAGE,
        integration_id="ollama",
        attempts=WIRE_TRIED,
    )


def test_a_route_is_encoded() -> None:
    assert encode_route(ROUTE) == execution_pb2.RouteResponse(route=WIRE_ROUTE)


def test_a_test_that_went_well_is_encoded() -> None:
    assert encode_test(TestResult("Hi", "llama", 9.5, 2.5, USAGE)) == (
        execution_pb2.TestIntegrationResponse(
            success=True,
            response="Hi",
            latency_ms=9.5,
            model_used="llama",
            time_to_first_token_ms=2.5,
            usage=WIRE_USAGE,
        )
    )


def test_a_test_that_failed_is_encoded() -> None:
    result = TestResult("H", "llama", 9.5, error="it broke off", reason=Reason.STREAM_TRUNCATED)
    assert encode_test(result) == execution_pb2.TestIntegrationResponse(
        success=False,
        response="H",
        latency_ms=9.5,
        model_used="llama",
        error="it broke off",
        error_reason="STREAM_TRUNCATED",
        usage=chat_pb2.Usage(source=chat_pb2.USAGE_SOURCE_MISSING),
    )


def test_integrations_are_encoded() -> None:
    up = IntegrationStatus(
        "a", "openai", IntegrationState.UP, ("h:1", "h:2"), 1_700_000_000.5, 3.5, "m", ("chat",)
    )
    down = IntegrationStatus(
        "b",
        "openai",
        IntegrationState.DOWN,
        ("h:3",),
        error="refused",
        reason=Reason.BACKEND_UNAVAILABLE,
    )
    first, second = encode_integrations((up, down)).integrations
    assert first.last_probe.ToMilliseconds() == 1_700_000_000_500
    first.ClearField("last_probe")
    assert first == execution_pb2.Integration(
        id="a",
        kind="openai",
        state=execution_pb2.INTEGRATION_STATE_UP,
        latency_ms=3.5,
        default_model="m",
        capabilities=["chat"],
        endpoints=["h:1", "h:2"],
    )
    assert second == execution_pb2.Integration(  # never probed: no last_probe
        id="b",
        kind="openai",
        state=execution_pb2.INTEGRATION_STATE_DOWN,
        error="refused",
        error_reason="BACKEND_UNAVAILABLE",
        endpoints=["h:3"],
    )


def listed(model: Model) -> execution_pb2.Model:
    whole = ModelList((ListedModel("a", model, True),), ())
    return encode_models(whole, "", None, 9).models[0]


def test_a_model_is_encoded() -> None:
    model = Model("m", "meta", ("chat",), 4096, 2**40, ModelState.LOADED, "A model.")
    assert listed(model) == execution_pb2.Model(
        id="m",
        integration_id="a",
        owned_by="meta",
        capabilities=["chat"],
        is_default=True,
        context_length=4096,
        size_bytes=2**40,
        state=execution_pb2.MODEL_STATE_LOADED,
        description="A model.",
    )


@pytest.mark.parametrize(
    ("count", "sent"), [(-1, 0), (0, 0), (MAX, MAX), (MAX + 1, MAX), (10**30, MAX)]
)
def test_a_count_that_the_wire_cannot_hold_is_kept_within_it(count: int, sent: int) -> None:
    usage = Usage(count, count, count, count, count, UsageSource.REPORTED)
    completed = Completed(FinishReason.STOP, usage, 0, 0, ())
    wire = encode_chat(completed).completed.usage
    assert [number for _, number in wire.ListFields()][:-1] == ([sent] * 5 if sent else [])
    assert listed(Model("m", context_length=count)).context_length == sent


@pytest.mark.parametrize(("size", "sent"), [(-1, 0), (2**63 - 1, 2**63 - 1), (2**63, 2**63 - 1)])
def test_a_size_that_the_wire_cannot_hold_is_kept_within_it(size: int, sent: int) -> None:
    assert listed(Model("m", size_bytes=size)).size_bytes == sent
