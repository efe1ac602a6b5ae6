"""The fake servers themselves: what a test scripts is what a client gets, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import (
    ANY,
    DONE,
    MODEL,
    PATIENCE_S,
    Close,
    ColdModel,
    Dialect,
    FakeServer,
    LlamaFarm,
    Ollama,
    OpenAI,
    Pause,
    Reply,
    Reset,
    Runtime,
    Send,
    Stall,
    Until,
    answer_events,
    event,
    recordings,
    sockets,
    text,
)
from tests.fakes.llamafarm import (
    APOLOGY,
    ENOUGH,
    MODEL_KEY,
    apology,
    cut_and_begun_anew,
    failed_midway,
)

CHAT = "/v1/chat/completions"
RECORDED = sorted(recordings.WIRE.rglob("*.resp.txt"))
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


class Client:
    """A client without a mind of its own: what it sends and reads are bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, path: str = CHAT, body: Any = ASK, *, connection: str = "keep-alive") -> None:
        data = json.dumps(body).encode()
        start = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n"
        self.writer.write(f"{start}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    async def read(self, until: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(until)

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def connected(fake: FakeServer) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", fake.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def raw(fake: FakeServer) -> bytes:
    """All that a client gets that asks once."""
    async with connected(fake) as client:
        client.send(connection="close")
        return await client.rest()


async def ask(
    fake: FakeServer, path: str = CHAT, body: Any = None, **headers: str
) -> httpx.Response:
    method = "GET" if body is None else "POST"
    async with (
        asyncio.timeout(PATIENCE_S),
        httpx.AsyncClient(base_url=fake.url, trust_env=False) as client,
    ):
        return await client.request(method, path, json=body, headers=headers)


def deltas(body: str) -> list[Any]:
    """The deltas of the first choices of a stream."""
    chunks = [json.loads(line[6:]) for line in body.split("\n\n") if line.startswith("data: {")]
    return [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]


async def test_replies_are_given_in_turn_and_then_the_dialects(fake: FakeServer) -> None:
    fake.script("/health", Reply.json({}, 503), Reply.body("x", 429, headers={"Retry-After": "3"}))
    first, second, third = [await ask(fake, "/health") for _ in range(3)]
    assert first.status_code == 503
    assert (second.status_code, second.headers["retry-after"], second.text) == (429, "3", "x")
    assert third.json() == {"status": "ok"}


async def test_a_standing_reply_and_one_for_any_path_are_given_to_all(fake: FakeServer) -> None:
    fake.always("/health", Reply.json("standing"))
    fake.script(ANY, Reply.json("queued"))
    answers = [(await ask(fake, path)).json() for path in ("/health", "/health", "/v1/models")]
    assert answers[:2] == ["queued", "standing"]
    assert answers[2]["data"][0]["id"] == MODEL


async def test_a_request_is_kept_as_it_came(fake: FakeServer) -> None:
    await ask(fake, CHAT + "?a=b", {"x": 1}, **{"X-Own": "mine"})
    request = await fake.arrived()
    assert (request.method, request.path, request.query) == ("POST", CHAT, "a=b")
    assert request.json == {"x": 1}
    assert request.headers["x-own"] == "mine"


async def test_a_chunked_request_is_read(fake: FakeServer) -> None:
    async with connected(fake) as client:
        start = b"POST /v1/embeddings HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.writer.write(start + b'5\r\n{"inp\r\n9\r\nut":"hi"}\r\n0\r\n\r\n')
        await client.read(b"\r\n\r\n")
    assert fake.requests[0].json == {"input": "hi"}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
async def test_a_recording_is_replayed_byte_by_byte(fake: FakeServer, path: Path) -> None:
    fake.script(ANY, Reply.replay(path))
    assert await raw(fake) == recordings.read(path)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
async def test_a_recording_is_valid_http(fake: FakeServer, path: Path) -> None:
    fake.script(ANY, Reply.replay(path))
    if not recordings.is_whole(recordings.read(path)):
        with pytest.raises(
            httpx.RemoteProtocolError, match=r"incomplete chunked read|without sending complete"
        ):
            await ask(fake)
        return
    response = await ask(fake)
    assert response.status_code == recordings.status(path)
    assert response.content == recordings.body(path)


async def test_a_recorded_body_is_replayed_as_an_event_stream(fake: FakeServer) -> None:
    name = "llama-cpp-server/stream_with_ping.body.txt"
    fake.script(ANY, Reply.replay(name))
    response = await ask(fake)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.content == recordings.read(name)


async def test_headers_wait_for_an_event(fake: FakeServer) -> None:
    go = asyncio.Event()
    fake.script(CHAT, Reply.json("late").after(Until(go)))
    async with connected(fake) as client:
        client.send(connection="close")
        request = await fake.arrived()
        reading = asyncio.create_task(client.rest())
        await asyncio.sleep(0)
        assert not request.answered.is_set()
        assert not reading.done()
        go.set()
        assert b'"late"' in await reading


async def test_the_first_token_waits_for_an_event_after_the_headers(fake: FakeServer) -> None:
    go = asyncio.Event()
    fake.script(CHAT, Reply.stream(Until(go), *answer_events()))
    async with connected(fake) as client:
        client.send()
        assert b"text/event-stream" in await client.read(b"\r\n\r\n")
        assert not fake.requests[0].answered.is_set()
        go.set()
        await client.read(b"[DONE]")


async def test_a_pause_takes_its_time(fake: FakeServer) -> None:
    fake.script(CHAT, Reply.json(1).after(Pause(0.05)))
    began = asyncio.get_running_loop().time()
    await ask(fake)
    assert asyncio.get_running_loop().time() - began >= 0.05


async def test_each_part_of_a_stream_is_a_write_of_its_own(fake: FakeServer) -> None:
    """Also where a part ends in the middle of a character."""
    parts = [event(text("ü"))[:60], event(text("ü"))[60:]]
    reads = await reads_of(fake, Reply.stream(*parts))
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    assert reads[1:] == [*chunks, b"0\r\n\r\n"]


async def test_a_dripped_reply_comes_byte_by_byte(fake: FakeServer) -> None:
    reads = await reads_of(fake, Reply.json("ü").dripped())
    assert {len(read) for read in reads} == {1}


async def test_a_dripped_part_of_a_stream_comes_in_chunks_of_a_byte(fake: FakeServer) -> None:
    reads = await reads_of(fake, Reply.stream(Send(b"abc", size=2)))
    assert reads[1:] == [b"2\r\nab\r\n", b"1\r\nc\r\n", b"0\r\n\r\n"]


async def test_a_flood_repeats_its_bytes(fake: FakeServer) -> None:
    fake.script(CHAT, Reply.stream(Send(b"data: x\n\n", times=10_000), DONE))
    assert (await ask(fake)).content == b"data: x\n\n" * 10_000 + DONE


async def test_an_event_has_the_form_asked_for() -> None:
    assert event("a\nb") == b"data: a\ndata: b\n\n"
    assert event({"x": "ü"}, name="n", eol="\r\n", space=False) == (
        'event:n\r\ndata:{"x": "ü"}\r\n\r\n'.encode()
    )


async def test_a_stalled_stream_notices_that_its_client_goes(fake: FakeServer) -> None:
    fake.script(CHAT, Reply.stream(event(text("Hi")), Stall()))
    async with connected(fake) as client:
        client.send()
        await client.read(b"\n\n")
        assert fake.open_connections == 1
        assert not fake.requests[0].gone.is_set()
    left = asyncio.get_running_loop().time()
    assert await fake.client_gone() - left < 0.1
    await fake.settled(0)
    assert not fake.requests[0].answered.is_set()


async def test_a_client_that_goes_while_much_is_written_is_noticed(fake: FakeServer) -> None:
    fake.script(CHAT, Reply.stream(Send(b"x" * 65_536, times=1_000_000)))
    async with connected(fake) as client:
        client.send()
        await client.read(b"\r\n\r\n")
    await fake.client_gone()


async def test_a_client_that_goes_after_the_answer_is_not_called_gone(fake: FakeServer) -> None:
    await ask(fake, "/health")
    await fake.settled(0)
    assert fake.requests[0].answered.is_set()
    assert not fake.requests[0].gone.is_set()


async def test_a_connection_serves_one_request_after_the_other(fake: FakeServer) -> None:
    async with connected(fake) as client:
        for _ in range(2):
            client.send()
            await client.read(b"0\r\n\r\n")
    assert [request.connection for request in fake.requests] == [1, 1]
    assert fake.connections == 1


async def test_a_stream_can_be_closed_within_an_event(fake: FakeServer) -> None:
    fake.script(CHAT, Reply.stream(b'data: {"cho', Close()))
    assert (await raw(fake)).endswith(b'\r\n\r\nb\r\ndata: {"cho\r\n')


async def test_a_connection_can_be_closed_before_the_headers(fake: FakeServer) -> None:
    fake.script(CHAT, Reply.raw(Close()))
    assert await raw(fake) == b""


async def test_a_connection_can_be_reset(fake: FakeServer) -> None:
    fake.script(CHAT, Reply.stream(event(text("Hi")), Reset()))
    async with connected(fake) as client:
        client.send()
        await client.read(b"\n\n")
        with pytest.raises(ConnectionResetError):
            await client.rest()


async def test_garbage_is_sent_as_it_is(fake: FakeServer) -> None:
    fake.script(CHAT, Reply.raw(b"\x00garbage", Close()))
    assert await raw(fake) == b"\x00garbage"


async def test_what_is_no_http_is_hung_up_on(fake: FakeServer) -> None:
    async with connected(fake) as client:
        client.writer.write(b"\x16\x03\x01\x02\x00")  # how TLS begins
        assert await client.rest() == b""
    assert fake.requests == []


async def test_a_load_is_given_up_with_its_requester_and_begun_anew() -> None:
    cold = ColdModel()
    async with FakeServer(Ollama(cold=cold)) as fake:
        async with connected(fake) as client:
            client.send()
            await fake.arrived()
        await fake.client_gone()
        await fake.settled(0)
        assert (cold.begun, cold.aborted, cold.loaded) == (1, 1, False)
        assert (await ask(fake, "/api/ps")).json() == {"models": []}
        async with connected(fake) as client:
            client.send()
            await fake.arrived(3)
            cold.finish()
            await client.read(b"[DONE]")
        assert (cold.begun, cold.aborted, cold.loaded) == (2, 1, True)
        assert (await ask(fake, CHAT, ASK)).status_code == 200
        assert cold.begun == 2


async def test_a_load_can_take_a_time_instead() -> None:
    cold = ColdModel(load_s=0.01)
    async with FakeServer(Ollama(cold=cold)) as fake:
        assert (await ask(fake, CHAT, ASK)).status_code == 200
    assert cold.loaded


async def test_a_script_that_fails_fails_the_test() -> None:
    def broken(_: object) -> Reply:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with FakeServer(broken) as fake:
            assert await raw(fake) == b""


async def test_waiting_in_vain_says_what_was_seen(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.server.PATIENCE_S", 0.01)
    with pytest.raises(AssertionError, match="in vain for request 1"):
        await fake.arrived()


async def test_nothing_is_left_open_when_a_server_ends() -> None:
    async with FakeServer() as fake:
        fake.script(CHAT, Reply.stream(Stall()))
        async with connected(fake) as client:
            client.send()
            await client.read(b"\r\n\r\n")
            await fake.__aexit__(None, None, None)
            assert fake.open_connections == 0
            assert await client.rest() == b""


def test_a_refusing_address_refuses() -> None:
    with sockets.refusing() as address, socket.socket() as client:
        host, _, port = address.partition(":")
        with pytest.raises(ConnectionRefusedError):
            client.connect((host, int(port)))


def test_an_unanswering_address_does_not_answer() -> None:
    with sockets.unanswering() as address, socket.socket() as client:
        host, _, port = address.partition(":")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.connect((host, int(port)))


def test_an_accepting_address_accepts_and_says_nothing() -> None:
    with sockets.accepting() as address, socket.socket() as client:
        host, _, port = address.partition(":")
        client.connect((host, int(port)))
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)


# --- dialects ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        (OpenAI(), CHAT),
        (Ollama(), CHAT),
        (Runtime(), CHAT),
        (LlamaFarm(root_chat=True), CHAT),
        (LlamaFarm(), "/v1/projects/default/fake/chat/completions"),
    ],
)
async def test_each_dialect_streams_a_chat(dialect: Dialect, path: str) -> None:
    async with FakeServer(dialect) as fake:
        response = await ask(fake, path, {**ASK, "stream_options": {"include_usage": True}})
        whole = (await ask(fake, path, {**ASK, "stream": False})).json()
    content = "".join(delta.get("content") or "" for delta in deltas(response.text))
    assert content == whole["choices"][0]["message"]["content"] == "Hello world"
    assert response.content.endswith(DONE)
    assert ('"usage"' in response.text) is isinstance(dialect, OpenAI | Ollama)


