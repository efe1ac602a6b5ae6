"""The OpenAI dialect against servers that do what real ones do, one test a trap."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from atmosphere_grpc.backends import openai_calls, wire
from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.domain import (
    BackendEvent,
    Begun,
    ChatCall,
    Delta,
    EmbedCall,
    Finished,
    FinishReason,
    Message,
    ModelState,
    Target,
    Usage,
    UsageSource,
)
from atmosphere_grpc.errors import Failure, Phase, Reason
from tests.fakes import (
    ANY,
    DONE,
    MODEL,
    PATIENCE_S,
    Close,
    ColdModel,
    FakeServer,
    LlamaFarm,
    Load,
    Ollama,
    Reply,
    Reset,
    Runtime,
    Send,
    Stall,
    Until,
    answer_events,
    chunk,
    completion,
    embeddings,
    event,
    sockets,
    text,
    usage,
)
from tests.fakes.llamafarm import apology, failed_midway
from tests.fakes.reply import head
from tests.fakes.steps import Step

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
CALL = ChatCall(Target(), (Message("user", "Hi"),))
EMBED = EmbedCall(Target(), ("a", "b"))
STOP = event(chunk(finish="stop"))
REPORTED = Usage(7, 3, 10, source=UsageSource.REPORTED)
#: How soon a backend must notice that it is no longer wanted, in seconds.
PROMPT_S = 0.1
KILLED = "llama-cpp-server/lifecycle/server_killed_midstream.resp.txt"
T = TypeVar("T")


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


@pytest.fixture
async def backend(fake: FakeServer) -> AsyncIterator[OpenAIBackend]:
    async with aclosing(OpenAIBackend(WireSettings("x", fake.base_url))) as client:
        yield client


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


async def read(
    backend: OpenAIBackend, call: ChatCall = CALL, *, connect_s: float = PATIENCE_S
) -> tuple[list[BackendEvent], Failure | None]:
    """All that a chat yields, and how it failed if it did."""
    events: list[BackendEvent] = []
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            aclosing(backend.chat(MODEL, call, connect_s=connect_s)) as chat,
        ):
            async for value in chat:
                events.append(value)  # noqa: PERF401 - those before a failure count
    except Failure as failure:
        return events, failure
    return events, None


def deltas_in(events: list[BackendEvent]) -> list[Delta]:
    return [value for value in events if isinstance(value, Delta)]


async def chat(backend: OpenAIBackend, call: ChatCall = CALL) -> tuple[str, Finished]:
    """The text of a whole answer, and its end; checks that it begins, and ends, once."""
    events, failure = await read(backend, call)
    assert failure is None, f"{failure.reason}: {failure.message} ({failure.detail})"
    kinds = [type(value) for value in events]
    assert (kinds[0], kinds.count(Begun)) == (Begun, 1)
    assert (kinds[-1], kinds.count(Finished)) == (Finished, 1)
    end = events[-1]
    assert isinstance(end, Finished)
    return "".join(delta.content for delta in deltas_in(events)), end


async def failed_chat(
    backend: OpenAIBackend, *, connect_s: float = PATIENCE_S
) -> tuple[str, Failure]:
    """The text that came before a failure, and that."""
    events, failure = await read(backend, connect_s=connect_s)
    assert failure is not None, f"no failure, but {events}"
    assert not any(isinstance(value, Finished) for value in events)
    assert failure.message.startswith('integration "x": ')
    return "".join(delta.content for delta in deltas_in(events)), failure


async def failed(awaitable: Awaitable[Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        await soon(awaitable)
    return caught.value


async def connecting_fails(base_url: str, *, connect_s: float = PATIENCE_S) -> Failure:
    """How a chat, an embedding and a listing fail, each in the same way."""
    async with aclosing(OpenAIBackend(WireSettings("x", base_url, connect_s=connect_s))) as backend:
        text_before, first = await failed_chat(backend, connect_s=connect_s)
        assert text_before == ""
        for call in (backend.embed("m", EMBED, connect_s=connect_s), backend.models()):
            other = await failed(call)
            assert (other.reason, other.metadata) == (first.reason, first.metadata)
        return first


# --- what works --------------------------------------------------------------------------------


async def test_a_stream_begins_flows_and_ends(fake: FakeServer, backend: OpenAIBackend) -> None:
    events, failure = await read(backend)
    assert failure is None
    assert events[0] == Begun("chatcmpl-fake", MODEL)
    assert "".join(delta.content for delta in deltas_in(events)) == "Hello world"
    assert events[-1] == Finished(FinishReason.STOP, REPORTED)


async def test_a_request_is_json_for_a_stream_with_usage_and_never_asks_for_gzip(
    fake: FakeServer,
) -> None:
    settings = WireSettings("x", fake.base_url + "/", headers={"authorization": "Bearer key"})
    async with aclosing(OpenAIBackend(settings)) as backend:
        await chat(backend, replace(CALL, extra={"cache_prompt": True}))
    request = fake.requests[0]
    assert (request.method, request.path, request.query) == ("POST", CHAT, "")
    assert request.json["stream"] is True
    assert request.json["stream_options"] == {"include_usage": True}
    assert request.json["cache_prompt"] is True
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["authorization"] == "Bearer key"


async def test_tokens_that_arrive_together_leave_together_and_others_when_they_come(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    seen = asyncio.Event()
    together = event(text("a")) + event(text("b"))
    fake.script(CHAT, Reply.stream(together, Until(seen), event(text("c")), STOP, DONE))
    async with (
        asyncio.timeout(PATIENCE_S),
        aclosing(backend.chat("m", CALL, connect_s=1)) as events,
    ):
        assert isinstance(await anext(events), Begun)
        assert await anext(events) == Delta("ab")
        seen.set()
        assert await anext(events) == Delta("c")


@pytest.mark.parametrize("size", [1, 3])
async def test_an_answer_that_is_dripped_is_whole(
    fake: FakeServer, backend: OpenAIBackend, size: int
) -> None:
    fake.script(CHAT, Reply.stream(*answer_events(["22 °", "C 😀"])).dripped(size))
    assert await chat(backend) == ("22 °C 😀", Finished(FinishReason.STOP, REPORTED))


async def test_a_character_split_between_two_writes_is_whole(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    data = event(text("😀"))
    middle = data.index("😀".encode()) + 2
    fake.script(CHAT, Reply.stream(data[:middle], data[middle:], STOP, DONE))
    assert (await chat(backend))[0] == "😀"


async def test_liberties_of_the_event_stream_are_read(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    """Pings, other events, CRLF, no space, several lines, a role and `choices: []` again."""
    pretty = json.dumps(text("d"), indent=1)
    fake.script(
        CHAT,
        Reply.stream(
            b": ping\n\n",
            event({"hit": True}, name="x_cache"),
            event("not JSON at all", name="x_trace"),
            event(chunk(choices=[])),
            event(chunk({"role": "assistant", "content": "a"})),
            event(chunk({"role": "assistant", "content": "b"}), eol="\r\n"),
            event(text("c"), space=False),
            event(pretty),
            event(text("e"), name="message"),
            STOP,
            event(usage()),
            DONE,
        ),
    )
    assert await chat(backend) == ("abcde", Finished(FinishReason.STOP, REPORTED))


@pytest.mark.parametrize(
    "name",
    [
        "llama-cpp-server/chat_stream.resp.txt",
        "llama-cpp-server/chat_stream_usage.resp.txt",
        "llama-cpp-server/chat_basic.resp.txt",
        "llama-cpp-server/stream_with_ping.body.txt",
        "llamafarm-2025-08/chat_stream.resp.txt",
        "llama-cpp-server/chat_tools_required_stream.resp.txt",
    ],
)
@pytest.mark.parametrize("size", [0, 1_000])
async def test_a_recorded_answer_is_whole(
    fake: FakeServer, backend: OpenAIBackend, name: str, size: int
) -> None:
    reply = Reply.replay(name)
    fake.script(CHAT, reply.dripped(size) if size else reply)
    content, end = await chat(backend)
    assert content
    assert end.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)


async def test_a_recorded_answer_has_its_tool_calls(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    name = "llama-cpp-server/tools_template/prefill_single_stream_true.resp.txt"
    fake.script(CHAT, Reply.replay(name))
    events, failure = await read(backend)
    assert failure is None
    pieces = [piece for delta in deltas_in(events) for piece in delta.tool_calls]
    arguments = {i: "".join(p.arguments for p in pieces if p.index == i) for i in (0, 1)}
    assert [json.loads(value) for value in arguments.values()] == [{"city": "Paris"}] * 2
    assert isinstance(end := events[-1], Finished)
    assert end.finish_reason is FinishReason.TOOL_CALLS


async def test_as_many_events_as_can_be_sent_are_all_read(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.stream(Send(event(text("x")), times=5_000), STOP, DONE))
    assert (await chat(backend))[0] == "x" * 5_000


@pytest.mark.parametrize("dialect", [Ollama(), Runtime(), LlamaFarm(root_chat=True)])
async def test_the_other_servers_of_this_dialect_are_understood(
    dialect: Ollama | Runtime | LlamaFarm,
) -> None:
    async with (
        FakeServer(dialect) as fake,
        aclosing(OpenAIBackend(WireSettings("x", fake.base_url))) as backend,
    ):
        content, end = await chat(backend)
    assert content == "Hello world"
    told = UsageSource.REPORTED if isinstance(dialect, Ollama) else UsageSource.MISSING
    assert end.usage.source is told


# --- a 200 proves nothing ----------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [{"prompt_tokens": 7, "completion_tokens": 3}, None])
async def test_plain_json_to_a_request_for_a_stream_is_a_whole_answer(
    fake: FakeServer, backend: OpenAIBackend, numbers: Any
) -> None:
    fake.script(CHAT, Reply.json(completion({"content": "Hello"}, usage=numbers)))
    content, end = await chat(backend)
    assert content == "Hello"
    assert end.usage.source is (UsageSource.REPORTED if numbers else UsageSource.MISSING)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply.html(), id="a web page"),
        pytest.param(Reply.body("Hello"), id="text"),
        pytest.param(Reply.body("{}", content_type=""), id="no type"),
        pytest.param(Reply.body("", 204), id="no content"),
        pytest.param(Reply.body("{}", content_type="application/x-ndjson"), id="another dialect"),
    ],
)
async def test_a_200_of_another_type_is_a_breach_of_contract(
    fake: FakeServer, backend: OpenAIBackend, reply: Reply
) -> None:
    fake.script(CHAT, reply)
    before, failure = await failed_chat(backend)
    assert (before, failure.reason) == ("", Reason.BACKEND_CONTRACT)
    assert "base_urls" in failure.message


@pytest.mark.parametrize("type_", ["TEXT/EVENT-STREAM; charset=utf-8", "text/event-stream;x"])
async def test_the_type_is_read_without_its_parameters_in_any_case(
    fake: FakeServer, backend: OpenAIBackend, type_: str
) -> None:
    fake.script(CHAT, Reply.stream(*answer_events(["a"]), content_type=type_))
    assert (await chat(backend))[0] == "a"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"choices": [', id="broken JSON"),
        pytest.param(b"[]", id="no object"),
        pytest.param(
            json.dumps(completion({"content": "a"}, None)).encode(), id="no finish_reason"
        ),
        pytest.param(b"{}", id="nothing"),
        pytest.param(b'{"choices": [{"message": {"content": "\xff"}}]}', id="no characters"),
        pytest.param(b'{"x": ' + b"[" * 60_000, id="a deep nest"),
    ],
)
async def test_json_that_is_no_answer_is_a_breach_of_contract(
    fake: FakeServer, backend: OpenAIBackend, body: bytes
) -> None:
    fake.script(CHAT, Reply.body(body, content_type="application/json"))
    assert (await failed_chat(backend))[1].reason is Reason.BACKEND_CONTRACT


async def test_an_error_in_plain_json_with_a_200_is_an_error(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.json({"error": {"message": "Xyzzy-7", "code": 429}}))
    _, failure = await failed_chat(backend)
    assert failure.reason is Reason.BACKEND_BUSY
    assert "Xyzzy-7" not in failure.message


# --- streams that go wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"error": {"message": "Xyzzy-7", "type": "server_error"}}, Reason.BACKEND_ERROR),
        ({"error": "Xyzzy-7"}, Reason.BACKEND_ERROR),
        ({"error": {"message": "Xyzzy-7", "code": 503}}, Reason.BACKEND_UNAVAILABLE),
        ({"error": {"type": "exceed_context_size_error", "code": 400}}, Reason.CONTEXT_OVERFLOW),
        ({"detail": {"error": "context_length_exceeded"}}, Reason.CONTEXT_OVERFLOW),
        ({"detail": "Xyzzy-7"}, Reason.BACKEND_ERROR),
    ],
)
@pytest.mark.parametrize("together", [False, True])
async def test_an_error_inside_the_stream_ends_it_after_the_text_before_it(
    fake: FakeServer, backend: OpenAIBackend, error: Any, reason: Reason, together: bool
) -> None:
    parts = [event(text("Half")), event(error), event(text("more")), DONE]
    fake.script(CHAT, Reply.stream(*([b"".join(parts)] if together else parts)))
    before, failure = await failed_chat(backend)
    assert (before, failure.reason) == ("Half", reason)
    assert "Xyzzy-7" not in failure.message


async def test_an_error_event_is_read_like_a_message(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.stream(event({"error": "Xyzzy-7"}, name="error"), STOP, DONE))
    assert (await failed_chat(backend))[1].reason is Reason.BACKEND_ERROR


async def test_an_event_that_is_no_chunk_ends_the_stream_after_the_text_before_it(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.stream(event(text("Half")) + event("{nonsense"), STOP, DONE))
    before, failure = await failed_chat(backend)
    assert (before, failure.reason) == ("Half", Reason.BACKEND_CONTRACT)
    assert "nonsense" not in failure.message
    assert "nonsense" in failure.words


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(failed_midway("Half"), id="done"),
        pytest.param(Reply.stream(event(text("Half"))), id="the end of the body"),
        pytest.param(Reply.until_eof(event(text("Half"))), id="the end of the connection"),
        pytest.param(Reply.stream(event(text("Half")), Close()), id="a body broken off"),
        pytest.param(
            Reply.stream(event(text("Half")), b'data: {"cho', Close()), id="half an event"
        ),
        pytest.param(Reply.until_eof(event(text("Half")), b'data: {"cho'), id="half an event, EOF"),
        pytest.param(Reply.stream(event(text("Half")), Reset()), id="a reset"),
        pytest.param(Reply.until_eof(event(text("Half")), Reset()), id="a reset without framing"),
        pytest.param(
            Reply.raw(
                head(200, {"Content-Type": "text/event-stream", "Content-Length": "999"}),
                event(text("Half")),
                Close(),
            ),
            id="a length fallen short of",
        ),
        pytest.param(Reply.stream(event(text("Half")), event(usage()), DONE), id="usage, done"),
    ],
)
async def test_a_stream_that_ends_without_a_finish_reason_is_truncated(
    fake: FakeServer, backend: OpenAIBackend, reply: Reply
) -> None:
    fake.script(CHAT, reply)
    before, failure = await failed_chat(backend)
    assert (before, failure.reason) == ("Half", Reason.STREAM_TRUNCATED)


async def test_a_server_killed_in_mid_stream_has_truncated_its_answer(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.replay(KILLED))
    before, failure = await failed_chat(backend)
    assert before.startswith("In a small,")
    assert failure.reason is Reason.STREAM_TRUNCATED


@pytest.mark.parametrize("reply", [Reply.stream(), Reply.stream(DONE), Reply.stream(b": ping\n\n")])
async def test_a_stream_with_nothing_in_it_is_truncated(
    fake: FakeServer, backend: OpenAIBackend, reply: Reply
) -> None:
    fake.script(CHAT, reply)
    assert (await failed_chat(backend))[1].reason is Reason.STREAM_TRUNCATED


async def test_a_body_whose_framing_is_broken_is_hung_up_on(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    """aiohttp tells its reader nothing of it: what is left is bounded by the call's own time."""
    steps = Reply.stream(event(text("Half"))).steps[:-1]
    fake.script(CHAT, Reply((*steps, Send(b"zz\r\nnonsense\r\n"), Stall())))
    events = backend.chat("m", CALL, connect_s=1)
    async with asyncio.timeout(PATIENCE_S), aclosing(events):
        assert isinstance(await anext(events), Begun)
        assert await anext(events) == Delta("Half")
        waiting = asyncio.create_task(anext(events))
        await fake.client_gone()
        waiting.cancel()
        with pytest.raises((asyncio.CancelledError, Failure)):
            await waiting


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply.stream(*answer_events(["a"], done=False)), id="no done"),
        pytest.param(Reply.until_eof(*answer_events(["a"], done=False)), id="no done, EOF"),
        pytest.param(Reply.until_eof(event(text("a")), STOP, b"data: [DONE]"), id="half a done"),
        pytest.param(Reply.stream(event(text("a")), STOP, DONE), id="no usage"),
        pytest.param(Reply.stream(event(text("a")), STOP, Close()), id="broken off after it"),
        pytest.param(Reply.stream(event(chunk({"content": "a"}, "stop")), DONE), id="at once"),
        pytest.param(
            Reply.stream(*answer_events(["a"]), Close()), id="a body broken off after done"
        ),
    ],
)
async def test_a_finish_reason_makes_an_answer_whole_however_its_stream_ends(
    fake: FakeServer, backend: OpenAIBackend, reply: Reply
) -> None:
    fake.script(CHAT, reply)
    assert (await chat(backend))[0] == "a"


