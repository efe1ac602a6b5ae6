"""What an OpenTelemetry collector is sent: spans and their parents, metrics; content on demand."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.integrations.integration import (
    Fallback,
    Integration,
    IntegrationSpec,
    Limits,
)
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.fakes import MODEL, USAGE, Close, FakeServer, OpenAI, Reply, Stall, event, text
from tests.integration.collector import Collector, attributes, collecting
from tests.integration.conftest import (
    CHAT_PATH,
    NODE,
    chat_request,
    failure_of,
    first_delta,
    generating,
    openai,
    read,
    serving,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SENT = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=a"))
PROMPT, ANSWER = "a prompt that is private", "an answer that is private"
SERVER, CLIENT, ERROR = 2, 3, 2  # as OTLP numbers kinds of spans, and a status
CHAT = "atmosphere.v1.Execution/Chat"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as made:
        yield made


def tracing(collector: Collector, **more: Any) -> dict[str, Any]:
    """The settings that have traces sent."""
    return {"telemetry": {"traces": True, "endpoint": collector.endpoint, **more}}


async def test_a_call_goes_on_in_its_callers_trace_and_the_backend_in_its_own(
    tmp_path: Path, fake: FakeServer, collector: Collector
) -> None:
    began_ns = time.time_ns()
    async with serving(tmp_path, openai(fake.base_url), **tracing(collector)) as served:
        await read(served.stub.Chat(chat_request(), metadata=(*SENT, ("x-request-id", "mine"))))
    ended_ns = time.time_ns()
    call, attempt = collector.span(CHAT), collector.span(f"chat {MODEL}")
    assert (call.trace_id.hex(), call.parent_span_id.hex(), call.kind) == (TRACE, PARENT, SERVER)
    assert (attempt.trace_id, attempt.parent_span_id) == (call.trace_id, call.span_id)
    assert attempt.kind == CLIENT
    times = (
        *(began_ns, call.start_time_unix_nano, attempt.start_time_unix_nano),
        *(attempt.end_time_unix_nano, call.end_time_unix_nano, ended_ns),
    )
    assert list(times) == sorted(times)
    request = await generating(fake)
    assert request.headers["traceparent"] == f"00-{TRACE}-{attempt.span_id.hex()}-01"
    assert request.headers["tracestate"] == "vendor=a"
    of_call = attributes(call)
    assert of_call == {
        "rpc.system.name": "grpc",
        "rpc.method": CHAT,
        "rpc.response.status_code": "OK",
        "server.address": "127.0.0.1",
        "atmosphere.request.id": "mine",
        "atmosphere.attempts": 1,
        "atmosphere.capability": "chat",
        "atmosphere.route.method": "default",
    }
    of_attempt = attributes(attempt)
    assert of_attempt.pop("atmosphere.queue.duration") < 1
    assert of_attempt == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": USAGE["prompt_tokens"],
        "gen_ai.usage.output_tokens": USAGE["completion_tokens"],
        "server.address": "127.0.0.1",
        "server.port": fake.port,
        "atmosphere.integration.id": "fake",
    }
    (resource, *_) = collector.resources
    assert (resource["service.name"], resource["service.instance.id"]) == ("atmosphere-grpc", NODE)


async def test_each_attempt_has_its_span_and_its_backend_the_right_parent(
    tmp_path: Path, fake: FakeServer, collector: Collector
) -> None:
    backend = OpenAIBackend(WireSettings("first", fake.base_url))
    first = IntegrationSpec("first", "openai", fallback=(Fallback("second"),))
    fake.script(CHAT_PATH, Reply.json({}, 503))
    async with (
        FakeServer(OpenAI()) as second,
        serving(
            tmp_path,
            Integration(first, backend),
            openai(second.base_url, "second"),
            **tracing(collector),
        ) as served,
    ):
        await served.stub.Execute(execution_pb2.ExecuteRequest(intent="hi"), metadata=SENT)
        asked = [await generating(fake), await generating(second)]
    call = collector.span("atmosphere.v1.Execution/Execute")
    spans = sorted(
        (span for span in collector.spans if span.kind == CLIENT),
        key=lambda span: span.start_time_unix_nano,
    )
    assert {span.parent_span_id for span in spans} == {call.span_id}
    assert [attributes(span)["atmosphere.integration.id"] for span in spans] == ["first", "second"]
    assert [attributes(span).get("error.type") for span in spans] == ["BACKEND_UNAVAILABLE", None]
    assert [span.status.code for span in spans] == [ERROR, 0]
    parents = [request.headers["traceparent"].split("-")[2] for request in asked]
    assert parents == [span.span_id.hex() for span in spans]
    assert attributes(call)["atmosphere.attempts"] == 2
    assert call.status.code == 0


async def test_what_fails_says_why(tmp_path: Path, fake: FakeServer, collector: Collector) -> None:
    fake.script(CHAT_PATH, Reply.stream(event(text("a")), Stall()))
    item = openai(fake.base_url, limits=Limits(1, 0))
    async with serving(tmp_path, item, **tracing(collector)) as served:
        await failure_of(served.stub.Execute(execution_pb2.ExecuteRequest()))
        stalled: Any = served.stub.Chat(chat_request())
        await first_delta(stalled)
        full = await failure_of(served.stub.Embed(execution_pb2.EmbedRequest(input=["a"])))
        assert full.reason == "QUEUE_FULL"
        stalled.cancel()
        await until(lambda: not served.server.in_flight, "the call to end")
    invalid = collector.span("atmosphere.v1.Execution/Execute")
    assert attributes(invalid)["atmosphere.reason"] == "INVALID_FIELD"
    assert attributes(invalid)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert invalid.status.code == 0  # the caller's fault, not the server's
    assert invalid.parent_span_id == b""
    chat = collector.span(f"chat {MODEL}")
    assert attributes(chat)["error.type"] == "CANCELLED"
    embed = collector.span(f"embeddings {MODEL}")
    assert attributes(embed)["error.type"] == "QUEUE_FULL"
    assert "server.address" not in attributes(embed)


async def test_a_call_over_http_is_told_as_one(
    tmp_path: Path, fake: FakeServer, collector: Collector
) -> None:
    fake.script(CHAT_PATH, Reply.stream(event(text("a")), Close()), Reply.json({}, 500))
    asked = {"messages": [{"role": "user", "content": "hi"}]}
    route, chat = "/v1/route", "/v1/chat/completions"
    http = {"listen": "127.0.0.1:0"}
    async with (
        serving(tmp_path, openai(fake.base_url), http=http, **tracing(collector)) as served,
        httpx.AsyncClient(base_url=f"http://{served.http}", trust_env=False) as client,
    ):
        headers = {**dict(SENT), "x-request-id": "mine"}
        await client.post(route, json={"intent": "hi"}, headers=headers)
        await client.post(chat, json={**asked, "stream": True})
        await client.post("/v1/execute", json={"intent": "hi"})
        await client.get(f"/v1/models/{MODEL}")
        await client.get("/v1/models/none/such")
        await client.post("/v1/embeddings", content=b"a=b")
    routed = collector.span("POST /v1/route")
    assert (routed.trace_id.hex(), routed.parent_span_id.hex()) == (TRACE, PARENT)
    host, _, port = served.http.rpartition(":")
    assert attributes(routed) == {
        "http.request.method": "POST",
        "http.route": "/v1/route",
        "http.response.status_code": 200,
        "url.path": "/v1/route",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": host,
        "server.port": int(port),
        "atmosphere.request.id": "mine",
        "atmosphere.attempts": 0,
        "atmosphere.capability": "chat",
        "atmosphere.route.method": "default",
    }
    told = {
        attributes(span)["url.path"]: (
            span.name,
            attributes(span)["http.response.status_code"],
            attributes(span).get("error.type"),
            span.status.code,
        )
        for span in collector.spans
        if span.kind == SERVER
    }
    model = "GET /v1/models/{model}"
    assert told == {
        route: (f"POST {route}", 200, None, 0),
        chat: (f"POST {chat}", 200, "STREAM_TRUNCATED", ERROR),
        "/v1/execute": ("POST /v1/execute", 502, "502", ERROR),
        f"/v1/models/{MODEL}": (model, 200, None, 0),
        "/v1/models/none/such": (model, 404, None, 0),
        "/v1/embeddings": ("POST /v1/embeddings", 415, None, 0),
    }


@pytest.mark.parametrize(
    "given",
    [
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        "nonsense",
        "",
    ],
)
async def test_what_is_no_parent_is_as_good_as_not_sent(
    tmp_path: Path, fake: FakeServer, collector: Collector, given: str
) -> None:
    async with serving(tmp_path, openai(fake.base_url), **tracing(collector)) as served:
        await read(served.stub.Chat(chat_request(), metadata=(("traceparent", given),)))
    call = collector.span(CHAT)
    assert call.parent_span_id == b""
    assert call.trace_id.hex() not in (TRACE, "0" * 32)


async def test_without_tracing_the_backend_has_what_the_caller_sent(
    tmp_path: Path, fake: FakeServer
) -> None:
    async with serving(tmp_path, openai(fake.base_url)) as served:
        await read(served.stub.Chat(chat_request(), metadata=SENT))
        await read(served.stub.Chat(chat_request(), metadata=(("traceparent", "nonsense"),)))
    first, second = await generating(fake), await generating(fake, 2)
    assert (first.headers["traceparent"], first.headers["tracestate"]) == (SENT[0][1], "vendor=a")
    assert "traceparent" not in second.headers


async def test_a_trace_that_is_not_sampled_is_not_sent_and_stays_so(
    tmp_path: Path, fake: FakeServer, collector: Collector
) -> None:
    sent = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
    async with serving(tmp_path, openai(fake.base_url), **tracing(collector)) as served:
        await read(served.stub.Chat(chat_request(), metadata=sent))
    request = await generating(fake)
    assert request.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert request.headers["traceparent"].endswith("-00")
    assert not collector.spans


# --- content -----------------------------------------------------------------------------------


def conversation() -> chat_pb2.ChatRequest:
    """A conversation with a secret in it, and a picture."""
    image = chat_pb2.Image(data=b"\x89PNG", media_type="image/png")
    parts = [chat_pb2.ContentPart(text=f"{PROMPT}: key-123"), chat_pb2.ContentPart(image=image)]
    return chat_pb2.ChatRequest(
        messages=[
            chat_pb2.Message(role="system", content="Be brief."),
            chat_pb2.Message(role="user", parts=parts),
        ]
    )


async def test_nothing_that_was_said_is_sent(collector: Collector, tmp_path: Path) -> None:
    async with (
        FakeServer(OpenAI([ANSWER])) as fake,
        serving(tmp_path, openai(fake.base_url), **tracing(collector, metrics=True)) as served,
    ):
        await read(served.stub.Chat(conversation()))
        await served.stub.Embed(execution_pb2.EmbedRequest(input=[PROMPT]))
    assert len(collector.spans) == 4
    everything = f"{collector.spans}{collector.metrics}{collector.resources}"
    assert "private" not in everything
    assert "key-123" not in everything


async def test_content_is_sent_where_it_is_switched_on_without_what_is_redacted(
    collector: Collector, tmp_path: Path
) -> None:
    on = tracing(collector, content=True, redact=[r"key-\d+", "secret"])
    async with (
        FakeServer(OpenAI([ANSWER, " a sec", "ret"])) as fake,
        serving(tmp_path, openai(fake.base_url), **on) as served,
    ):
        await read(served.stub.Chat(conversation()))
    told = attributes(collector.span(f"chat {MODEL}"))
    assert json.loads(told["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {
            "role": "user",
            "parts": [{"type": "text", "content": f"{PROMPT}: [redacted]"}, {"type": "image"}],
        },
    ]
    assert json.loads(told["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": f"{ANSWER} a [redacted]"}],
            "finish_reason": "stop",
        }
    ]


# --- metrics, and a collector that is not there ------------------------------------------------


async def test_metrics_follow_the_conventions(
    collector: Collector, tmp_path: Path, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, Reply.json({}, 400))
    on = {"telemetry": {"metrics": True, "endpoint": collector.endpoint}}
    async with serving(tmp_path, openai(fake.base_url), **on) as served:
        await failure_of(served.stub.Execute(execution_pb2.ExecuteRequest(intent="hi")))
        await served.stub.Execute(execution_pb2.ExecuteRequest(intent="hi"))
    assert not collector.spans
    last = {metric.name: metric for metric in collector.metrics}
    assert {name: metric.unit for name, metric in last.items()} == {
        "gen_ai.client.operation.duration": "s",
        "gen_ai.client.token.usage": "{token}",
        "gen_ai.server.time_to_first_token": "s",
    }
    durations = last["gen_ai.client.operation.duration"].histogram.data_points
    assert [attributes(point).get("error.type") for point in durations] == [
        "BACKEND_REJECTED",
        None,
    ]
    tokens = {
        attributes(point)["gen_ai.token.type"]: point.sum
        for point in last["gen_ai.client.token.usage"].histogram.data_points
    }
    assert tokens == {"input": USAGE["prompt_tokens"], "output": USAGE["completion_tokens"]}
    (first,) = last["gen_ai.server.time_to_first_token"].histogram.data_points
    assert first.count == 1
    assert attributes(first)["gen_ai.request.model"] == MODEL


async def test_a_collector_that_is_not_there_holds_nothing_up(
    tmp_path: Path, fake: FakeServer
) -> None:
    on = {"telemetry": {"traces": True, "metrics": True, "endpoint": "http://127.0.0.1:1"}}
    async with serving(tmp_path, openai(fake.base_url), **on) as served:
        _, failure = await read(served.stub.Chat(chat_request()))
        assert failure is None
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 8
