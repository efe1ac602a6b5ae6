"""An exchange on one connection, without a socket: what comes, however it is cut."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.backends import joining
from atmosphere_grpc.backends.http1 import (
    EARLY_S,
    HIGH_WATER_BYTES,
    LARGE_BYTES,
    MAX_HEAD_BYTES,
    Broken,
    Connection,
    Hangup,
    HttpError,
    NotHttp,
)
from atmosphere_grpc.backends.openai_calls import OpenAICalls
from atmosphere_grpc.backends.openai_stream import Assembly
from atmosphere_grpc.backends.wire import Stream, Wire, WireSettings
from atmosphere_grpc.domain import Begun, Delta, Finished
from atmosphere_grpc.errors import Failure, Reason
from tests.fakes import chunks
from tests.unit.test_cuttings import pieces

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


class Transport:
    """What a connection writes to."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.written: list[bytes] = []
        self.aborted = False
        self.reading = True

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def asked(*came: bytes) -> tuple[Connection, Transport]:
    """A connection that has sent a request, and what has come since."""
    connection = Connection()
    transport: Any = Transport(connection)
    connection.connection_made(transport)
    connection.send(b"GET / HTTP/1.1\r\n\r\n")
    for data in came:
        connection.data_received(data)
    return connection, transport


async def body(connection: Connection) -> bytes:
    await connection.answered()
    parts = []
    while part := await connection.read():
        parts.append(part)
    return b"".join(parts)


async def failure_of(connection: Connection) -> tuple[bytes, HttpError]:
    """What could be read, and how it failed."""
    parts: list[bytes] = []
    try:
        await connection.answered()
        while True:
            parts.append(await connection.read())
    except HttpError as error:
        return b"".join(parts), error


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(HEAD + b"Content-Length: 5\r\n\r\nhello", id="sized"),
        pytest.param(CHUNKED + b"2\r\nhe\r\n3;x=1\r\nllo\r\n0\r\n\r\n", id="chunks"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", id="trailers"),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
            + HEAD
            + b"Content-Length: 5\r\n\r\nhello",
            id="interim answers",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\nContent-Type: text/event-stream\nContent-Length: 5\n\nhello",
            id="lines that end in LF",
        ),
        pytest.param(
            HEAD + b"X: a\r\n  folded\r\nContent-Length: 5\r\n\r\nhello", id="a folded header"
        ),
        pytest.param(
            CHUNKED + b"2  \r\nhe\r\n3 \r\nllo\r\n0 \r\n\r\n", id="blanks after a chunk's size"
        ),
        pytest.param(HEAD + b"X: \x01\r\nContent-Length: 5\r\n\r\nhello", id="odd characters"),
    ],
)
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_an_answer_is_read_however_it_is_cut(answer: bytes, cuts: list[int]) -> None:
    async def run() -> None:
        connection, transport = asked(*filter(None, pieces(answer, cuts)))
        assert await body(connection) == b"hello"
        assert connection.status == 200
        assert connection.headers["content-type"] == "text/event-stream"
        assert connection.release()
        assert not transport.aborted

    asyncio.run(run())


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    connection, _ = asked(HEAD + b"\r\nhel", b"lo")
    connection.connection_lost(None)
    assert await body(connection) == b"hello"
    assert not connection.release()


@pytest.mark.parametrize("status", [204, 304])
async def test_some_answers_have_no_body(status: int) -> None:
    connection, _ = asked(b"HTTP/1.1 %d X\r\n\r\n" % status)
    assert await body(connection) == b""
    assert connection.release()


@pytest.mark.parametrize("header", [b"Connection: close", b"connection: Close"])
async def test_a_server_that_closes_is_not_asked_again(header: bytes) -> None:
    connection, transport = asked(HEAD + header + b"\r\nContent-Length: 0\r\n\r\n")
    assert await body(connection) == b""
    assert not connection.release()
    assert transport.aborted


@pytest.mark.parametrize(
    ("size", "status", "kept"),
    [(LARGE_BYTES + 1, 401, False), (LARGE_BYTES + 1, 200, True), (LARGE_BYTES, 401, True)],
)
async def test_a_server_that_refused_a_large_request_is_not_asked_again_on_its_connection(
    size: int, status: int, kept: bool
) -> None:
    connection, _ = asked()
    connection.send(b"x" * size)  # which it may not have read
    connection.data_received(b"HTTP/1.1 %d X\r\nContent-Length: 1\r\n\r\na" % status)
    assert await body(connection) == b"a"
    assert connection.release() is kept


