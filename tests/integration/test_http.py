"""The calls over HTTP, on a real socket: the same as over gRPC, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trustme

from atmosphere_grpc.access import key_file
from atmosphere_grpc.access.policy import Policy
from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.config import Settings
from atmosphere_grpc.http import call as http_call
from atmosphere_grpc.http import protocol
from atmosphere_grpc.integrations.integration import Fallback, Integration, IntegrationSpec
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.listening import StartError
from atmosphere_grpc.log import JsonLines
from atmosphere_grpc.server import Server
from tests.fakes import (
    MODEL,
    USAGE,
    Close,
    FakeServer,
    OpenAI,
    Pause,
    Reply,
    Request,
    Stall,
    Until,
    answer_events,
    event,
    text,
)
from tests.integration.conftest import (
    CHAT_PATH,
    EMBED_PATH,
    NODE,
    PATIENCE_S,
    Served,
    chat_request,
    failure_of,
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
    from collections.abc import AsyncIterator
    from pathlib import Path

ACCESS = "atmosphere_grpc.access"
#: How long it may take until the backend's socket closes, in seconds; a few milliseconds as a rule.
CLOSE_S = 0.5
HI = {"messages": [{"role": "user", "content": "hi"}]}
DRIP = Reply.stream(*[part for _ in range(5000) for part in (event(text("a")), Pause(0.002))])
ANYWHERE = {"listen": "127.0.0.1:0"}
#: A call of every path: its method, itself, a body where it takes one, and its RPC.
CALLS: dict[str, tuple[str, str, Any]] = {
    "Execute": ("POST", "/v1/execute", {"intent": "hi"}),
    "Route": ("POST", "/v1/route", {"intent": "hi"}),
    "TestIntegration": ("POST", "/v1/integrations/test", {"integration_id": "fake"}),
    "ListIntegrations": ("GET", "/v1/integrations", None),
    "ListModels": ("GET", "/v1/models", None),
    "Embed": ("POST", "/v1/embeddings", {"input": "hi"}),
    "Chat": ("POST", "/v1/chat/completions", HI),
}
GENERATING = ("Execute", "TestIntegration", "Embed", "Chat")


def url(served: Served) -> str:
    return f"http://{served.http}"


@contextlib.asynccontextmanager
async def calling(served: Served, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=url(served), headers=headers, timeout=PATIENCE_S, trust_env=False
    ) as client:
        yield client


async def call(client: httpx.AsyncClient, rpc: str, **headers: str) -> httpx.Response:
    method, path, body = CALLS[rpc]
    return await client.request(method, path, json=body, headers=headers)


@pytest.fixture
async def served(fake: FakeServer, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, openai(fake.base_url), http=ANYWHERE, metrics=ANYWHERE) as made:
        yield made


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(served) as made:
        yield made


@contextlib.asynccontextmanager
async def raw(served: Served) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = served.http.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request(path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = ["POST " + path + " HTTP/1.1", "host: localhost", *headers]
    lines += ["content-type: application/json", f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


# --- the original's shapes ---------------------------------------------------------------------


async def test_execute_answers_in_the_originals_shape(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/execute", json={"intent": "What is 2+2?", "kwargs": {}})
    assert answer.status_code == 200
    told = answer.json()
    assert told["success"] is True
    assert told["data"]["message"]["role"] == "assistant"
    assert told["data"]["message"]["content"] == "Hello world"
    assert told["data"]["model"] == MODEL
    assert told["data"]["usage"]["total_tokens"] == USAGE["total_tokens"]
    assert told["execution_time_ms"] > 0
    assert (told["node_id"], told["capability"]) == (NODE, "chat")
    assert told["route"]["method"] == "ROUTE_METHOD_DEFAULT"


async def test_an_integration_is_tested_in_the_originals_shape(client: httpx.AsyncClient) -> None:
    asked = {"integration_id": "fake", "prompt": "Count to 5", "model": MODEL}
    told = (await client.post("/v1/integrations/test", json=asked)).json()
    assert (told["success"], told["response"], told["model_used"]) == (True, "Hello world", MODEL)
    assert told["latency_ms"] > 0


async def test_an_integration_that_fails_is_an_answer(
    client: httpx.AsyncClient, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, Reply.json({}, 500))
    answer = await client.post("/v1/integrations/test", json={"integration_id": "fake"})
    assert answer.status_code == 200
    told = answer.json()
    assert (told["success"], told["error_reason"]) == (False, "BACKEND_ERROR")
    assert told["response"] == ""


async def test_lists_and_routes(client: httpx.AsyncClient) -> None:
    (integration,) = (await client.get("/v1/integrations")).json()["integrations"]
    assert (integration["id"], integration["state"]) == ("fake", "INTEGRATION_STATE_UP")
    told = (await client.get("/v1/models", params={"page_size": 5})).json()
    assert [item["id"] for item in told["models"]] == [MODEL]
    assert [item["id"] for item in told["data"]] == [MODEL]
    route = (await client.post("/v1/route", json={"intent": "hi"})).json()["route"]
    assert (route["integration_id"], route["model"]) == ("fake", MODEL)


async def test_lists_have_pages(tmp_path: Path) -> None:
    names = [f"org/model-{i}" for i in range(5)]
    async with (
        FakeServer(OpenAI(models=names)) as fake,
        serving(tmp_path, openai(fake.base_url), http=ANYWHERE) as served,
        calling(served) as client,
    ):
        first = (await client.get("/v1/models", params={"page_size": 3})).json()
        asked = {"page_size": 3, "page_token": first["next_page_token"]}
        second = (await client.get("/v1/models", params=asked)).json()
        assert [item["id"] for item in (*first["models"], *second["models"])] == names
        assert (await client.get("/v1/models/org/model-4")).json()["id"] == "org/model-4"
        lacking = await client.get("/v1/models/org/model")
        assert lacking.status_code == 404
        assert "org/model-" in lacking.json()["error"]["message"]


async def test_it_is_at_both_loopback_addresses(served: Served) -> None:
    port = served.http.rpartition(":")[2]
    hosts = ["127.0.0.1", "localhost", *(["[::1]"] if _has_ipv6() else [])]
    async with httpx.AsyncClient(trust_env=False) as client:
        for host in hosts:
            assert (await client.get(f"http://{host}:{port}/health")).status_code == 200


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "told", "reason", "retry_after"),
    [
        (429, {"Retry-After": "7"}, 429, "BACKEND_BUSY", "7"),
        (503, {}, 503, "BACKEND_UNAVAILABLE", "1"),
        (401, {}, 502, "BACKEND_AUTH", None),
        (500, {}, 502, "BACKEND_ERROR", None),
        (501, {}, 501, "CAPABILITY_UNSUPPORTED", None),
        (400, {}, 400, "BACKEND_REJECTED", None),
    ],
)
async def test_a_status_says_what_went_wrong(
    tmp_path: Path,
    fake: FakeServer,
    status: int,
    headers: dict[str, str],
    told: int,
    reason: str,
    retry_after: str | None,
) -> None:
    secret = "sk-do-not-tell"
    fake.always(CHAT_PATH, Reply.json({"error": {"message": secret}}, status, headers=headers))
    once = {"maximum": 1}
    async with (
        serving(tmp_path, openai(fake.base_url), http=ANYWHERE, attempts=once) as served,
        calling(served) as client,
    ):
        plain, theirs = await call(client, "Execute"), await call(client, "Chat")
    for answer in (plain, theirs):
        assert answer.status_code == told
        assert answer.headers.get("retry-after") == retry_after
        assert answer.headers["x-should-retry"] == ("true" if retry_after else "false")
        assert secret not in answer.text
    document = plain.json()
    assert (document["success"], document["reason"]) == (False, reason)
    assert document["request_id"] == plain.headers["x-request-id"]
    assert theirs.json()["error"]["reason"] == reason


async def test_fields_are_named(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/execute", json={"intent": "a", "sampling": {"top_p": 7}})
    assert answer.status_code == 400
    assert answer.json()["violations"][0]["field"] == "sampling.top_p"
    answer = await client.post("/v1/chat/completions", json={**HI, "top_p": 7})
    assert answer.json()["error"]["param"] == "top_p"
    answer = await client.get("/v1/models", params={"page": 1})
    assert answer.json()["error"]["param"] == "page"


async def test_a_stream_that_breaks_off_ends_with_its_error(
    client: httpx.AsyncClient, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, Reply.stream(event(text("what was sent")), Close()))
    answer = await client.post("/v1/chat/completions", json={**HI, "stream": True})
    assert answer.status_code == 200
    *chunks, last = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
    assert chunks[-1]["choices"][0]["delta"]["content"] == "what was sent"
    assert last["error"]["reason"] == "STREAM_TRUNCATED"
    assert "[DONE]" not in answer.text


async def test_a_whole_answer_that_breaks_off_is_begun_anew(
    tmp_path: Path, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, Reply.stream(event(text("what is lost")), Close()))
    backend = OpenAIBackend(WireSettings("first", fake.base_url))
    spec = IntegrationSpec("first", "openai", fallback=(Fallback("second"),))
    second = openai(fake.base_url, "second")
    async with (
        serving(tmp_path, Integration(spec, backend), second, http=ANYWHERE) as served,
        calling(served) as client,
    ):
        told = (await call(client, "Chat")).json()
    assert told["choices"][0]["message"]["content"] == "Hello world"
    tried = [item["reason"] for item in told["atmosphere"]["attempts"]]
    assert tried == ["STREAM_TRUNCATED", ""]


# --- who calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rpc", CALLS)
async def test_callers_and_what_they_may_do_are_as_over_grpc(
    tmp_path: Path, fake: FakeServer, rpc: str
) -> None:
    keys = tmp_path / "keys.json"
    _, key = key_file.create(keys, "alice", None)
    _, other = key_file.create(keys, "bob", Policy(rpcs=tuple(set(CALLS) - {rpc})))
    settings = {"http": ANYWHERE, "auth": {"keys_file": keys}}
    async with (
        serving(tmp_path, openai(fake.base_url), **settings) as served,
        calling(served) as client,
    ):
        stranger = await call(client, rpc)
        assert stranger.status_code == 401
        assert stranger.headers["www-authenticate"] == "Bearer"
        assert key not in stranger.text
        wrong = await call(client, rpc, authorization=f"Bearer {key[:-4]}AAAA")
        assert wrong.status_code == 401
        basic = await call(client, rpc, authorization=f"Basic {key}")
        assert basic.status_code == 401
        assert (await call(client, rpc, authorization=f"Bearer {other}")).status_code == 403
        assert (await call(client, rpc, authorization=f"Bearer {key}")).status_code == 200
        assert (await call(client, rpc, x_api_key="")).status_code == 401
        known = await client.request(
            CALLS[rpc][0], CALLS[rpc][1], json=CALLS[rpc][2], headers={"x-api-key": key}
        )
        assert known.status_code == 200
        assert (await client.get("/health")).status_code == 200


async def test_limits_are_shared_with_grpc(tmp_path: Path, fake: FakeServer) -> None:
    settings = {"http": ANYWHERE, "auth": {"default": {"requests_per_minute": 2}}}
    async with (
        serving(tmp_path, openai(fake.base_url), **settings) as served,
        calling(served) as client,
    ):
        assert (await call(client, "Execute")).status_code == 200
        _, failure = await read(served.stub.Chat(chat_request()))
        assert failure is None
        limited = await call(client, "Execute")
        assert (limited.status_code, limited.json()["reason"]) == (429, "RATE_LIMITED")
        assert 0 < int(limited.headers["retry-after"]) <= 60
        assert limited.headers["retry-after-ms"]


async def test_tokens_are_charged(tmp_path: Path, fake: FakeServer) -> None:
    settings = {"http": ANYWHERE, "auth": {"default": {"tokens_per_minute": 15}}}
    async with (
        serving(tmp_path, openai(fake.base_url), **settings) as served,
        calling(served) as client,
    ):
        for stream in (True, False):  # ten tokens each
            asked = {**HI, "stream": stream}
            assert (await client.post("/v1/chat/completions", json=asked)).status_code == 200
        assert (await call(client, "Chat")).json()["error"]["code"] == "rate_limit_exceeded"


# --- what surrounds a call ---------------------------------------------------------------------


async def test_the_request_id_is_repeated(client: httpx.AsyncClient) -> None:
    for rpc in CALLS:
        answer = await client.request(
            CALLS[rpc][0], CALLS[rpc][1], json=CALLS[rpc][2], headers={"X-Request-Id": "mine"}
        )
        assert answer.headers["x-request-id"] == "mine"
    stream = await client.post(
        "/v1/chat/completions", json={**HI, "stream": True}, headers={"X-Request-Id": "mine"}
    )
    assert stream.headers["x-request-id"] == "mine"
    made = await client.get("/v1/models", headers={"X-Request-Id": "with blank"})
    assert len(made.headers["x-request-id"]) == 32


async def test_a_call_has_the_line_that_it_has_over_grpc(
    client: httpx.AsyncClient, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, ACCESS)
    await call(client, "Chat")
    await read(served.stub.Chat(chat_request()))
    records = [record for record in caplog.records if record.name == ACCESS]
    lines = [json.loads(JsonLines().format(record)) for record in records]
    for line in lines:
        assert line.pop("caller").startswith("ipv4:127.0.0.1:")
        for name in ("time", "queue_ms", "first_token_ms", "duration_ms"):
            del line[name]
    assert lines[0] == lines[1]
    assert "hi" not in caplog.text.split()


async def test_metrics_count_it_by_its_rpc(served: Served, client: httpx.AsyncClient) -> None:
    await call(client, "Execute")
    await client.post("/v1/execute", json={})
    async with httpx.AsyncClient(trust_env=False) as other:
        seen = (await other.get(f"http://{served.metrics}/metrics")).text
    assert 'atmosphere_calls_total{code="OK",method="Execute",reason=""} 1.0' in seen
    assert 'code="INVALID_ARGUMENT",method="Execute",reason="INVALID_FIELD"} 1.0' in seen


@pytest.mark.parametrize("value", ["0.2", "200ms"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_deadline_holds(
    client: httpx.AsyncClient, fake: FakeServer, value: str, stream: bool
) -> None:
    fake.always(CHAT_PATH, Reply.stream(Stall()))
    headers = {"X-Request-Timeout": value}
    asked = {**HI, "stream": stream}
    answer = await client.post("/v1/chat/completions", json=asked, headers=headers)
    assert answer.status_code == 504
    assert "the caller's deadline of " in answer.json()["error"]["message"]
    answer = await client.post("/v1/execute", json={"intent": "a"}, headers=headers)
    assert (answer.status_code, answer.json()["metadata"]["phase"]) == (504, "FIRST_TOKEN")


async def test_a_trace_goes_on_to_the_backend(client: httpx.AsyncClient, fake: FakeServer) -> None:
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    await call(client, "Chat", traceparent=parent)
    assert (await generating(fake)).headers["traceparent"] == parent


# --- callers that go ---------------------------------------------------------------------------


async def gone_soon(request: Request, left_at: float) -> None:
    async with asyncio.timeout(5):
        await request.gone.wait()
    assert request.gone_at is not None
    assert request.gone_at - left_at < CLOSE_S


@pytest.mark.parametrize("rpc", [*GENERATING, "a stream"])
@pytest.mark.parametrize("reply", [Reply.raw(Stall()), DRIP], ids=["nothing", "tokens"])
async def test_whoever_goes_stops_the_backend(
    served: Served, fake: FakeServer, rpc: str, reply: Reply
) -> None:
    before = tasks()
    fake.always(CHAT_PATH, reply)
    fake.always(EMBED_PATH, Reply.raw(Stall()))
    _, path, body = CALLS["Chat" if rpc == "a stream" else rpc]
    if rpc == "a stream":
        body = {**body, "stream": True}
    async with raw(served) as (reader, writer):
        writer.write(request(path, json.dumps(body).encode()))
        asked = await generating(fake)
        if rpc == "a stream" and reply is DRIP:
            await reader.readuntil(b'"content":"a"')
        writer.transport.abort()
        left_at = asyncio.get_running_loop().time()
        await gone_soon(asked, left_at)
    await until(lambda: served.server.in_flight == 0, "the call to end")
    await no_open_requests(fake)
    await no_tasks_but(before)


async def test_whoever_stops_reading_halts_the_backend_and_can_go(
    served: Served, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, Reply.stream(*[event(text("a" * 50_000))] * 2000))
    body = json.dumps({**HI, "stream": True}).encode()
    async with raw(served) as (reader, writer):
        writer.write(request("/v1/chat/completions", body))
        await reader.readuntil(b'"content":"aaa')
        asked = await generating(fake)
        await asyncio.sleep(0.3)
        assert not asked.answered.is_set()
        writer.transport.abort()
        await gone_soon(asked, asyncio.get_running_loop().time())
    await until(lambda: served.server.in_flight == 0, "the call to end")


# --- bounds ------------------------------------------------------------------------------------


async def test_a_large_body_is_taken_and_one_too_large_refused(
    client: httpx.AsyncClient, fake: FakeServer
) -> None:
    answer = await client.post("/v1/execute", json={"intent": "a" * 900_000})
    assert answer.status_code == 200
    answer = await client.post("/v1/execute", json={"intent": "a" * http_call.MAX_BODY_BYTES})
    assert answer.status_code == 413
    assert len([item for item in fake.requests if item.method == "POST"]) == 1


async def test_a_head_too_large_or_none_at_all_is_refused(served: Served) -> None:
    async with raw(served) as (reader, writer):
        writer.write(b"nonsense\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400")
        assert b'"reason":"MALFORMED"' in answer
    async with raw(served) as (reader, writer):
        writer.write(request("/v1/execute", b"", f"x: {'a' * 50_000}"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 431")
    async with raw(served) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nx: " + b"a" * 50_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")


async def test_whoever_dawdles_with_a_head_is_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    for sent in (b"", b"POST /v1/execute HTTP/1.1\r\nhost: local"):
        async with raw(served) as (reader, writer):
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(2):
                    assert await reader.read() == b""
    # One that has had an answer, and then dawdles.
    async with raw(served) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b"SERVING")
        await asyncio.sleep(0.4)
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")  # idle is no dawdling
        await reader.readuntil(b"SERVING")
        writer.write(b"GET /hea")
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(2):
                await reader.read()


async def test_whoever_dawdles_with_a_body_is_told(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_call, "BODY_S", 0.1)
    monkeypatch.setattr(http_call, "LEFT_S", 0.1)
    async with raw(served) as (reader, writer):
        writer.write(request("/v1/execute", b"{" + b" " * 10)[:-5])
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    await until(lambda: served.server.in_flight == 0, "the call to end")


async def test_whoever_reads_nothing_is_cut_off(
    served: Served, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALL_S", 0.2)
    fake.script(CHAT_PATH, Reply.stream(*[event(text("a" * 50_000))] * 2000))
    async with raw(served) as (_, writer):
        writer.write(request("/v1/chat/completions", json.dumps({**HI, "stream": True}).encode()))
        asked = await generating(fake)
        async with asyncio.timeout(5):
            await asked.gone.wait()
    await until(lambda: served.server.in_flight == 0, "the call to end")


async def test_a_connection_too_many_is_cut(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 1)
    async with raw(served) as (_, first), raw(served) as (reader, _):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert not first.is_closing()


async def test_an_answer_does_not_wait_to_be_acknowledged(served: Served) -> None:
    took = []
    async with raw(served) as (reader, writer):
        for _ in range(15):
            began = time.monotonic()
            writer.write(request("/v1/route", b'{"intent": "a"}'))
            await reader.readuntil(b"}}")
            took.append(time.monotonic() - began)
    assert min(took[1:]) < 0.03  # 40 ms each, where it does


async def test_requests_sent_one_after_the_other_are_answered_so(served: Served) -> None:
    asked = request("/v1/route", b'{"intent": "a"}')
    async with raw(served) as (reader, writer):
        writer.write(asked * 3)
        for _ in range(3):
            assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
            await reader.readuntil(b"}}")


# --- the server's life -------------------------------------------------------------------------


async def test_a_drain_lets_calls_finish_and_refuses_new_ones(
    tmp_path: Path, fake: FakeServer
) -> None:
    go_on = asyncio.Event()
    fake.script(CHAT_PATH, Reply.stream(Until(go_on), *answer_events()))
    async with (
        serving(tmp_path, openai(fake.base_url), http=ANYWHERE) as served,
        calling(served) as client,
    ):
        running = asyncio.ensure_future(call(client, "Chat"))
        await generating(fake)
        draining = asyncio.ensure_future(served.server.drain())
        await asyncio.sleep(0.3)
        health = await client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "NOT_SERVING"})
        refused = await call(client, "Execute")
        assert (refused.status_code, refused.json()["reason"]) == (503, "DRAINING")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        go_on.set()
        assert (await running).status_code == 200
        await draining


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_tells_whoever_waits(tmp_path: Path, fake: FakeServer, stream: bool) -> None:
    fake.script(CHAT_PATH, Reply.stream(event(text("a")), Stall()))
    async with serving(tmp_path, openai(fake.base_url), http=ANYWHERE) as served:
        async with raw(served) as (reader, writer):
            body = json.dumps({**HI, "stream": stream}).encode()
            writer.write(request("/v1/chat/completions", body))
            asked = await generating(fake)
            if stream:
                await reader.readuntil(b'"content":"a"')
            await served.server.stop()
            answer = await reader.read()
        assert b"DRAINING" in answer
        assert stream or answer.startswith(b"HTTP/1.1 503")
        async with asyncio.timeout(5):
            await asked.gone.wait()


async def test_a_port_that_is_taken_is_told_with_its_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = Settings(state_dir=tmp_path, http={"listen": listen})
        server = Server(settings, Registry([]))
        says = r"http\.listen.*in use\).*--http.*ATMOSPHERE_HTTP__LISTEN"
        with pytest.raises(StartError, match=says):
            server.bind_http()
        await server.stop()


async def test_it_is_off_where_that_is_said(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, http={"enabled": False})
    server = Server(settings, Registry([]))
    assert server.bind_http() is None
    await server.stop()


async def test_grpc_goes_on_as_it_did(served: Served) -> None:
    from atmosphere_grpc.v1 import execution_pb2

    failure = await failure_of(served.stub.Execute(execution_pb2.ExecuteRequest()))
    assert failure.reason == "INVALID_FIELD"


# --- TLS ---------------------------------------------------------------------------------------

AUTHORITY = trustme.CA()


def write(folder: Path, leaf: trustme.LeafCert) -> None:
    chain = b"".join(item.bytes() for item in leaf.cert_chain_pems)
    (folder / "cert.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(leaf.private_key_pem.bytes())


def trusting(leaf: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
    if leaf is not None:
        leaf.configure_cert(context)
    return context


async def test_it_shows_the_certificate_and_the_next_one(tmp_path: Path, fake: FakeServer) -> None:
    write(tmp_path, AUTHORITY.issue_cert("127.0.0.1"))
    tls = {"cert_file": tmp_path / "cert.pem", "key_file": tmp_path / "key.pem"}

    async def serial(address: str) -> str:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=trusting())
        shown = writer.get_extra_info("peercert")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return str(shown["serialNumber"])

    async with serving(tmp_path, openai(fake.base_url), http=ANYWHERE, tls=tls) as served:
        async with httpx.AsyncClient(verify=trusting(), trust_env=False) as client:
            assert (await client.get(f"https://{served.http}/v1/models")).status_code == 200
        before = await serial(served.http)
        assert await serial(served.http) == before
        write(tmp_path, AUTHORITY.issue_cert("127.0.0.1"))
        assert await serial(served.http) != before


async def test_a_certificate_says_who_calls(
    tmp_path: Path, fake: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, ACCESS)
    write(tmp_path, AUTHORITY.issue_cert("127.0.0.1"))
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = {
        "cert_file": tmp_path / "cert.pem",
        "key_file": tmp_path / "key.pem",
        "client_ca_file": tmp_path / "ca.pem",
        "client_auth": "require",
    }
    async with serving(tmp_path, openai(fake.base_url), http=ANYWHERE, tls=tls) as served:
        context = trusting(AUTHORITY.issue_cert("alice.example"))
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            assert (await client.get(f"https://{served.http}/v1/models")).status_code == 200
        assert "caller=tls:alice.example" in caplog.text
        async with httpx.AsyncClient(verify=trusting(), trust_env=False) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"https://{served.http}/v1/models")