async def test_llama_cpps_shapes_are_those_recorded() -> None:
    async with FakeServer(OpenAI()) as fake:
        models = (await ask(fake, "/v1/models")).json()
        nope = (await ask(fake, "/v1/nope")).json()
    recorded = json.loads(recordings.body("llama-cpp-server/get_v1_models.resp.txt"))
    assert recorded["data"][0].keys() >= models["data"][0].keys()
    assert nope == json.loads(recordings.body("llama-cpp-server/get_v1_nope.resp.txt"))


async def test_ollama_answers_natively_in_lines_unless_told_otherwise() -> None:
    async with FakeServer(Ollama()) as fake:
        body = {"model": MODEL, "messages": ASK["messages"]}
        streamed = await ask(fake, "/api/chat", body)
        whole = (await ask(fake, "/api/chat", {**body, "stream": False})).json()
    lines = [json.loads(line) for line in streamed.text.splitlines()]
    assert streamed.headers["content-type"] == "application/x-ndjson"
    assert "".join(line["message"]["content"] for line in lines) == "Hello world"
    assert [line["done"] for line in lines] == [False, False, True]
    assert lines[-1]["done_reason"] == "stop"
    assert whole["message"]["content"] == "Hello world"


async def test_ollama_lists_embeds_and_tells_its_version() -> None:
    async with FakeServer(Ollama(models=[MODEL, "other:1b"], dimensions=3)) as fake:
        tags, resident, version = [
            (await ask(fake, f"/api/{path}")).json() for path in ("tags", "ps", "version")
        ]
        vectors = (await ask(fake, "/api/embed", {"model": MODEL, "input": ["a", "bb"]})).json()
    assert [model["name"] for model in tags["models"]] == [MODEL, "other:1b"]
    assert [model["name"] for model in resident["models"]] == [MODEL]
    assert version["version"]
    assert [len(vector) for vector in vectors["embeddings"]] == [3, 3]