@pytest.mark.parametrize("came", [b"", b"SSH-2.0-OpenSSH\r\n"], ids=["nothing", "something"])
async def test_a_connection_that_is_closed_before_it_is_used(came: bytes) -> None:
    connection = Connection()
    transport: Any = Transport(connection)
    connection.connection_made(transport)
    if came:
        connection.data_received(came)
    connection.connection_lost(None)
    connection.send(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(5):
        said, error = await failure_of(connection)
    assert (said, type(error)) == (b"", Hangup)
    assert not connection.release()


async def test_a_connection_can_be_used_again() -> None:
    connection, _ = asked(HEAD + b"Content-Length: 1\r\n\r\na")
    assert await body(connection) == b"a"
    assert connection.release()
    connection.send(b"again")
    assert connection.status == 0
    connection.data_received(b"HTTP/1.1 404 No\r\nContent-Length: 1\r\n\r\nb")
    assert await body(connection) == b"b"
    assert connection.status == 404


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nz", id="an answer"),
        pytest.param(b"garbage", id="no answer"),
    ],
)
@pytest.mark.parametrize("released", [False, True])
async def test_what_nobody_asked_for_is_not_taken_for_an_answer(
    extra: bytes, released: bool
) -> None:
    answer = HEAD + b"Content-Length: 1\r\n\r\na"
    if released:
        connection, transport = asked(answer)
        assert await body(connection) == b"a"
        connection.release()
        connection.data_received(extra)
        assert transport.aborted
        return
    connection, _ = asked(answer + extra)
    assert await body(connection) == b"a"
    assert not connection.release()


async def test_what_came_before_a_failure_is_read_before_it_is_told() -> None:
    connection, _ = asked(CHUNKED + b"3\r\nabc\r\n2\r\nd")
    connection.connection_lost(ConnectionResetError("gone"))
    said, error = await failure_of(connection)
    assert said == b"abcd"
    assert isinstance(error, Broken)
    assert str(error) == "ConnectionResetError: gone"


async def test_a_body_that_is_no_http_breaks_off() -> None:
    connection, transport = asked(CHUNKED + b"3\r\nabc\r\nzz\r\n")
    said, error = await failure_of(connection)
    assert (said, type(error), transport.aborted) == (b"abc", Broken, True)


@pytest.mark.parametrize(("came", "silent"), [((), True), ((b"HTTP/1.1 2",), False)])
async def test_a_connection_that_is_closed_before_an_answer(
    came: tuple[bytes, ...], silent: bool
) -> None:
    connection, _ = asked(*came)
    connection.connection_lost(None)
    _, error = await failure_of(connection)
    assert isinstance(error, Hangup)
    assert error.silent is silent


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="SSH"),
        pytest.param(
            b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="101"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEAD_BYTES + 1), id="large"),
        pytest.param(b"HTTP/1.1 200 " + b"x" * (MAX_HEAD_BYTES + 1), id="large status"),
    ],
)
async def test_what_is_no_http(answer: bytes) -> None:
    connection, transport = asked(answer)
    _, error = await failure_of(connection)
    assert isinstance(error, NotHttp | Broken)
    assert transport.aborted


async def test_trailers_are_bounded() -> None:
    connection, _ = asked(CHUNKED + b"1\r\na\r\n0\r\n", *[b"X: y\r\n" * 1000] * 20)
    said, error = await failure_of(connection)
    assert (said, isinstance(error, HttpError)) == (b"a", True)


async def test_a_sender_that_is_too_fast_waits() -> None:
    size = HIGH_WATER_BYTES + 1
    connection, transport = asked(HEAD + b"Content-Length: %d\r\n\r\n" % (2 * size), b"x" * size)
    assert not transport.reading
    assert len(await connection.read(time.monotonic() + 60.0)) == size  # which is not waited for
    assert transport.reading


async def test_what_comes_is_collected_until_it_is_due() -> None:
    connection, _ = asked(CHUNKED)
    loop = asyncio.get_running_loop()
    due = time.monotonic() + 0.05
    for i, letter in enumerate(b"abc"):
        loop.call_later(0.01 * i, connection.data_received, b"1\r\n%c\r\n" % letter)
    assert await connection.read(due) == b"abc"
    assert time.monotonic() >= due - EARLY_S
    # What comes later is due at once.
    loop.call_later(0.01, connection.data_received, b"1\r\nd\r\n")
    assert await connection.read(due) == b"d"