async def test_llamafarms_canned_apology_cannot_be_told_from_an_answer(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    """It is a whole stream with `finish_reason: "stop"`; only LlamaFarm's own adapter can know."""
    fake.script(CHAT, apology())
    content, end = await chat(backend)
    assert content.startswith("I notice my previous")
    assert end.usage.source is UsageSource.MISSING


# --- answers other than 2xx --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply.json({"error": {"code": 401, "message": "Xyzzy-7"}}, 401), Reason.BACKEND_AUTH),
        (Reply.json({"detail": "Xyzzy-7"}, 404), Reason.BACKEND_REJECTED),
        (Reply.json({"detail": [{"msg": "Xyzzy-7"}]}, 422), Reason.BACKEND_REJECTED),
        (Reply.json({"error": "Xyzzy-7"}, 500), Reason.BACKEND_ERROR),
        (Reply.json({"error": {"message": "Xyzzy-7"}}, 501), Reason.CAPABILITY_UNSUPPORTED),
        (Reply.json({"error": {"message": "Loading model"}}, 503), Reason.BACKEND_UNAVAILABLE),
        (Reply.html(502), Reason.BACKEND_UNAVAILABLE),
        (Reply.html(404), Reason.BACKEND_REJECTED),
        (Reply.body(b"\xff\xfe", 500), Reason.BACKEND_ERROR),
    ],
)
async def test_an_error_status_has_its_reason_for_each_method(
    fake: FakeServer, backend: OpenAIBackend, reply: Reply, reason: Reason
) -> None:
    fake.always(ANY, reply)
    assert (await failed_chat(backend))[1].reason is reason
    for call in (backend.embed("m", EMBED, connect_s=1), backend.models()):
        failure = await failed(call)
        assert failure.reason is reason
        assert "Xyzzy-7" not in failure.message
    assert fake.connections == 1  # an error is no reason to give a connection up


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llama-cpp-server/errors/too_long.resp.txt", Reason.CONTEXT_OVERFLOW),
        ("llama-cpp-server/errors/message_content_image.resp.txt", Reason.UNSUPPORTED_PARAMETER),
        ("llama-cpp-server/errors/tools_not_array.resp.txt", Reason.BACKEND_ERROR),
        ("llama-cpp-server/minilm/chat.resp.txt", Reason.BACKEND_ERROR),
        ("llamafarm-2025-08/chat_badtypes.resp.txt", Reason.BACKEND_REJECTED),
        ("llamafarm-2025-08/get_v1_projects_default_nope.resp.txt", Reason.BACKEND_REJECTED),
    ],
)
async def test_a_recorded_error_has_its_reason(
    fake: FakeServer, backend: OpenAIBackend, name: str, reason: Reason
) -> None:
    fake.script(CHAT, Reply.replay(name))
    assert (await failed_chat(backend))[1].reason is reason