async def test_ollama_knows_only_its_models_and_says_null_for_none() -> None:
    async with FakeServer(Ollama(models=[])) as fake:
        native = await ask(fake, "/api/chat", ASK)
        compatible = await ask(fake, CHAT, ASK)
        models = (await ask(fake, "/v1/models")).json()
    assert (native.status_code, compatible.status_code) == (404, 404)
    assert isinstance(native.json()["error"], str)
    assert compatible.json()["error"]["code"] is None
    assert models["data"] is None


async def test_llamafarm_keeps_a_session_unless_asked_not_to() -> None:
    dialect = LlamaFarm()
    async with FakeServer(dialect) as fake:
        path = "/v1/projects/default/fake/chat/completions"
        new = await ask(fake, path, ASK)
        key = new.headers["x-session-id"]
        again = await ask(fake, path, ASK, **{"X-Session-ID": key})
        none = await ask(fake, path, ASK, **{"X-No-Session": "false", "X-Session-ID": key})
    assert again.headers["x-session-id"] == key
    assert "x-session-id" not in none.headers  # that the header is there is what counts
    assert [len(messages) for messages in dialect.conversations.values()] == [2]


async def test_llamafarm_is_healthy_by_its_words_and_serves_its_app_on_unknown_paths() -> None:
    async with FakeServer(LlamaFarm(status="unhealthy")) as fake:
        health = await ask(fake, "/health")
        app = await ask(fake, "/whatever")
        missing = await ask(fake, "/v1/whatever", {})
        project = await ask(fake, "/v1/projects/a/b/models")
    assert (health.status_code, health.json()["status"]) == (200, "unhealthy")
    assert app.headers["content-type"].startswith("text/html")
    assert missing.json() == {"detail": "Not Found"}
    assert project.json()["error"] == "ProjectNotFound"