async def test_the_end_is_not_collected() -> None:
    connection, _ = asked(CHUNKED)
    loop = asyncio.get_running_loop()
    due = time.monotonic() + 60.0
    loop.call_later(0.01, connection.data_received, b"1\r\na\r\n")
    loop.call_later(0.02, connection.data_received, b"1\r\nb\r\n0\r\n\r\n")
    assert await connection.read(due, held=True) == b"ab"
    assert await connection.read(due, held=True) == b""
    assert connection.complete


async def test_nor_is_what_came_before_it_broke() -> None:
    connection, _ = asked(CHUNKED + b"1\r\na\r\n")
    asyncio.get_running_loop().call_later(0.01, connection.connection_lost, OSError())
    assert await connection.read(time.monotonic() + 60.0) == b"a"
    with pytest.raises(Broken):
        await connection.read(time.monotonic() + 60.0)


async def test_who_holds_something_is_woken_when_it_is_due() -> None:
    connection, _ = asked(CHUNKED)
    due = time.monotonic() + 0.03
    assert await connection.read(due, held=True) == b""
    assert (time.monotonic() >= due - EARLY_S, connection.complete) == (True, False)


# --- text that is joined -----------------------------------------------------------------------

CALL = [
    chunks.tool_call(index=0, call_id="a", name="weather", arguments='{"in":'),
    chunks.tool_call(index=0, arguments=' "Graz"}'),
    chunks.tool_call(index=1, call_id="b", name="time", arguments="{}"),
]
#: Chunks of any kind, in any order.
Chunks = st.lists(
    st.sampled_from(
        [
            *(chunks.event(chunks.chunk({"content": text})) for text in ("a", "ä€😀", "\n", "")),
            chunks.event(chunks.chunk({"reasoning_content": "Hm."})),
            *(chunks.event(chunk) for chunk in CALL),
            b": ping\n\n",
        ]
    ),
    max_size=12,
)


def whole(deltas: list[Delta]) -> tuple[str, str, dict[int, tuple[str, str, str]], int]:
    """What deltas come to, however much is in each."""
    calls: dict[int, tuple[str, str, str]] = {}
    for delta in deltas:
        for piece in delta.tool_calls:
            before = calls.get(piece.index, (piece.id, piece.name, ""))
            calls[piece.index] = (*before[:2], before[2] + piece.arguments)
    return (
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        calls,
        sum(len(delta.logprobs) for delta in deltas),
    )


async def answer(
    parts: list[bytes], join_s: float, end: Exception | None = None
) -> tuple[list[Delta], Finished | Failure]:
    """The deltas of an answer whose parts come one by one, and how it ended."""
    connection, _ = asked(CHUNKED)
    await connection.answered()
    loop = asyncio.get_running_loop()

    def come(left: list[bytes]) -> None:
        if left:
            connection.data_received(left[0])
            loop.call_soon(come, left[1:])
        elif end is not None:
            connection.connection_lost(end)

    joining.set(lambda: join_s)
    wire = Wire(WireSettings("x", "http://127.0.0.1:9/v1"))
    stream = Stream(wire.endpoint, connection)
    loop.call_soon(come, [part for part in parts if part])  # a loop brings no empty ones
    deltas: list[Delta] = []
    try:
        async for event in OpenAICalls(wire)._from_stream(stream, Assembly()):
            if isinstance(event, Delta):
                deltas.append(event)
            elif not isinstance(event, Begun):
                return deltas, event
    except Failure as failure:
        return deltas, failure
    raise AssertionError("no end")


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


@settings(deadline=None, max_examples=60)
@given(
    items=Chunks,
    cuts=st.lists(st.integers(0, 3000), max_size=8),
    join_s=st.sampled_from([0.001, 0.005, 0.02]),
    broken=st.booleans(),
)
def test_what_is_joined_comes_to_the_same_whole(
    items: list[bytes], cuts: list[int], join_s: float, broken: bool
) -> None:
    end = [] if broken else [chunks.event(chunks.chunk({}, "stop")), b"data: [DONE]\n\n"]
    data = b"".join(map(framed, [*items, *end])) + (b"" if broken else b"0\r\n\r\n")
    gone = ConnectionResetError() if broken else None
    at_once, _ = asyncio.run(answer([data], 0.0, gone))
    deltas, ended = asyncio.run(answer(pieces(data, cuts), join_s, gone))
    assert whole(deltas) == whole(at_once)
    assert isinstance(ended, Failure) is broken
    if isinstance(ended, Failure):
        assert ended.reason is Reason.STREAM_TRUNCATED
    each, _ = asyncio.run(answer([framed(item) for item in items] or [b""], 0.0, OSError()))
    assert whole(each)[:3] == whole(at_once)[:3]
    assert len(deltas) <= max(len(each), 1) + len(cuts)