async def test_a_busy_backends_retry_after_is_passed_on(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.json({}, 429, headers={"Retry-After": "3"}))
    _, failure = await failed_chat(backend)
    assert (failure.reason, failure.retry_delay_s) == (Reason.BACKEND_BUSY, 3.0)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(
    fake: FakeServer, backend: OpenAIBackend, status: int
) -> None:
    fake.script(CHAT, Reply.body("", status, headers={"Location": f"{fake.url}/elsewhere"}))
    assert (await failed_chat(backend))[1].reason is Reason.BACKEND_CONTRACT
    assert [request.path for request in fake.requests] == [CHAT]


async def test_an_answer_that_is_compressed_although_it_should_not_be_is_told_as_that(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    headers = {"Content-Encoding": "gzip"}
    fake.script(CHAT, Reply.stream(b"\x1f\x8b", headers=headers))
    fake.script(EMBEDDINGS, Reply.json({}, headers=headers))
    _, failure = await failed_chat(backend)
    with pytest.raises(Failure) as embedding:
        await soon(backend.embed(MODEL, EMBED, connect_s=PATIENCE_S))
    for item in (failure, embedding.value):
        assert item.reason is Reason.BACKEND_CONTRACT
        assert "its answer is compressed (gzip)" in item.message


async def test_an_oversized_error_body_is_cut_and_its_status_kept(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.body("x" * 1_000_000, 401))
    _, failure = await failed_chat(backend)
    assert failure.reason is Reason.BACKEND_AUTH
    assert len(failure.words) <= wire.MAX_WORDS


@pytest.mark.parametrize("end", [Close(), Reset(), Stall()], ids=["closed", "reset", "stalled"])
async def test_the_status_of_an_error_counts_whatever_becomes_of_its_body(
    fake: FakeServer, backend: OpenAIBackend, end: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "WORDS_S", 0.1)
    fields = {"Content-Type": "application/json", "Content-Length": "99", "Retry-After": "3"}
    fake.script(CHAT, Reply.raw(head(429, fields) + b"{", end))
    _, failure = await failed_chat(backend)
    assert (failure.reason, failure.retry_delay_s) == (Reason.BACKEND_BUSY, 3.0)


async def test_a_server_that_refuses_a_large_request_unread_can_be_asked_again(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(401, {"Content-Length": "2"}) + b"{}")
        await gone.wait()  # and reads no more than its buffers take
        writer.transport.abort()

    gone = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0, limit=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    call = replace(CALL, messages=(Message("user", "x" * 10_000_000),))
    async with server, aclosing(OpenAIBackend(WireSettings("x", url))) as client:
        for _ in range(2):
            _, failure = await read(client, call)
            assert failure is not None
            assert failure.reason is Reason.BACKEND_AUTH
        gone.set()


# --- connections that go wrong -----------------------------------------------------------------


async def test_a_refused_connection_is_unavailable() -> None:
    with sockets.refusing() as address:
        failure = await connecting_fails(f"http://{address}/v1")
    assert failure.reason is Reason.BACKEND_UNAVAILABLE
    assert f"connection refused at {address}" in failure.message


async def test_a_host_name_without_an_address_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    failure = await connecting_fails("http://nowhere.invalid:80/v1")
    assert failure.reason is Reason.BACKEND_UNAVAILABLE
    assert "the host name cannot be resolved at nowhere.invalid:80" in failure.message


async def test_a_connection_that_is_not_made_in_time_is_out_of_time_while_connecting() -> None:
    with sockets.unanswering() as address:
        failure = await connecting_fails(f"http://{address}/v1", connect_s=0.1)
    assert failure.reason is Reason.DEADLINE_EXCEEDED
    assert failure.metadata["phase"] == Phase.CONNECT
    assert address in failure.message


async def test_a_call_with_less_time_to_connect_than_the_settings_say_has_less() -> None:
    with sockets.unanswering() as address:
        settings = WireSettings("x", f"http://{address}/v1", connect_s=60)
        async with aclosing(OpenAIBackend(settings)) as backend:
            _, failure = await failed_chat(backend, connect_s=0.1)
    assert failure.metadata["phase"] == Phase.CONNECT


async def test_tls_to_a_server_without_it_is_unavailable(fake: FakeServer) -> None:
    failure = await connecting_fails(f"https://127.0.0.1:{fake.port}/v1")
    assert failure.reason is Reason.BACKEND_UNAVAILABLE


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply.raw(Close()), id="nothing"),
        pytest.param(Reply.raw(Reset()), id="a reset"),
        pytest.param(Reply.raw(b"HTTP/1.1 200 OK\r\nContent-Ty", Close()), id="half the headers"),
    ],
)
async def test_a_connection_closed_before_the_headers_is_unavailable(
    fake: FakeServer, backend: OpenAIBackend, reply: Reply
) -> None:
    fake.always(ANY, reply)
    failure = await connecting_fails(fake.base_url)
    assert failure.reason is Reason.BACKEND_UNAVAILABLE
    assert "the connection was closed before an answer" in failure.message


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="SSH"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n", id="TLS"),
        pytest.param(b"HTTP/1.1 OK\r\n\r\n", id="no status"),
        pytest.param(b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", id="no header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, id="too large a header"),
    ],
)
async def test_what_is_no_http_is_a_breach_of_contract(
    fake: FakeServer, backend: OpenAIBackend, garbage: bytes
) -> None:
    fake.always(ANY, Reply.raw(garbage, Stall()))
    failure = await connecting_fails(fake.base_url)
    assert failure.reason is Reason.BACKEND_CONTRACT
    assert "not HTTP" in failure.message


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
async def test_proxies_of_the_environment_are_ignored(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with sockets.refusing() as address:
        monkeypatch.setenv(name, f"http://{address}")
        for other in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(other, raising=False)
        async with aclosing(OpenAIBackend(WireSettings("x", fake.base_url))) as backend:
            assert (await chat(backend))[0] == "Hello world"
    assert fake.requests[0].headers["host"] == f"127.0.0.1:{fake.port}"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_cookie_that_a_backend_sets_is_not_carried_to_another_call(
    fake: FakeServer, host: str
) -> None:
    reply = Reply.stream(*answer_events(), headers={"Set-Cookie": "who=first; Path=/"})
    fake.script(CHAT, reply)
    settings = WireSettings("x", f"http://{host}:{fake.port}/v1")
    async with aclosing(OpenAIBackend(settings)) as backend:
        await chat(backend)
        await chat(backend)
    assert "cookie" not in fake.requests[1].headers


# --- sizes -------------------------------------------------------------------------------------


async def test_an_event_larger_than_the_limit_is_a_breach_of_contract(
    fake: FakeServer, backend: OpenAIBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_EVENT_BYTES", 1_000)
    endless = Send(b"x" * 100, times=20)
    fake.script(CHAT, Reply.stream(event(text("a")), b"data: ", endless, Stall()))
    before, failure = await failed_chat(backend)
    assert (before, failure.reason) == ("a", Reason.BACKEND_CONTRACT)
    await fake.client_gone()


@pytest.mark.parametrize("framing", [Reply.stream, Reply.until_eof])
async def test_a_body_larger_than_the_limit_is_a_breach_of_contract(
    fake: FakeServer, backend: OpenAIBackend, monkeypatch: pytest.MonkeyPatch, framing: Any
) -> None:
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 1_000)
    endless = framing(Send(b" " * 100, times=20), Stall(), content_type="application/json")
    fake.always(ANY, endless)
    assert (await failed_chat(backend))[1].reason is Reason.BACKEND_CONTRACT
    for call in (backend.embed("m", EMBED, connect_s=1), backend.models()):
        failure = await failed(call)
        assert failure.reason is Reason.BACKEND_CONTRACT
        assert "larger than 1000 bytes" in failure.message
    await fake.settled(0)


# --- leaving -----------------------------------------------------------------------------------


async def cancelled_chat(fake: FakeServer, backend: OpenAIBackend) -> None:
    """Cancels a chat when its request has come; the server must notice at once."""
    task = asyncio.create_task(read(backend))
    await fake.arrived()
    task.cancel()
    cancelled_at = asyncio.get_running_loop().time()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    assert await fake.client_gone() - cancelled_at < PROMPT_S
    await fake.settled(0)


async def test_a_call_that_is_cancelled_before_the_headers_closes_the_backends_socket(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.raw(Stall()))
    await cancelled_chat(fake, backend)


async def test_a_call_that_is_cancelled_before_the_first_token_closes_the_backends_socket(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.stream(Stall()))
    await cancelled_chat(fake, backend)


async def test_a_call_that_is_cancelled_while_a_model_loads_gives_the_load_up() -> None:
    cold = ColdModel()
    async with (
        FakeServer(Ollama(cold=cold)) as fake,
        aclosing(OpenAIBackend(WireSettings("x", fake.base_url))) as backend,
    ):
        await cancelled_chat(fake, backend)
        assert (cold.begun, cold.aborted) == (1, 1)


async def test_a_call_waits_for_a_model_to_load_without_a_limit_of_its_own(
    fake: FakeServer,
) -> None:
    cold = ColdModel()
    fake.script(CHAT, Reply.stream(*answer_events()).after(Load(cold)))
    settings = WireSettings("x", fake.base_url, connect_s=0.05)
    async with aclosing(OpenAIBackend(settings)) as backend:
        task = asyncio.create_task(chat(backend))
        await fake.arrived()
        assert await asyncio.wait({task}, timeout=0.1) == (set(), {task})
        cold.finish()
        assert (await soon(task))[0] == "Hello world"


@pytest.mark.parametrize("way", ["cancel", "close"])
async def test_a_stream_that_is_left_halfway_closes_the_backends_socket(
    fake: FakeServer, backend: OpenAIBackend, way: str
) -> None:
    fake.script(CHAT, Reply.stream(event(text("a")), Stall()))
    events = backend.chat("m", CALL, connect_s=1)
    async with asyncio.timeout(PATIENCE_S), aclosing(events):
        while not isinstance(await anext(events), Delta):
            pass
        if way == "cancel":
            waiting = asyncio.create_task(anext(events))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            await events.aclose()
        left_at = asyncio.get_running_loop().time()
        assert await fake.client_gone() - left_at < PROMPT_S


async def test_an_endless_stream_that_is_left_is_not_read_to_its_end(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.stream(Send(event(text("x")), times=10**9)))
    events = backend.chat("m", CALL, connect_s=1)
    async with asyncio.timeout(PATIENCE_S), aclosing(events):
        while not isinstance(await anext(events), Delta):
            pass
    left_at = asyncio.get_running_loop().time()
    assert await fake.client_gone() - left_at < PROMPT_S


async def test_an_embedding_that_is_cancelled_closes_the_backends_socket(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(EMBEDDINGS, Reply.raw(Stall()))
    task = asyncio.create_task(backend.embed("m", EMBED, connect_s=1))
    await fake.arrived()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    await fake.client_gone()


async def test_a_failed_stream_leaves_no_connection_open(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.stream(event({"error": "x"}), Stall()))
    await failed_chat(backend)
    await fake.client_gone()
    await fake.settled(0)


async def test_closing_the_backend_closes_its_connections(fake: FakeServer) -> None:
    backend = OpenAIBackend(WireSettings("x", fake.base_url))
    await chat(backend)
    assert fake.open_connections == 1
    await soon(backend.aclose())
    await fake.settled(0)


# --- connections used again --------------------------------------------------------------------


async def test_a_connection_is_used_again_after_each_kind_of_call(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    for _ in range(2):
        await chat(backend)
        await soon(backend.embed("m", EMBED, connect_s=1))
        await soon(backend.models())
    assert fake.connections == 1


async def test_a_connection_is_used_again_when_the_end_of_the_body_comes_after_done(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    done = asyncio.Event()
    fake.script(CHAT, Reply.stream(*answer_events(), Until(done)))
    task = asyncio.create_task(chat(backend))
    await fake.arrived()
    asyncio.get_running_loop().call_later(wire.DRAIN_S / 5, done.set)
    assert (await soon(task))[0] == "Hello world"
    await chat(backend)
    assert fake.connections == 1


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(tuple(answer_events()), id="usage and done"),
        pytest.param(tuple(answer_events(usage=None)), id="done"),
        pytest.param(tuple(answer_events(done=False)), id="usage"),
    ],
)
async def test_a_server_that_keeps_a_finished_stream_open_does_not_hold_the_answer_up(
    fake: FakeServer, backend: OpenAIBackend, events: tuple[bytes, ...]
) -> None:
    fake.script(CHAT, Reply.stream(*events, Stall()))
    assert (await chat(backend))[0] == "Hello world"
    await fake.client_gone()
    assert (await chat(backend))[0] == "Hello world"
    assert fake.connections == 2


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(CHAT, Reply.raw(*Reply.stream(*answer_events()).steps, Close()))
    await chat(backend)
    await fake.settled(0)
    assert (await chat(backend))[0] == "Hello world"


async def test_calls_at_the_same_time_have_a_connection_each(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    everyone = asyncio.Event()
    fake.always(CHAT, Reply.stream(Until(everyone), *answer_events()))
    tasks = [asyncio.create_task(chat(backend)) for _ in range(150)]
    await fake.arrived(150)  # more than httpx's own default of 100
    everyone.set()
    assert {content for content, _ in await soon(asyncio.gather(*tasks))} == {"Hello world"}
    assert fake.connections == 150


# --- models ------------------------------------------------------------------------------------


async def test_models_are_listed_with_what_the_server_says_of_them(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script("/v1/models", Reply.replay("llama-cpp-server/get_v1_models.resp.txt"))
    (model,) = await soon(backend.models())
    assert (model.id, model.owned_by) == ("smollm2-135m-instruct", "llamacpp")
    assert (model.context_length, model.size_bytes) == (4096, 96_576_768)
    assert model.state is ModelState.LOADED
    assert model.accepts_images is False
    assert fake.requests[0].method == "GET"


async def test_models_of_other_servers_have_other_fields(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    cards = [
        {"id": "v", "max_model_len": 32_768},
        {"id": "o", "context_length": 8_192, "architecture": {"input_modalities": ["image"]}},
        {"id": "bare", "meta": None, "owned_by": None, "description": None},
    ]
    fake.script("/v1/models", Reply.json({"data": cards}))
    models = await soon(backend.models())
    assert [(m.id, m.context_length, m.accepts_images) for m in models] == [
        ("v", 32_768, None),
        ("o", 8_192, True),
        ("bare", 0, None),
    ]
    assert {m.state for m in models} == {ModelState.UNKNOWN}


@pytest.mark.parametrize("data", [None, []])
async def test_no_models_are_none_also_where_the_server_says_null(
    fake: FakeServer, backend: OpenAIBackend, data: Any
) -> None:
    fake.script("/v1/models", Reply.json({"object": "list", "data": data}))
    assert await soon(backend.models()) == ()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply.html(), id="a web page"),
        pytest.param(Reply.json({}), id="no list"),
        pytest.param(Reply.json({"data": [{"name": "m"}]}), id="no id"),
        pytest.param(Reply.json({"data": {"m": {}}}), id="an object"),
        pytest.param(Reply.body(b'{"data": [{"id": "\xff"}]}'), id="no characters"),
        pytest.param(Reply.body(b'{"x": ' + b"[" * 60_000), id="a deep nest"),
    ],
)
async def test_what_is_no_list_of_models_is_a_breach_of_contract(
    fake: FakeServer, backend: OpenAIBackend, reply: Reply
) -> None:
    fake.script("/v1/models", reply)
    assert (await failed(backend.models())).reason is Reason.BACKEND_CONTRACT


# --- embeddings --------------------------------------------------------------------------------


async def test_recorded_vectors_are_read(fake: FakeServer, backend: OpenAIBackend) -> None:
    fake.script(EMBEDDINGS, Reply.replay("llama-cpp-server/embflag/emb_two.resp.txt"))
    answer = await soon(backend.embed("m", EMBED, connect_s=1))
    assert [len(vector) for vector in answer.vectors] == [576, 576]
    assert answer.usage.source is UsageSource.REPORTED
    assert answer.usage.completion_tokens == 0
    assert fake.requests[0].json["input"] == ["a", "b"]


async def test_vectors_out_of_order_are_put_in_order(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    answer = embeddings([[1.0], [2.0]])
    answer["data"].reverse()
    fake.script(EMBEDDINGS, Reply.json(answer))
    assert (await soon(backend.embed("m", EMBED, connect_s=1))).vectors == ([1.0], [2.0])


async def test_vectors_without_an_index_are_in_order(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    data = [{"embedding": [1]}, {"embedding": [2]}]
    fake.script(EMBEDDINGS, Reply.json({"data": data}))
    answer = await soon(backend.embed("m", EMBED, connect_s=1))
    assert answer.vectors == ([1.0], [2.0])
    assert (answer.model, answer.usage.source) == ("m", UsageSource.MISSING)


def indexed(*indexes: int) -> Any:
    return {"data": [{"index": index, "embedding": [1.0]} for index in indexes]}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(embeddings([[1.0]]), id="too few"),
        pytest.param(embeddings([[1.0], [2.0], [3.0]]), id="too many"),
        pytest.param(embeddings([]), id="none"),
        pytest.param(indexed(0, 0), id="one index twice"),
        pytest.param(indexed(1, 2), id="an index too many"),
        pytest.param(embeddings([[1.0], [1.0, 2.0]]), id="two lengths"),
        pytest.param(embeddings([[], []]), id="empty ones"),
        pytest.param({"data": None}, id="null"),
        pytest.param({"object": "list"}, id="no data"),
        pytest.param({"data": [{"embedding": [None]}, {"embedding": [1]}]}, id="a null in one"),
        pytest.param({"data": [{"embedding": "AAAA"}, {"embedding": "AAAA"}]}, id="base64"),
        pytest.param({"data": [{"embedding": [[1.0]]}] * 2}, id="one a token"),
    ],
)
async def test_vectors_that_are_not_one_a_text_are_a_breach_of_contract(
    fake: FakeServer, backend: OpenAIBackend, answer: Any
) -> None:
    fake.script(EMBEDDINGS, Reply.json(answer))
    failure = await failed(backend.embed("m", EMBED, connect_s=1))
    assert failure.reason is Reason.BACKEND_CONTRACT


@pytest.mark.parametrize(
    "reply",
    [
        Reply.html(),
        Reply.replay("llama-cpp-server/embflag/emb_b64.resp.txt"),
        Reply.body(b'{"data": [{"embedding": "\xff'),
        Reply.body(b"[" * 60_000),
    ],
)
async def test_what_is_no_list_of_vectors_is_a_breach_of_contract(
    fake: FakeServer, backend: OpenAIBackend, reply: Reply
) -> None:
    fake.script(EMBEDDINGS, reply)
    call = backend.embed("m", replace(EMBED, input=("a",)), connect_s=1)
    assert (await failed(call)).reason is Reason.BACKEND_CONTRACT


async def test_a_number_of_dimensions_that_the_backend_ignores_is_told(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(EMBEDDINGS, Reply.replay("llama-cpp-server/embflag/emb_dims.resp.txt"))
    call = EmbedCall(Target(), ("a",), dimensions=64)
    failure = await failed(backend.embed("m", call, connect_s=1))
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert [violation.field for violation in failure.violations] == ["dimensions"]
    assert "576" in failure.message
    assert fake.requests[0].json["dimensions"] == 64


async def test_a_server_started_without_embeddings_says_so(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(EMBEDDINGS, Reply.replay("llama-cpp-server/embeddings_noflag.resp.txt"))
    failure = await failed(backend.embed("m", EMBED, connect_s=1))
    assert failure.reason is Reason.CAPABILITY_UNSUPPORTED


async def test_a_text_too_long_to_embed_is_an_overflow_although_the_status_is_500(
    fake: FakeServer, backend: OpenAIBackend
) -> None:
    fake.script(EMBEDDINGS, Reply.replay("llama-cpp-server/embflag/emb_long_ubatch.resp.txt"))
    failure = await failed(backend.embed("m", EMBED, connect_s=1))
    assert failure.reason is Reason.CONTEXT_OVERFLOW


@pytest.mark.parametrize(
    "reply",
    [Reply.body(b'{"data": [', headers={"Content-Length": "99"}).after(), Reply.stream(b"{")],
)
async def test_vectors_that_break_off_are_a_failure(
    fake: FakeServer, backend: OpenAIBackend, reply: Reply
) -> None:
    fake.script(EMBEDDINGS, Reply.raw(*reply.steps, Close()))
    failure = await failed(backend.embed("m", EMBED, connect_s=1))
    assert failure.reason in (Reason.STREAM_TRUNCATED, Reason.BACKEND_CONTRACT)


async def test_a_finished_stream_that_stays_open_without_usage_is_an_answer(
    fake: FakeServer, backend: OpenAIBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_calls, "TAIL_S", 0.05)
    fake.script(CHAT, Reply.stream(event(text("Hi")), STOP, Stall()))
    said, end = await chat(backend)
    assert (said, end.usage.source) == ("Hi", UsageSource.MISSING)


@pytest.mark.parametrize(
    "told",
    [
        event({"object": "error", "message": "x", "code": 400}),
        event({"message": "x"}, name="error"),
    ],
)
async def test_an_error_that_is_not_inside_of_error_is_told_as_one(
    fake: FakeServer, backend: OpenAIBackend, told: bytes
) -> None:
    fake.script(CHAT, Reply.stream(event(text("Hi")), told))
    said, failure = await failed_chat(backend)
    assert said == "Hi"
    assert failure.reason in (Reason.BACKEND_REJECTED, Reason.BACKEND_ERROR)