async def test_llamafarm_lists_a_projects_models_and_embeds_by_its_runtime() -> None:
    up, down = LlamaFarm(models=["a", "b"], default="a"), LlamaFarm(runtime_up=False)
    body = {"model": "a", "input": "x"}
    async with FakeServer(up) as fake, FakeServer(down) as other:
        models = (await ask(fake, "/v1/projects/default/fake/models")).json()
        vectors = await ask(fake, "/v1/nlp/embeddings", body)
        failed = await ask(other, "/v1/nlp/embeddings", body)
    assert [(row["name"], row["default"]) for row in models["models"]] == [
        ("a", True),
        ("b", False),
    ]
    assert len(vectors.json()["data"]) == 1
    assert failed.status_code == 503


async def test_llamafarm_hides_errors(fake: FakeServer) -> None:
    fake.script(CHAT, apology(), apology(None), failed_midway("Half"))
    for finish in ("stop", None):
        hidden = (await ask(fake)).text
        assert deltas(hidden) == [{"role": "assistant", "content": APOLOGY}]
        assert f'"finish_reason": {json.dumps(finish)}' in hidden
    midway = (await ask(fake)).text
    assert '"finish_reason"' not in midway
    assert midway.endswith(DONE.decode())


async def test_llamafarm_begins_a_cut_answer_anew_ten_times(fake: FakeServer) -> None:
    fake.script(CHAT, cut_and_begun_anew("One"))
    said = [delta.get("content") for delta in deltas((await ask(fake)).text)]
    assert said == ["One", None] * 10 + [ENOUGH, None]


