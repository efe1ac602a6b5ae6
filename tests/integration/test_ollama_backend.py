"""Ollama's own API against a server that does what its sources do, one test a trap."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from atmosphere_grpc import config
from atmosphere_grpc.backends import wire
from atmosphere_grpc.backends.ollama import OllamaBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.domain import (
    BackendEvent,
    Begun,
    Capability,
    ChatCall,
    Delta,
    EmbedCall,
    Finished,
    FinishReason,
    Image,
    Message,
    Model,
    ModelState,
    Sampling,
    Target,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageSource,
)
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations.integration import Integration
from tests.fakes import (
    ANY,
    MODEL,
    PATIENCE_S,
    Close,
    ColdModel,
    FakeServer,
    Load,
    Ollama,
    Reply,
    Reset,
    Send,
    Stall,
    Until,
    sockets,
)
from tests.fakes.ollama import (
    BUSY,
    DEFAULT_CONTEXT,
    Stored,
    error_line,
    line,
    lines,
    tool_call_message,
)
from tests.fakes.reply import head
from tests.integration.conftest import until

CHAT, EMBEDDINGS = "/api/chat", "/api/embed"
TAGS, PS, SHOW = "/api/tags", "/api/ps", "/api/show"
CALL = ChatCall(Target(), (Message("user", "Hi"),))
EMBED = EmbedCall(Target(), ("a", "b"))
TOOLS = (Tool("now"), Tool("weather"))
END = line(done="stop")
REPORTED = Usage(7, 3, 10, source=UsageSource.REPORTED)
#: More characters than the default context holds.
LONG = "x" * 4 * (DEFAULT_CONTEXT + 1)
#: How soon a backend must notice that it is no longer wanted, in seconds.
PROMPT_S = 0.1
T = TypeVar("T")


@pytest.fixture
def dialect() -> Ollama:
    return Ollama()


@pytest.fixture
async def fake(dialect: Ollama) -> AsyncIterator[FakeServer]:
    async with FakeServer(dialect) as server:
        yield server


@pytest.fixture
async def backend(fake: FakeServer) -> AsyncIterator[OllamaBackend]:
    async with aclosing(OllamaBackend(WireSettings("x", fake.url))) as client:
        yield client


@asynccontextmanager
async def over(
    dialect: Ollama, context_length: int | None = None
) -> AsyncIterator[tuple[FakeServer, OllamaBackend]]:
    """A server and what speaks to it."""
    async with (
        FakeServer(dialect) as fake,
        aclosing(OllamaBackend(WireSettings("x", fake.url), context_length)) as backend,
    ):
        yield fake, backend


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


async def read(
    backend: OllamaBackend, call: ChatCall = CALL, model: str = MODEL
) -> tuple[list[BackendEvent], Failure | None]:
    """All that a chat yields, and how it failed if it did."""
    events: list[BackendEvent] = []
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            aclosing(backend.chat(model, call, connect_s=PATIENCE_S)) as chat,
        ):
            async for value in chat:
                events.append(value)  # noqa: PERF401 - those before a failure count
    except Failure as failure:
        return events, failure
    return events, None


def deltas_in(events: list[BackendEvent]) -> list[Delta]:
    return [value for value in events if isinstance(value, Delta)]


async def answer(
    backend: OllamaBackend, call: ChatCall = CALL, model: str = MODEL
) -> tuple[Delta, Finished]:
    """A whole answer as one delta, and its end; checks that it begins, and ends, once."""
    events, failure = await read(backend, call, model)
    assert failure is None, f"{failure.reason}: {failure.message} ({failure.detail})"
    kinds = [type(value) for value in events]
    assert (kinds[0], kinds.count(Begun)) == (Begun, 1)
    assert (kinds[-1], kinds.count(Finished)) == (Finished, 1)
    end = events[-1]
    assert isinstance(end, Finished)
    deltas = deltas_in(events)
    whole = Delta(
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        tuple(call for delta in deltas for call in delta.tool_calls),
        tuple(token for delta in deltas for token in delta.logprobs),
    )
    return whole, end


async def failed_chat(backend: OllamaBackend, call: ChatCall = CALL) -> tuple[str, Failure]:
    """The text that came before a failure, and that."""
    events, failure = await read(backend, call)
    assert failure is not None, f"no failure, but {events}"
    assert not any(isinstance(value, Finished) for value in events)
    return "".join(delta.content for delta in deltas_in(events)), failure


async def failed(awaitable: Awaitable[Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        await soon(awaitable)
    return caught.value


async def ignored(awaitable: Awaitable[object]) -> None:
    await awaitable


async def gone_after(fake: FakeServer, task: asyncio.Task[None]) -> float:
    """Cancels a call; how many seconds later the server notices."""
    task.cancel()
    cancelled_at = asyncio.get_running_loop().time()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    return await fake.client_gone() - cancelled_at


def bodies(fake: FakeServer, path: str) -> list[Any]:
    """What was asked at a path."""
    return [request.json for request in fake.requests if request.path == path]


def contexts(fake: FakeServer) -> list[int | None]:
    """The contexts that requests asked for, in order."""
    asked = [request.json for request in fake.requests if request.path in (CHAT, EMBEDDINGS)]
    return [body.get("options", {}).get("num_ctx") for body in asked]


# --- what works --------------------------------------------------------------------------------


async def test_a_stream_begins_flows_and_ends(fake: FakeServer, backend: OllamaBackend) -> None:
    fake.script(CHAT, lines(line({"content": "Hello"}), line({"content": " world"}), END))
    events, failure = await read(backend)
    assert failure is None
    assert events == [
        Begun(model=MODEL),
        Delta("Hello"),
        Delta(" world"),
        Finished(FinishReason.STOP, REPORTED),
    ]


async def test_a_request_is_json_for_a_stream_with_the_integrations_headers(
    fake: FakeServer,
) -> None:
    settings = WireSettings("x", fake.url + "/", headers={"authorization": "Bearer key"})
    async with aclosing(OllamaBackend(settings)) as backend:
        await answer(backend)
    (request,) = fake.requests
    assert (request.method, request.path, request.query) == ("POST", CHAT, "")
    assert request.json["stream"] is True
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["authorization"] == "Bearer key"


async def test_lines_that_arrive_together_leave_together_and_others_when_they_come(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    seen = asyncio.Event()
    together = line({"thinking": "Hm"}) + line({"content": "a"}) + line({"content": "b"})
    fake.script(CHAT, lines(together, Until(seen), line({"content": "c"}), END))
    async with (
        asyncio.timeout(PATIENCE_S),
        aclosing(backend.chat(MODEL, CALL, connect_s=1)) as events,
    ):
        assert isinstance(await anext(events), Begun)
        assert await anext(events) == Delta("ab", "Hm")
        seen.set()
        assert await anext(events) == Delta("c")


async def test_what_comes_with_the_last_line_comes_before_the_end(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    fake.script(CHAT, lines(line({"content": "a"}) + line({"content": "b"}, done="stop")))
    events, _ = await read(backend)
    assert events[1:] == [Delta("ab"), Finished(FinishReason.STOP, REPORTED)]


@pytest.mark.parametrize("size", [1, 3])
async def test_an_answer_that_is_dripped_is_whole(
    fake: FakeServer, backend: OllamaBackend, size: int
) -> None:
    said = line({"content": "22 °C 😀"})
    raw = json.dumps({"message": {"content": "é😀"}}, ensure_ascii=False).encode() + b"\r\n"
    fake.script(CHAT, lines(said, b"\n", raw, END).dripped(size))
    assert (await answer(backend))[0].content == "22 °C 😀é😀"


async def test_a_character_split_between_two_writes_is_whole(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    data = json.dumps({"message": {"content": "😀"}}, ensure_ascii=False).encode() + b"\n"
    middle = data.index("😀".encode()) + 2
    fake.script(CHAT, lines(data[:middle], data[middle:], END))
    assert (await answer(backend))[0].content == "😀"


async def test_as_many_lines_as_can_be_sent_are_all_read(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    fake.script(CHAT, lines(Send(line({"content": "x"}), times=5_000), END))
    assert (await answer(backend))[0].content == "x" * 5_000


async def test_thinking_is_reasoning_and_can_be_declined() -> None:
    async with over(Ollama(thoughts=["Hm", "m."])) as (_, backend):
        thought, _ = await answer(backend)
        assert (thought.reasoning, thought.content) == ("Hmm.", "Hello world")
        silent, _ = await answer(backend, replace(CALL, extra={"think": False}))
        assert (silent.reasoning, silent.content) == ("", "Hello world")


@pytest.mark.parametrize("old", [False, True])
async def test_several_tool_calls_each_have_an_id_and_an_index(old: bool) -> None:
    asked = [("weather", {"city": "Köln"}), ("now", {})]
    async with over(Ollama(calls=asked, old=old)) as (_, backend):
        said, end = await answer(backend, replace(CALL, tools=TOOLS))
    assert [(call.index, call.name) for call in said.tool_calls] == [(0, "weather"), (1, "now")]
    assert [json.loads(call.arguments) for call in said.tool_calls] == [{"city": "Köln"}, {}]
    given = ["call_0", "call_1"] if old else ["call_00000000", "call_00000001"]
    assert [call.id for call in said.tool_calls] == given
    assert end.finish_reason is FinishReason.TOOL_CALLS  # where the server says "stop"


async def test_calls_in_one_read_are_one_delta(fake: FakeServer, backend: OllamaBackend) -> None:
    calls = [line(tool_call_message(name, {}, index=0)) for name in ("a", "b")]
    fake.script(CHAT, lines(b"".join(calls), END))
    events, _ = await read(backend)
    assert events[1] == Delta(
        tool_calls=(ToolCallDelta(0, "call_0", "a", "{}"), ToolCallDelta(1, "call_1", "b", "{}"))
    )


async def test_a_tools_answer_goes_back_under_its_tools_name(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    fake.script(CHAT, lines(line(tool_call_message("now", {"zone": "UTC"})), END))
    said, _ = await answer(backend, replace(CALL, tools=TOOLS))
    (made,) = said.tool_calls
    turn = (
        Message("assistant", tool_calls=(ToolCall(made.id, made.name, made.arguments),)),
        Message("tool", "noon", tool_call_id=made.id),
    )
    await answer(backend, replace(CALL, messages=(*CALL.messages, *turn), tools=TOOLS))
    _, called, told = bodies(fake, CHAT)[1]["messages"]
    assert called["tool_calls"] == [
        {"id": "call_0", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
    ]
    assert told["tool_name"] == "now"


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (line(done="stop"), FinishReason.STOP),
        (line(done="length"), FinishReason.LENGTH),
        (line(done="load"), FinishReason.OTHER),
        (line(done="unload"), FinishReason.OTHER),
        (line(done="what"), FinishReason.OTHER),
        (b'{"done": true}\n', FinishReason.OTHER),
    ],
)
async def test_the_end_has_the_servers_reason(
    fake: FakeServer, backend: OllamaBackend, last: bytes, reason: FinishReason
) -> None:
    fake.script(CHAT, lines(line({"content": "a"}), last))
    assert (await answer(backend))[1].finish_reason is reason


async def test_an_answer_that_reached_its_limit_was_cut_by_length(backend: OllamaBackend) -> None:
    said, end = await answer(backend, replace(CALL, sampling=Sampling(max_tokens=1)))
    assert (said.content, end.finish_reason) == ("Hello", FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({}, REPORTED),
        ({"eval_count": None}, Usage(7, 2, 9, source=UsageSource.ESTIMATED)),
        ({"eval_count": None, "prompt_eval_count": None}, Usage(source=UsageSource.MISSING)),
    ],
)
async def test_usage_is_reported_estimated_or_missing(
    fake: FakeServer, backend: OllamaBackend, counts: Any, usage: Usage
) -> None:
    last = line(done="stop", **counts)
    fake.script(CHAT, lines(line({"content": "a"}), line({"content": "b"}), last))
    assert (await answer(backend))[1].usage == usage


async def test_the_tokens_of_an_answer_are_those_that_the_server_counted(
    backend: OllamaBackend,
) -> None:
    call = replace(CALL, messages=(Message("user", "x" * 40),))
    assert (await answer(backend, call))[1].usage == Usage(10, 2, 12, source=UsageSource.REPORTED)


# --- a 200 proves nothing ----------------------------------------------------------------------


@pytest.mark.parametrize("newline", [b"", b"\n"])
async def test_plain_json_to_a_request_for_a_stream_is_a_whole_answer(
    fake: FakeServer, backend: OllamaBackend, newline: bytes
) -> None:
    whole = line({"content": "Hello", "thinking": "Hm"}, done="stop").strip() + newline
    fake.script(CHAT, Reply.body(whole, content_type="application/json; charset=utf-8"))
    said, end = await answer(backend)
    assert (said, end) == (Delta("Hello", "Hm"), Finished(FinishReason.STOP, REPORTED))


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply.html(), id="a web page"),
        pytest.param(Reply.body("Ollama is running"), id="text"),
        pytest.param(Reply.body("{}", content_type=""), id="no type"),
        pytest.param(Reply.body("", 204), id="no content"),
        pytest.param(Reply.stream(b"data: {}\n\n"), id="another dialect"),
    ],
)
async def test_a_200_of_another_type_is_a_breach_of_contract(
    fake: FakeServer, backend: OllamaBackend, reply: Reply
) -> None:
    fake.script(CHAT, reply)
    before, failure = await failed_chat(backend)
    assert (before, failure.reason) == ("", Reason.BACKEND_CONTRACT)
    assert "base_urls" in failure.message


@pytest.mark.parametrize("type_", ["APPLICATION/X-NDJSON; charset=utf-8", "application/x-ndjson;x"])
async def test_the_type_is_read_without_its_parameters_in_any_case(
    fake: FakeServer, backend: OllamaBackend, type_: str
) -> None:
    fake.script(CHAT, Reply.stream(line({"content": "a"}), END, content_type=type_))
    assert (await answer(backend))[0].content == "a"


async def test_an_error_in_plain_json_with_a_200_is_an_error(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    fake.script(CHAT, Reply.json({"error": "Xyzzy-7"}))
    _, failure = await failed_chat(backend)
    assert failure.reason is Reason.BACKEND_ERROR
    assert "Xyzzy-7" not in failure.message


# --- streams that go wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Xyzzy-7", Reason.BACKEND_ERROR),
        ("an error was encountered while running the model: Xyzzy-7", Reason.BACKEND_ERROR),
        ("Xyzzy-7: the input length exceeds the context length", Reason.CONTEXT_OVERFLOW),
    ],
)
@pytest.mark.parametrize("together", [False, True])
async def test_an_error_inside_the_stream_ends_it_after_the_text_before_it(
    fake: FakeServer, backend: OllamaBackend, said: str, reason: Reason, together: bool
) -> None:
    parts = [line({"content": "Half"}), error_line(said), line({"content": "more"}), END]
    fake.script(CHAT, lines(*([b"".join(parts)] if together else parts)))
    before, failure = await failed_chat(backend)
    assert (before, failure.reason) == ("Half", reason)
    assert "Xyzzy-7" not in failure.message
    assert "Xyzzy-7" in failure.words


async def test_an_error_as_the_first_line_is_no_beginning(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    fake.script(CHAT, lines(error_line("Xyzzy-7")))
    events, failure = await read(backend)
    assert events == []
    assert failure is not None
    assert failure.reason is Reason.BACKEND_ERROR


@pytest.mark.parametrize(
    "garbage", [b"{nonsense\n", b"nonsense\n", b'["nonsense"]\n', b'{"message": "nonsense"}\n']
)
async def test_a_line_that_is_none_ends_the_stream_after_the_text_before_it(
    fake: FakeServer, backend: OllamaBackend, garbage: bytes
) -> None:
    fake.script(CHAT, lines(line({"content": "Half"}) + garbage, END))
    before, failure = await failed_chat(backend)
    assert (before, failure.reason) == ("Half", Reason.BACKEND_CONTRACT)
    assert "nonsense" not in failure.message
    assert "nonsense" in failure.words


HALF = line({"content": "Half"})


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(lines(HALF), id="the end of the body"),
        pytest.param(
            Reply.until_eof(HALF, content_type="application/x-ndjson"), id="the connection's end"
        ),
        pytest.param(lines(HALF, Close()), id="a body broken off"),
        pytest.param(lines(HALF, b'{"mess', Close()), id="half a line"),
        pytest.param(lines(HALF, b'{"mess'), id="half a line, the end of the body"),
        pytest.param(lines(HALF, END[:-20]), id="half the last line"),
        pytest.param(lines(HALF, '{"x": "ü'.encode()[:-1]), id="half a character"),
        pytest.param(lines(HALF, Reset()), id="a reset"),
        pytest.param(
            Reply.raw(
                head(200, {"Content-Type": "application/x-ndjson", "Content-Length": "9999"}),
                HALF,
                Close(),
            ),
            id="a length fallen short of",
        ),
    ],
)
async def test_a_stream_that_ends_without_a_last_line_is_truncated(
    fake: FakeServer, backend: OllamaBackend, reply: Reply
) -> None:
    fake.script(CHAT, reply)
    before, failure = await failed_chat(backend)
    assert (before, failure.reason) == ("Half", Reason.STREAM_TRUNCATED)


@pytest.mark.parametrize("reply", [lines(), lines(b"\n\r\n"), Reply.json({})])
async def test_a_stream_with_nothing_in_it_is_truncated(
    fake: FakeServer, backend: OllamaBackend, reply: Reply
) -> None:
    fake.script(CHAT, reply)
    assert (await failed_chat(backend))[1].reason is Reason.STREAM_TRUNCATED


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(lines(line({"content": "a"}), END.strip()), id="no newline"),
        pytest.param(lines(line({"content": "a"}), END, Close()), id="a body broken off after it"),
        pytest.param(lines(line({"content": "a"}) + END + b"{nonsense\n"), id="more after it"),
        pytest.param(lines(line({"content": "a"}), END, Stall()), id="a stream kept open"),
    ],
)
async def test_a_last_line_makes_an_answer_whole_however_its_stream_ends(
    fake: FakeServer, backend: OllamaBackend, reply: Reply
) -> None:
    fake.script(CHAT, reply)
    assert (await answer(backend))[0].content == "a"


async def test_a_line_larger_than_the_limit_is_a_breach_of_contract(
    fake: FakeServer, backend: OllamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_EVENT_BYTES", 1_000)
    fake.script(CHAT, lines(line({"content": "a"}), Send(b"x" * 100, times=20), Stall()))
    before, failure = await failed_chat(backend)
    assert (before, failure.reason) == ("a", Reason.BACKEND_CONTRACT)
    assert "larger than 1000 bytes" in failure.message
    await fake.client_gone()


async def test_a_connection_is_used_again_after_each_kind_of_call(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    await soon(backend.models())
    before = fake.connections
    for _ in range(2):
        await answer(backend)
        await soon(backend.embed(MODEL, EMBED, connect_s=1))
        await soon(backend.models())
    assert fake.connections == before


# --- answers other than 2xx --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply.json({"error": "model 'Xyzzy-7' not found"}, 404), Reason.MODEL_NOT_FOUND),
        (Reply.body("404 page not found", 404), Reason.MODEL_NOT_FOUND),
        (
            Reply.json({"error": "Xyzzy-7 does not support tools"}, 400),
            Reason.UNSUPPORTED_PARAMETER,
        ),
        (
            Reply.json({"error": '"Xyzzy-7" does not support chat'}, 400),
            Reason.CAPABILITY_UNSUPPORTED,
        ),
        (
            Reply.json({"error": "the input length exceeds the context length"}, 400),
            Reason.CONTEXT_OVERFLOW,
        ),
        (Reply.json({"error": "Xyzzy-7"}, 400), Reason.BACKEND_REJECTED),
        (Reply.json({"error": "Xyzzy-7"}, 401), Reason.BACKEND_AUTH),
        (Reply.body("", 403), Reason.BACKEND_AUTH),
        (Reply.json({"error": "Xyzzy-7"}, 500), Reason.BACKEND_ERROR),
        (Reply.json({"error": BUSY}, 503), Reason.BACKEND_BUSY),
        (Reply.json({"error": "Xyzzy-7"}, 503), Reason.BACKEND_UNAVAILABLE),
        (Reply.html(502), Reason.BACKEND_UNAVAILABLE),
        (Reply.body("", 307, headers={"Location": "/elsewhere"}), Reason.BACKEND_CONTRACT),
    ],
)
async def test_an_error_status_has_its_reason_for_each_method(
    fake: FakeServer, backend: OllamaBackend, reply: Reply, reason: Reason
) -> None:
    fake.always(ANY, reply)
    listing = await failed(backend.models())
    for failure in (
        (await failed_chat(backend))[1],
        await failed(backend.embed(MODEL, EMBED, connect_s=1)),
        listing,
    ):
        # A server without a list of models is none of Ollama's.
        elsewhere = failure is listing and reason is Reason.MODEL_NOT_FOUND
        assert failure.reason is (Reason.BACKEND_CONTRACT if elsewhere else reason)
        assert failure.message.startswith('integration "x": ')
        assert "Xyzzy-7" not in failure.message


async def test_a_model_that_is_gone_is_told_as_such(
    dialect: Ollama, backend: OllamaBackend
) -> None:
    del dialect.models[MODEL]
    assert (await failed_chat(backend))[1].reason is Reason.MODEL_NOT_FOUND
    failure = await failed(backend.embed(MODEL, EMBED, connect_s=1))
    assert failure.reason is Reason.MODEL_NOT_FOUND


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_servers_retry_after_is_passed_on(
    fake: FakeServer, backend: OllamaBackend, status: int
) -> None:
    fake.always(ANY, Reply.json({"error": BUSY}, status, headers={"Retry-After": "3"}))
    for failure in (
        (await failed_chat(backend))[1],
        await failed(backend.embed(MODEL, EMBED, connect_s=1)),
    ):
        assert (failure.reason, failure.retry_delay_s) == (Reason.BACKEND_BUSY, 3.0)


async def test_a_server_whose_queue_is_full_is_busy(
    dialect: Ollama, backend: OllamaBackend
) -> None:
    dialect.busy = True
    failure = (await failed_chat(backend))[1]
    assert (failure.reason, failure.retry_delay_s) == (Reason.BACKEND_BUSY, 1.0)


PICTURE = Image(data=b"\x89PNG", media_type="image/png")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("call", "names"),
    [
        (replace(CALL, tools=TOOLS), "tools"),
        (replace(CALL, messages=(Message("user", parts=(PICTURE,)),)), "image"),
    ],
)
async def test_what_the_model_cannot_do_is_told_by_the_field_that_asks(
    call: ChatCall, names: str, old: bool
) -> None:
    plain = Stored(MODEL, ("completion",))
    async with over(Ollama(models=[plain], old=old)) as (_, backend):
        failure = (await failed_chat(backend, call))[1]
        assert failure.reason is Reason.UNSUPPORTED_PARAMETER
        assert names in failure.message
        assert (await answer(backend))[0].content == "Hello world"


async def test_thinking_that_the_model_cannot_is_told() -> None:
    async with over(Ollama(models=[Stored(MODEL, ("completion",))])) as (_, backend):
        failure = (await failed_chat(backend, replace(CALL, extra={"think": True})))[1]
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert "extra.think" in failure.message


async def test_a_model_that_only_embeds_does_not_chat() -> None:
    async with over(Ollama(models=[Stored(MODEL, ("embedding",))])) as (_, backend):
        assert (await failed_chat(backend))[1].reason is Reason.CAPABILITY_UNSUPPORTED


async def test_a_picture_is_sent_as_base64(fake: FakeServer, backend: OllamaBackend) -> None:
    await answer(backend, replace(CALL, messages=(Message("user", parts=("What?", PICTURE)),)))
    (message,) = bodies(fake, CHAT)[0]["messages"]
    assert message["images"] == [base64.b64encode(PICTURE.data).decode()]


# --- connections that go wrong -----------------------------------------------------------------


async def test_a_refused_connection_says_how_to_start_ollama() -> None:
    with sockets.refusing() as address:
        settings = config.Integration.model_validate(
            {"id": "x", "kind": "ollama", "base_urls": [f"http://{address}"]}
        )
        integration = integration_of(settings)
        assert isinstance(integration, Integration)
        backend = integration.endpoints[0].backend
        assert isinstance(backend, OllamaBackend)
        async with aclosing(backend):
            for failure in (
                (await failed_chat(backend))[1],
                await failed(backend.embed(MODEL, EMBED, connect_s=1)),
                await failed(backend.models()),
            ):
                assert failure.reason is Reason.BACKEND_UNAVAILABLE
                assert failure.message == (
                    f'integration "x": connection refused at {address} – is Ollama running? '
                    "(ollama serve)"
                )


@pytest.mark.parametrize(
    "reply", [Reply.raw(Close()), Reply.raw(Reset()), Reply.raw(b"HTTP/1.1 200 OK\r\nCo", Close())]
)
async def test_a_connection_closed_before_the_headers_is_unavailable(
    fake: FakeServer, backend: OllamaBackend, reply: Reply
) -> None:
    fake.always(ANY, reply)
    for failure in (
        (await failed_chat(backend))[1],
        await failed(backend.embed(MODEL, EMBED, connect_s=1)),
        await failed(backend.models()),
    ):
        assert failure.reason is Reason.BACKEND_UNAVAILABLE


# --- models ------------------------------------------------------------------------------------

CHATTER = Stored("chatter:1b", ("completion", "tools"))
SEER = Stored("seer:7b", ("completion", "vision", "insert"))
EMBEDDER = Stored("minilm:latest", ("embedding",), context=256)
CUT_OFF = Reply.body("{", headers={"Content-Length": "99"})


async def test_models_are_those_on_disk_and_what_each_can_do() -> None:
    async with over(Ollama(models=[CHATTER, SEER, EMBEDDER])) as (_, backend):
        models = await soon(backend.models())
    assert models == (
        Model(
            "chatter:1b",
            "ollama",
            ("chat",),
            DEFAULT_CONTEXT,
            97_000_000,
            ModelState.LOADED,
            "llama 135M Q4_K_M",
            accepts_images=False,
            accepts_tools=True,
        ),
        Model(
            "seer:7b",
            "ollama",
            ("chat", "vision"),
            0,
            97_000_000,
            ModelState.AVAILABLE,
            "llama 135M Q4_K_M",
            accepts_images=True,
            accepts_tools=False,
        ),
        Model(
            "minilm:latest",
            "ollama",
            ("embed",),
            0,
            97_000_000,
            ModelState.AVAILABLE,
            "llama 135M Q4_K_M",
            accepts_images=False,
            accepts_tools=False,
        ),
    )


async def test_which_models_are_in_memory_is_asked_each_time() -> None:
    dialect = Ollama(models=[CHATTER, SEER])
    async with over(dialect) as (_, backend):
        await soon(backend.models())
        dialect.resident.clear()
        dialect.resident[SEER.name] = 2048
        chatter, seer = await soon(backend.models())
    assert (chatter.state, chatter.context_length) == (ModelState.AVAILABLE, 0)
    assert (seer.state, seer.context_length) == (ModelState.LOADED, 2048)


async def test_an_old_server_says_neither_what_models_can_do_nor_their_contexts() -> None:
    async with over(Ollama(models=[CHATTER], old=True)) as (_, backend):
        (model,) = await soon(backend.models())
    assert (model.state, model.context_length) == (ModelState.LOADED, 0)
    assert (model.capabilities, model.accepts_images, model.accepts_tools) == ((), None, None)


async def test_a_context_that_is_set_is_told_of_models_that_are_not_in_memory() -> None:
    async with over(Ollama(models=[CHATTER, SEER]), 8192) as (_, backend):
        chatter, seer = await soon(backend.models())
    assert (chatter.context_length, seer.context_length) == (DEFAULT_CONTEXT, 8192)


@pytest.mark.parametrize("old", [False, True])
async def test_what_a_model_can_do_is_asked_once_a_file(old: bool) -> None:
    dialect = Ollama(models=[CHATTER, SEER], old=old)
    async with over(dialect) as (fake, backend):
        first = await soon(backend.models())
        assert await soon(backend.models()) == first
        assert Counter(body["model"] for body in bodies(fake, SHOW)) == {
            CHATTER.name: 1,
            SEER.name: 1,
        }
        dialect.models[SEER.name] = replace(SEER, capabilities=("completion",), digest="pulled")
        _, seer = await soon(backend.models())
        assert Counter(body["model"] for body in bodies(fake, SHOW))[SEER.name] == 2
        assert seer.accepts_images is (None if old else False)


async def test_what_a_model_can_do_is_not_asked_where_the_list_says_it(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    card = {"name": "m", "capabilities": ["completion", "vision"]}
    fake.script(TAGS, Reply.json({"models": [card]}))
    (model,) = await soon(backend.models())
    assert (model.capabilities, model.accepts_images) == (("chat", "vision"), True)
    assert bodies(fake, SHOW) == []


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply.json({"error": "boom"}, 500), id="an error"),
        pytest.param(Reply.body("404 page not found", 404), id="no such path"),
        pytest.param(Reply.html(), id="a web page"),
        pytest.param(Reply.json({"capabilities": "all"}), id="another shape"),
        pytest.param(Reply.raw(*CUT_OFF.steps, Close()), id="an answer broken off"),
        pytest.param(Reply.raw(b"SSH-2.0\r\n\r\n", Close()), id="no HTTP"),
    ],
)
async def test_a_model_that_cannot_be_shown_is_listed_all_the_same_and_asked_about_again(
    fake: FakeServer, backend: OllamaBackend, reply: Reply
) -> None:
    fake.script(SHOW, reply)
    (model,) = await soon(backend.models())
    assert (model.id, model.capabilities, model.accepts_tools) == (MODEL, (), None)
    (model,) = await soon(backend.models())
    assert model.accepts_tools is True


async def test_a_model_of_ollamas_cloud_is_not_listed(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    cards = [{"name": "big:cloud", "remote_host": "https://ollama.com:443"}, {"name": "m"}]
    fake.script(TAGS, Reply.json({"models": cards}))
    assert [model.id for model in await soon(backend.models())] == ["m"]


async def test_of_a_model_of_which_little_is_said_little_is_known(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    card = {"name": "m", "size": None, "digest": None, "details": None, "capabilities": None}
    fake.script(TAGS, Reply.json({"models": [card]}))
    fake.script(SHOW, Reply.json({"capabilities": None}))
    assert await soon(backend.models()) == (Model("m", "ollama", state=ModelState.AVAILABLE),)


@pytest.mark.parametrize("models", [None, []])
async def test_no_models_are_none_also_where_the_server_says_null(
    fake: FakeServer, backend: OllamaBackend, models: Any
) -> None:
    for path in (TAGS, PS):
        fake.script(path, Reply.json({"models": models}))
    assert await soon(backend.models()) == ()


@pytest.mark.parametrize("path", [TAGS, PS])
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply.html(), id="a web page"),
        pytest.param(Reply.json({}), id="no list"),
        pytest.param(Reply.json({"models": [{"size": 7}]}), id="no name"),
        pytest.param(Reply.json({"models": {"m": {}}}), id="an object"),
        pytest.param(Reply.body(b'{"models": [{"name": "\xff"}]}'), id="no characters"),
        pytest.param(Reply.body(b'{"x": ' + b"[" * 60_000), id="a deep nest"),
    ],
)
async def test_what_is_no_list_of_models_is_a_breach_of_contract(
    fake: FakeServer, backend: OllamaBackend, path: str, reply: Reply
) -> None:
    fake.script(path, reply)
    failure = await failed(backend.models())
    assert failure.reason is Reason.BACKEND_CONTRACT
    assert path in failure.message


async def test_a_model_that_was_not_listed_can_be_ruled_out_once_it_was_asked_for_a_list(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    assert not any(map(backend.lists_all_models, Capability))
    fake.script(TAGS, Reply.html())
    await failed(backend.models())
    assert not any(map(backend.lists_all_models, Capability))
    await soon(backend.models())
    assert all(map(backend.lists_all_models, Capability))


async def test_a_listing_that_fails_leaves_no_request_behind(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    """Each probe would leave another."""
    fake.script(PS, Reply.raw(Stall()))
    fake.script(TAGS, Reply.json({"error": "x"}, 500))
    await failed(backend.models())
    asked = [request.path for request in fake.requests]
    await fake.client_gone(asked.index(PS))


async def test_a_listing_asks_about_a_few_models_at_a_time() -> None:
    dialect = Ollama(models=[f"m:{i}" for i in range(9)])
    async with over(dialect) as (fake, backend):
        everyone = asyncio.Event()
        fake.always(SHOW, Reply.json({}).after(Until(everyone)))
        listing = asyncio.create_task(backend.models())
        await fake.arrived(2 + 4)
        everyone.set()
        assert len(await soon(listing)) == 9
        assert fake.connections == 4


# --- the context -------------------------------------------------------------------------------


async def test_the_context_that_is_set_is_asked_for_of_every_model() -> None:
    dialect = Ollama(models=[CHATTER, SEER])
    async with over(dialect, 8192) as (fake, backend):
        await soon(backend.models())
        for model in (CHATTER.name, SEER.name):
            await answer(backend, model=model)
            await soon(backend.embed(model, EMBED, connect_s=1))
    assert contexts(fake) == [8192] * 4
    assert dialect.resident == {CHATTER.name: 8192, SEER.name: 8192}
    assert dialect.reloads == 1  # of that which was there with another


async def test_a_model_keeps_the_context_that_it_is_in_memory_with() -> None:
    dialect = Ollama(models=[CHATTER, SEER])
    dialect.resident = {CHATTER.name: 2048}
    async with over(dialect) as (fake, backend):
        await soon(backend.models())
        await answer(backend, model=CHATTER.name)
        await answer(backend, model=SEER.name)
        await soon(backend.embed(CHATTER.name, EMBED, connect_s=1))
    assert contexts(fake) == [2048, None, 2048]
    assert dialect.reloads == 0


async def test_no_context_is_asked_for_where_none_is_known(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    await answer(backend)
    await soon(backend.embed(MODEL, EMBED, connect_s=1))
    assert contexts(fake) == [None, None]


async def test_an_old_server_that_tells_no_context_is_asked_for_none() -> None:
    async with over(Ollama(old=True)) as (fake, backend):
        await soon(backend.models())
        await answer(backend)
    assert contexts(fake) == [None]


@pytest.mark.parametrize("context_length", [None, 512, 8192])
@pytest.mark.parametrize("cold", [False, True])
async def test_no_sequence_of_calls_has_a_model_loaded_anew(
    context_length: int | None, cold: bool
) -> None:
    """Chats and embeddings of models that others loaded, that are unloaded, and of small ones."""
    dialect = Ollama(models=[CHATTER, EMBEDDER])
    dialect.resident = {} if cold else {CHATTER.name: context_length or 2048, EMBEDDER.name: 256}
    async with over(dialect, context_length) as (_, backend):
        await soon(backend.models())
        for _ in range(3):
            for _ in range(2):
                await answer(backend, model=CHATTER.name)
                await soon(backend.embed(EMBEDDER.name, EMBED, connect_s=1))
                await soon(backend.embed(CHATTER.name, EMBED, connect_s=1))
                await answer(backend, replace(CALL, extra={"think": False}), CHATTER.name)
            await soon(backend.models())
        dialect.resident.clear()  # as after OLLAMA_KEEP_ALIVE
        await answer(backend, model=CHATTER.name)
        await soon(backend.models())
        await soon(backend.embed(CHATTER.name, EMBED, connect_s=1))
    assert dialect.reloads == 0
    first = DEFAULT_CONTEXT if cold else 2048
    assert dialect.resident[CHATTER.name] == (context_length or first)


async def test_a_name_without_its_tag_is_that_of_the_latest() -> None:
    """As an operator may write it for `default_model`."""
    dialect = Ollama(models=["m:latest"])
    dialect.resident = {"m:latest": 2048}
    async with over(dialect) as (fake, backend):
        await soon(backend.models())
        await answer(backend, model="m")
    assert contexts(fake) == [2048]
    assert dialect.reloads == 0


# --- prompts that are too long -----------------------------------------------------------------

TOO_LONG = replace(CALL, messages=(Message("user", LONG),))


async def test_a_prompt_that_is_too_long_is_refused_rather_than_cut(
    backend: OllamaBackend,
) -> None:
    before, failure = await failed_chat(backend, TOO_LONG)
    assert (before, failure.reason) == ("", Reason.CONTEXT_OVERFLOW)
    assert "context_length" in failure.message


async def test_a_greater_context_that_is_set_holds_it() -> None:
    async with over(Ollama(), 2 * DEFAULT_CONTEXT) as (_, backend):
        end = (await answer(backend, TOO_LONG))[1]
    assert (end.usage.prompt_tokens, end.prompt_truncated) == (DEFAULT_CONTEXT + 1, False)


async def test_an_old_server_that_cuts_it_all_the_same_is_found_out_by_a_full_context() -> None:
    async with over(Ollama(old=True), DEFAULT_CONTEXT) as (fake, backend):
        end = (await answer(backend, TOO_LONG))[1]
        assert (end.usage.prompt_tokens, end.prompt_truncated) == (DEFAULT_CONTEXT, True)
        assert not (await answer(backend))[1].prompt_truncated
    assert bodies(fake, CHAT)[0]["truncate"] is False


async def test_an_old_server_that_leaves_messages_out_is_found_out_by_how_little_it_read() -> None:
    """Its context need not be known for that."""
    messages = (Message("user", LONG), Message("assistant", "I see."), Message("user", "And?"))
    async with over(Ollama(old=True)) as (_, backend):
        end = (await answer(backend, replace(CALL, messages=messages)))[1]
        assert (end.usage.prompt_tokens, end.prompt_truncated) == (3, True)
        assert not (await answer(backend, replace(CALL, messages=messages[1:])))[1].prompt_truncated


async def test_cutting_can_be_allowed_and_is_told() -> None:
    messages = (Message("system", "Be brief."), Message("user", LONG), Message("user", "And?"))
    call = replace(CALL, messages=messages, extra={"truncate": True})
    async with over(Ollama()) as (fake, backend):
        end = (await answer(backend, call))[1]
    assert (end.usage.prompt_tokens, end.prompt_truncated) == (4, True)
    assert bodies(fake, CHAT)[0]["truncate"] is True


# --- log probabilities -------------------------------------------------------------------------


async def test_log_probabilities_come_with_their_tokens() -> None:
    call = replace(CALL, sampling=Sampling(logprobs=True, top_logprobs=2))
    async with over(Ollama(["Hé", "llo"], thoughts=["Hm"])) as (_, backend):
        said, _ = await answer(backend, call)
    assert [(token.token, token.token_bytes) for token in said.logprobs] == [
        ("Hé", "Hé".encode()),
        ("llo", b"llo"),
    ]
    assert [len(token.top) for token in said.logprobs] == [2, 2]


async def test_an_old_server_that_gives_none_is_no_answer() -> None:
    call = replace(CALL, sampling=Sampling(logprobs=True))
    async with over(Ollama(old=True)) as (_, backend):
        _, failure = await failed_chat(backend, call)
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert [violation.field for violation in failure.violations] == ["sampling.logprobs"]


# --- leaving -----------------------------------------------------------------------------------


async def test_a_cold_model_is_waited_for_without_headers_and_answers() -> None:
    cold = ColdModel()
    async with over(Ollama(cold=cold)) as (fake, backend):
        (listed,) = await soon(backend.models())
        assert listed.state is ModelState.AVAILABLE
        task = asyncio.create_task(answer(backend))
        await fake.arrived_at(CHAT)
        assert await asyncio.wait({task}, timeout=0.05) == (set(), {task})
        cold.finish()
        assert (await soon(task))[0].content == "Hello world"
        (listed,) = await soon(backend.models())
        assert listed.state is ModelState.LOADED
    assert (cold.begun, cold.aborted) == (1, 0)


@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS])
async def test_a_call_that_is_cancelled_while_a_model_loads_gives_the_load_up(path: str) -> None:
    cold = ColdModel()
    async with over(Ollama(cold=cold)) as (fake, backend):
        call = read(backend) if path == CHAT else backend.embed(MODEL, EMBED, connect_s=1)
        task = asyncio.create_task(ignored(call))
        await fake.arrived_at(path)
        assert await gone_after(fake, task) < PROMPT_S
        await fake.settled(0)
    assert (cold.begun, cold.aborted) == (1, 1)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(None, id="before the headers"),
        pytest.param((), id="before the first line"),
        pytest.param((HALF[:9],), id="within a line"),
        pytest.param((line({"thinking": "Hm"}),), id="while it thinks"),
        pytest.param((HALF,), id="in mid-stream"),
    ],
)
async def test_a_call_that_is_cancelled_closes_the_backends_socket_at_once(
    fake: FakeServer, backend: OllamaBackend, sent: tuple[bytes, ...] | None
) -> None:
    rest = ColdModel()  # tells when all before it was sent
    fake.script(CHAT, Reply.raw(Load(rest)) if sent is None else lines(*sent, Load(rest)))
    task = asyncio.create_task(ignored(read(backend)))
    await until(lambda: rest.begun == 1, "the server to have sent what it sends")
    assert await gone_after(fake, task) < PROMPT_S
    await fake.settled(0)
    assert rest.aborted == 1


async def test_an_endless_stream_that_is_left_is_not_read_to_its_end(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    fake.script(CHAT, lines(Send(HALF, times=10**9)))
    events = backend.chat(MODEL, CALL, connect_s=1)
    async with asyncio.timeout(PATIENCE_S), aclosing(events):
        while not isinstance(await anext(events), Delta):
            pass
    left_at = asyncio.get_running_loop().time()
    assert await fake.client_gone() - left_at < PROMPT_S


async def test_a_stream_that_is_left_halfway_closes_the_backends_socket(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    fake.script(CHAT, lines(HALF, Stall()))
    events = backend.chat(MODEL, CALL, connect_s=1)
    async with asyncio.timeout(PATIENCE_S), aclosing(events):
        assert isinstance(await anext(events), Begun)
        assert await anext(events) == Delta("Half")
        await events.aclose()
        left_at = asyncio.get_running_loop().time()
        assert await fake.client_gone() - left_at < PROMPT_S


async def test_a_stream_that_failed_closes_the_backends_socket(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    fake.script(CHAT, lines(error_line("x"), Stall()))
    await failed_chat(backend)
    await fake.client_gone()
    await fake.settled(0)


async def test_closing_the_backend_closes_its_connections(fake: FakeServer) -> None:
    backend = OllamaBackend(WireSettings("x", fake.url))
    assert backend.endpoints == (f"127.0.0.1:{fake.port}",)
    await answer(backend)
    assert fake.open_connections == 1
    await soon(backend.aclose())
    await fake.settled(0)


# --- embeddings --------------------------------------------------------------------------------


async def test_vectors_are_in_the_order_of_their_texts(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    first, second = [
        (await soon(backend.embed(MODEL, replace(EMBED, input=(text,)), connect_s=1))).vectors
        for text in ("a", "bb")
    ]
    both = await soon(backend.embed(MODEL, replace(EMBED, input=("a", "bb")), connect_s=1))
    assert both.vectors == first + second
    assert first != second
    assert both.model == MODEL
    assert both.usage == Usage(2, 0, 2, source=UsageSource.REPORTED)
    assert bodies(fake, EMBEDDINGS)[2] == {
        "model": MODEL,
        "input": ["a", "bb"],
        "truncate": False,
    }


async def test_vectors_without_a_count_of_tokens_or_a_model_are_read(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    fake.script(EMBEDDINGS, Reply.json({"embeddings": [[1], [2]]}))
    made = await soon(backend.embed(MODEL, EMBED, connect_s=1))
    assert (made.vectors, made.model) == (([1.0], [2.0]), MODEL)
    assert made.usage.source is UsageSource.MISSING


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"embeddings": [[1.0]]}, id="too few"),
        pytest.param({"embeddings": [[1.0]] * 3}, id="too many"),
        pytest.param({"embeddings": []}, id="none"),
        pytest.param({"embeddings": [[1.0], [1.0, 2.0]]}, id="two lengths"),
        pytest.param({"embeddings": [[], []]}, id="empty ones"),
        pytest.param({"embeddings": None}, id="null"),
        pytest.param({"embeddings": [1.0, 2.0]}, id="one vector"),
        pytest.param({"embeddings": [[None], [1.0]]}, id="a null in one"),
        pytest.param({"embedding": [1.0]}, id="that of the older path"),
        pytest.param({}, id="nothing"),
    ],
)
async def test_vectors_that_are_not_one_a_text_are_a_breach_of_contract(
    fake: FakeServer, backend: OllamaBackend, body: Any
) -> None:
    fake.script(EMBEDDINGS, Reply.json(body))
    failure = await failed(backend.embed(MODEL, EMBED, connect_s=1))
    assert failure.reason is Reason.BACKEND_CONTRACT


@pytest.mark.parametrize(
    "reply", [Reply.html(), Reply.body(b'{"embeddings": [["\xff'), Reply.body(b"[" * 60_000)]
)
async def test_what_holds_no_vectors_is_a_breach_of_contract(
    fake: FakeServer, backend: OllamaBackend, reply: Reply
) -> None:
    fake.script(EMBEDDINGS, reply)
    failure = await failed(backend.embed(MODEL, EMBED, connect_s=1))
    assert failure.reason is Reason.BACKEND_CONTRACT


async def test_a_number_of_dimensions_is_asked_for_and_checked(
    fake: FakeServer, backend: OllamaBackend
) -> None:
    call = replace(EMBED, dimensions=3)
    made = await soon(backend.embed(MODEL, call, connect_s=1))
    assert [len(vector) for vector in made.vectors] == [3, 3]
    assert bodies(fake, EMBEDDINGS)[0]["dimensions"] == 3
    fake.script(EMBEDDINGS, Reply.json({"embeddings": [[1.0] * 4] * 2}))  # as old ones answer
    failure = await failed(backend.embed(MODEL, call, connect_s=1))
    assert failure.reason is Reason.UNSUPPORTED_PARAMETER
    assert [violation.field for violation in failure.violations] == ["dimensions"]


@pytest.mark.parametrize("old", [False, True])
async def test_a_text_too_long_to_embed_is_an_overflow_unless_cutting_is_allowed(
    old: bool,
) -> None:
    call = replace(EMBED, input=("a", LONG))
    async with over(Ollama(old=old)) as (_, backend):
        failure = await failed(backend.embed(MODEL, call, connect_s=1))
        assert failure.reason is Reason.CONTEXT_OVERFLOW
        allowed = replace(call, extra={"truncate": True})
        made = await soon(backend.embed(MODEL, allowed, connect_s=1))
    assert made.usage.prompt_tokens == 1 + DEFAULT_CONTEXT