async def test_llamafarm_leaves_out_what_is_null_and_says_what_it_found_and_thought() -> None:
    dialect = LlamaFarm(thinking="Hm.", retrieved=[{"content": "Tea."}])
    async with FakeServer(dialect) as fake:
        path = "/v1/projects/default/fake/chat/completions"
        streamed = (await ask(fake, path, {**ASK, "include_sources": True})).text
        unasked = (await ask(fake, path, ASK)).text
        whole = (await ask(fake, path, {**ASK, "stream": False})).json()
    assert "null" not in streamed
    assert streamed.startswith('event: sources\ndata: {"sources": [{"content": "Tea."}]}\n\n')
    assert [delta.get("content") for delta in deltas(unasked)] == [
        *("<think>Hm.</think>", "Hello", " world"),
        None,
    ]
    assert whole["thinking"] == {"content": "Hm."}
    assert whole["choices"][0]["message"]["content"] == "Hello world"


async def test_llamafarm_lists_the_projects_that_there_are_now() -> None:
    dialect = LlamaFarm(projects=["me/one", "you/two"])
    async with FakeServer(dialect) as fake:
        before = (await ask(fake, "/v1/projects/me")).json()
        dialect.projects.remove("me/one")
        after = (await ask(fake, "/v1/projects/me")).json()
    assert [row["name"] for row in before["projects"]] == ["one"]
    assert before["projects"][0]["config"]["api_key"] == MODEL_KEY
    assert after == {"total": 0, "projects": []}


@pytest.mark.parametrize(
    ("dialect", "path", "status"),
    [
        (LlamaFarm(), "/v1/projects/default/fake/chat/completions", 405),
        (LlamaFarm(), "/v1/nlp/embeddings", 405),
        (LlamaFarm(), CHAT, 404),
        (LlamaFarm(root_chat=True), CHAT, 405),
        (Runtime(), CHAT, 405),
        (Runtime(), "/info", 404),
        (LlamaFarm(old=True), "/health", 404),
    ],
)
async def test_a_get_of_what_is_only_posted_to_is_not_allowed_and_of_nothing_not_found(
    dialect: Dialect, path: str, status: int
) -> None:
    async with FakeServer(dialect) as fake:
        response = await ask(fake, path)
    what = {404: "Not Found", 405: "Method Not Allowed"}[status]
    assert (response.status_code, response.json()) == (status, {"detail": what})


async def test_llamafarm_fails_without_a_reason_for_a_model_that_it_does_not_know() -> None:
    async with FakeServer(LlamaFarm()) as fake:
        body = {**ASK, "model": "other"}
        response = await ask(fake, "/v1/projects/default/fake/chat/completions", body)
    assert (response.status_code, response.json()["error"]) == (500, "InternalServerError")


async def test_llamafarm_of_august_2025_is_as_it_was_recorded() -> None:
    async with FakeServer(LlamaFarm(old=True)) as old:
        path = "/v1/projects/default/{}/chat/completions"
        answer = await ask(old, path.format("fake"), {**ASK, "model": "any"})
        missing = await ask(old, path.format("nope"), ASK)
        info = (await ask(old, "/info")).json()
        health, models = await ask(old, "/health"), await ask(old, "/v1/models")
    recorded = "llamafarm-2025-08/{}.resp.txt".format
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["usage"] is None
    assert missing.status_code == recordings.status(recorded("chat_noproject"))
    assert missing.json().keys() == json.loads(recordings.body(recorded("chat_noproject"))).keys()
    assert info == json.loads(recordings.body(recorded("get_info")))
    assert health.json() == json.loads(recordings.body(recorded("get_health")))
    assert models.status_code == recordings.status(recorded("get_v1_models"))


async def test_the_runtime_lists_what_is_loaded_and_needs_a_model() -> None:
    async with FakeServer(Runtime(thinking="Hm.")) as fake:
        models = (await ask(fake, "/v1/models")).json()
        nameless = await ask(fake, CHAT, {"messages": []})
        whole = (await ask(fake, CHAT, {**ASK, "stream": False})).json()
    assert models["data"] == []
    assert (nameless.status_code, nameless.json()["detail"][0]["type"]) == (422, "missing")
    assert whole["usage"]["completion_tokens"] == 0
    assert whole["thinking"]["content"] == "Hm."


async def test_the_runtime_truncates_unless_told_not_to() -> None:
    async with FakeServer(Runtime(context=1)) as fake:
        silent = await ask(fake, CHAT, ASK)
        whole = (await ask(fake, CHAT, {**ASK, "stream": False})).json()
        loud = await ask(fake, CHAT, {**ASK, "auto_truncate": False})
    assert silent.status_code == 200
    assert whole["x_context_usage"]["truncated"] is True
    assert (loud.status_code, loud.json()["detail"]["error"]) == (400, "context_length_exceeded")


async def test_the_runtime_repeats_the_role_and_calls_an_answer_that_it_cut_stopped() -> None:
    async with FakeServer(Runtime()) as fake:
        cut = (await ask(fake, CHAT, {**ASK, "max_tokens": 1})).text
    said = [{"role": "assistant", "content": text} for text in ("", "Hello")]
    assert deltas(cut) == [*said, {}]
    assert '"finish_reason": "stop"' in cut


# --- by hand -----------------------------------------------------------------------------------


async def test_a_server_by_hand_prints_its_address_follows_its_script_and_ends(
    tmp_path: Path,
) -> None:
    script = {
        "/v1/models": [{"body": {"x": 1}, "status": 429, "headers": {"Retry-After": "3"}}],
        "/health": [
            {"body": "fine"},
            {"stream": ["a", {"pause": 0.01}, {"drip": "bc"}, {"flood": "d", "times": 2}]},
            {"raw": ["garbage", {"close": True}]},
            {"replay": "llama-cpp-server/get_health.resp.txt"},
        ],
    }
    (tmp_path / "script.json").write_text(json.dumps(script))
    arguments = ("-m", "tests.fakes", "--dialect", "ollama", "--script", tmp_path / "script.json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments), stdout=PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        async with asyncio.timeout(30):
            assert process.stdout is not None
            url = (await process.stdout.readline()).decode().strip()
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                busy = await client.get("/v1/models")
                assert (busy.status_code, busy.json()) == (429, {"x": 1})
                assert busy.headers["retry-after"] == "3"
                assert (await client.get("/health")).text == "fine"
                assert (await client.get("/health")).text == "abcdd"
                with pytest.raises(httpx.RemoteProtocolError):
                    await client.get("/health")
                assert (await client.get("/health")).json() == {"status": "ok"}
                assert (await client.get("/api/version")).json()["version"]
            process.terminate()
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_server_by_hand_can_be_cold() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fakes", "--dialect", "ollama", "--cold", "0.1"),
        stdout=PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        async with asyncio.timeout(30):
            assert process.stdout is not None
            url = (await process.stdout.readline()).decode().strip()
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.get("/api/ps")).json() == {"models": []}
                asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
                await client.post("/api/chat", json=asked)
                assert (await client.get("/api/ps")).json()["models"]
            process.terminate()
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_server_by_hand_ends_by_itself() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fakes", "--for", "0.01"),
        stdout=PIPE,
        cwd=Path(__file__).parents[2],
    )
    async with asyncio.timeout(30):
        assert await process.wait() == 0


async def reads_of(fake: FakeServer, reply: Reply) -> list[bytes]:
    """What a client that reads as often as it can gets, read by read."""
    fake.script(CHAT, reply)
    loop = asyncio.get_running_loop()
    reads: list[bytes] = []
    ended = loop.create_future()

    class Reader(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(f"GET {CHAT} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())

        def data_received(self, data: bytes) -> None:
            reads.append(data)

        def connection_lost(self, _: Exception | None) -> None:
            ended.set_result(None)

    async with asyncio.timeout(PATIENCE_S):
        await loop.create_connection(Reader, "127.0.0.1", fake.port)
        await ended
    return reads
