"""The Python clients against a real server whose answers each test scripts."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from atmosphere_client import (
    AsyncAtmosphereClient,
    AtmosphereClient,
    AtmosphereError,
    CallCancelledError,
    DeadlineExceededError,
    InternalError,
    UnavailableError,
)
from atmosphere_grpc.v1 import chat_pb2, execution_pb2, execution_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

SERVICE = execution_pb2.DESCRIPTOR.services_by_name["Execution"]
BEARER = "hush-hush"
PATIENCE = 10  # seconds after which a test that waits in vain fails

STARTED = chat_pb2.ChatResponse(started=chat_pb2.Started(id="c1", model="m"))
A = chat_pb2.ChatResponse(delta=chat_pb2.Delta(content="a"))
B = chat_pb2.ChatResponse(delta=chat_pb2.Delta(content="b"))
COMPLETED = chat_pb2.ChatResponse(
    completed=chat_pb2.Completed(finish_reason=chat_pb2.FINISH_REASON_STOP)
)
# A field 99 that this version of the contract does not have.
LATER = chat_pb2.ChatResponse.FromString(b"\x9a\x06\x01x")


class Script(grpc.GenericRpcHandler):
    """A server that answers as told, and keeps what it saw.

    Attributes:
        answer: Called with the name of a unary RPC, the request and the context.
        events: What a chat sends: events, bytes as they are, or a status to fail with.
        hangs: Whether a call stays open when that is done.
        calls: The names of the RPCs called.
        metadata: The metadata of the last one.
        arrived: Set when a call that hangs has come this far.
        left: Set when such a call was cancelled.
    """

    def __init__(self) -> None:
        self.answer: Callable[[str, bytes, Any], Awaitable[Any]] | None = None
        self.events: list[chat_pb2.ChatResponse | bytes | grpc.StatusCode] = []
        self.hangs = False
        self.calls: list[str] = []
        self.metadata: dict[str, str | bytes] = {}
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        self.calls.append(name)
        self.metadata = dict(handler_call_details.invocation_metadata)
        if name == "Chat":
            return grpc.unary_stream_rpc_method_handler(self._chat, response_serializer=_encoded)

        async def unary(request: bytes, context: Any) -> Any:
            async with self._open_call():
                await self._hang()
            assert self.answer is not None
            return await self.answer(name, request, context)

        return grpc.unary_unary_rpc_method_handler(unary, response_serializer=_encoded)

    async def _chat(self, request: bytes, context: Any) -> AsyncIterator[Any]:
        # A handler may be cancelled at its `yield` as well as where it hangs.
        async with self._open_call():
            for event in self.events:
                if isinstance(event, grpc.StatusCode):
                    await context.abort(event, "as told")
                yield event
            await self._hang()

    async def _hang(self) -> None:
        if self.hangs:
            self.arrived.set()
            await asyncio.Event().wait()

    @asynccontextmanager
    async def _open_call(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            if self.hangs:
                self.left.set()


def _encoded(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


@asynccontextmanager
async def serving(
    script: Script, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((script,))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=test"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
async def script() -> Script:
    return Script()


@pytest.fixture
async def target(script: Script) -> AsyncIterator[str]:
    async with serving(script) as address:
        yield address


@pytest.fixture
async def client(target: str) -> AsyncIterator[AsyncAtmosphereClient]:
    async with AsyncAtmosphereClient(target, token=BEARER, timeout=PATIENCE) as made:
        yield made


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE):
        await event.wait()


def answers(message: Any) -> Callable[[str, bytes, Any], Awaitable[Any]]:
    async def answer(name: str, request: bytes, context: Any) -> Any:
        return message

    return answer


def fails_once(code: grpc.StatusCode, message: Any) -> Callable[[str, bytes, Any], Awaitable[Any]]:
    failed: list[str] = []

    async def answer(name: str, request: bytes, context: Any) -> Any:
        if not failed:
            failed.append(name)
            await context.abort(code, "the first time")
        return message

    return answer


# Unary calls


async def test_a_call_carries_token_request_id_and_metadata(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    script.answer = answers(execution_pb2.ExecuteResponse(success=True))
    response = await client.execute("hi", request_id="r1", metadata={"x-team": "a"})
    assert response.success
    assert script.metadata["authorization"] == f"Bearer {BEARER}"
    assert script.metadata["x-request-id"] == "r1"
    assert script.metadata["x-team"] == "a"


async def test_each_rpc_is_reached(client: AsyncAtmosphereClient, script: Script) -> None:
    script.answer = answers(b"")
    await client.execute("hi")
    await client.embed("hi")
    await client.models()
    await client.integrations()
    await client.test_integration("i")
    await client.route("hi")
    script.events = [COMPLETED]
    await client.chat("hi").result()
    assert sorted(script.calls) == sorted(method.name for method in SERVICE.methods)


async def test_models_follow_the_pages(client: AsyncAtmosphereClient, script: Script) -> None:
    async def answer(name: str, request: bytes, context: Any) -> Any:
        page = execution_pb2.ListModelsRequest.FromString(request).page_token
        return execution_pb2.ListModelsResponse(
            models=[execution_pb2.Model(id=page or "1")], next_page_token="" if page else "2"
        )

    script.answer = answer
    assert [model.id for model in await client.models()] == ["1", "2"]


async def test_health_is_a_word(client: AsyncAtmosphereClient, script: Script) -> None:
    script.answer = answers(b"\x08\x01")
    assert await client.health("atmosphere.v1.Execution") == "SERVING"
    script.answer = answers(b"\x08\x02")
    assert await client.health() == "NOT_SERVING"
    assert script.calls == ["Check", "Check"]


async def test_answers_beyond_4_mb_are_received(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    vector = execution_pb2.Embedding(values=[1.0] * 2_000_000)
    script.answer = answers(execution_pb2.EmbedResponse(embeddings=[vector]))
    assert (await client.embed("hi")).ByteSize() > 4 * 1024 * 1024


async def test_a_time_that_is_used_up_is_an_error(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    script.hangs = True
    with pytest.raises(DeadlineExceededError):
        await client.execute("hi", timeout=0.05)
    with pytest.raises(DeadlineExceededError):
        await client.chat("hi", timeout=0.05).result()


@pytest.mark.parametrize("name", ["models", "integrations", "route", "embed"])
async def test_a_call_that_does_no_harm_is_repeated_when_the_server_is_unavailable(
    client: AsyncAtmosphereClient, script: Script, name: str
) -> None:
    script.answer = fails_once(grpc.StatusCode.UNAVAILABLE, b"")
    arguments = () if name in ("models", "integrations") else ("hi",)
    await getattr(client, name)(*arguments)
    assert len(script.calls) == 2


@pytest.mark.parametrize("name", ["execute", "test_integration"])
async def test_a_call_that_generates_is_never_repeated(
    client: AsyncAtmosphereClient, script: Script, name: str
) -> None:
    script.answer = fails_once(grpc.StatusCode.UNAVAILABLE, b"")
    with pytest.raises(UnavailableError, match="the first time"):
        await getattr(client, name)("hi")
    assert len(script.calls) == 1


async def test_a_chat_is_never_repeated(client: AsyncAtmosphereClient, script: Script) -> None:
    script.events = [grpc.StatusCode.UNAVAILABLE]
    with pytest.raises(UnavailableError):
        await client.chat("hi").result()
    assert script.calls == ["Chat"]


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with serving(Script()) as gone:
        pass
    async with AsyncAtmosphereClient(gone) as client:
        with pytest.raises(UnavailableError):
            await client.execute("hi")


async def test_cancelling_the_task_cancels_the_call(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    script.hangs = True
    task = asyncio.ensure_future(client.execute("hi"))
    await soon(script.arrived)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await soon(script.left)


async def test_closing_the_client_ends_its_calls_and_not_their_tasks(
    target: str, script: Script
) -> None:
    script.hangs = True
    client = AsyncAtmosphereClient(target)
    task = asyncio.ensure_future(client.execute("hi"))
    await soon(script.arrived)
    await client.close()
    with pytest.raises(CallCancelledError):
        await task
    await soon(script.left)
    with pytest.raises(RuntimeError, match="the client is closed"):
        await client.execute("hi")


async def test_a_response_that_cannot_be_read_is_an_error(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    script.answer = answers(b"\xff\xff\xff")
    script.events = [STARTED, b"\xff\xff\xff"]
    with pytest.raises(InternalError, match="RESPONSE_UNREADABLE"):
        await client.execute("hi")
    with pytest.raises(InternalError) as error:
        await client.chat("hi").result()
    assert error.value.reason == "RESPONSE_UNREADABLE"


async def test_a_proxy_of_the_environment_does_not_capture_the_loopback(
    target: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    script.answer = answers(b"")
    async with AsyncAtmosphereClient(target) as client:
        await client.execute("hi")


async def test_both_clients_prove_who_they_are_by_tls(
    script: Script, identity: tuple[Path, Path]
) -> None:
    certificate, key = (path.read_bytes() for path in identity)
    credentials = grpc.ssl_server_credentials([(key, certificate)], certificate, True)
    script.answer = answers(b"\x08\x01")
    trust: Any = {"tls": True, "ca_certificate": identity[0]}
    own: Any = {"client_certificate": certificate, "client_key": identity[1]}
    async with serving(script, credentials) as target:
        async with AsyncAtmosphereClient(target, **trust, **own, token=BEARER) as client:
            assert await client.health() == "SERVING"
        with AtmosphereClient(target, **trust, **own) as blocking:
            assert await asyncio.to_thread(blocking.health) == "SERVING"
        async with AsyncAtmosphereClient(target, **trust) as stranger:
            with pytest.raises(UnavailableError):
                await stranger.health()
    assert script.calls == ["Check", "Check"]


async def test_a_channel_that_was_brought_stays_open(target: str, script: Script) -> None:
    script.answer = answers(b"")
    async with grpc.aio.insecure_channel(target) as channel:
        async with AsyncAtmosphereClient(channel=channel) as client:
            await client.execute("hi")
        stub = execution_pb2_grpc.ExecutionStub(channel)
        await stub.Execute(execution_pb2.ExecuteRequest())


def test_a_client_may_be_made_where_no_loop_runs() -> None:
    client = AsyncAtmosphereClient()
    with pytest.raises(RuntimeError, match="no running event loop"):
        client.chat("hi")


# Chat


async def test_a_chat_yields_the_text_so_far_and_the_delta(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    waiting = chat_pb2.Progress(phase=chat_pb2.Progress.PHASE_QUEUED)
    script.events = [chat_pb2.ChatResponse(progress=waiting), STARTED, A, LATER, B, COMPLETED]
    seen: list[chat_pb2.Progress] = []
    async with client.chat("hi", on_progress=seen.append) as stream:
        got = [(text, delta.content) async for text, delta in stream]
    assert got == [("a", "a"), ("ab", "b")]
    assert seen == [waiting]
    result = await stream.result()
    assert result.message == stream.message == chat_pb2.Message(role="assistant", content="ab")
    assert (result.started, result.completed) == (STARTED.started, COMPLETED.completed)


async def test_a_stream_that_ends_without_completed_is_an_error(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    script.events = [STARTED, A]
    stream = client.chat("hi")
    with pytest.raises(InternalError) as error:
        await stream.result()
    assert error.value.reason == "STREAM_TRUNCATED"
    assert stream.text == "a"


async def test_a_stream_that_fails_keeps_what_came_and_goes_on_failing(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    script.events = [STARTED, A, B, grpc.StatusCode.UNAVAILABLE]
    stream = client.chat("hi")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="as told"):
            await stream.result()
    assert stream.text == "ab"


async def test_leaving_a_stream_early_cancels_it(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    script.events, script.hangs = [STARTED, A], True
    async with client.chat("hi") as stream:
        async for _ in stream:
            break
    await soon(script.left)
    with pytest.raises(CallCancelledError):
        await stream.result()


async def test_a_stream_that_is_dropped_is_cancelled(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    script.events, script.hangs = [STARTED, A], True
    async for _ in client.chat("hi"):
        break
    gc.collect()
    await soon(script.left)


async def test_a_stream_that_is_never_read_is_cancelled_when_it_is_closed(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    script.hangs = True
    stream = client.chat("hi")
    await soon(script.arrived)
    await stream.close()
    await stream.close()
    await soon(script.left)


async def test_cancelling_the_task_that_reads_cancels_the_stream(
    client: AsyncAtmosphereClient, script: Script
) -> None:
    script.events, script.hangs = [STARTED, A], True
    stream = client.chat("hi")
    task = asyncio.ensure_future(stream.result())
    await soon(script.arrived)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await soon(script.left)
    with pytest.raises(CallCancelledError):
        await stream.result()


async def test_closing_the_client_ends_its_streams(target: str, script: Script) -> None:
    script.events, script.hangs = [STARTED, A], True
    client = AsyncAtmosphereClient(target)
    task = asyncio.ensure_future(client.chat("hi").result())
    await soon(script.arrived)
    await client.close()
    with pytest.raises(CallCancelledError):
        await task


# The blocking client, on a thread


async def test_the_blocking_client_streams(target: str, script: Script) -> None:
    script.events = [STARTED, A, B, COMPLETED]

    def run() -> list[str]:
        with AtmosphereClient(target) as client, client.chat("hi") as stream:
            return [text for text, _ in stream]

    assert await asyncio.to_thread(run) == ["a", "ab"]


async def test_the_blocking_client_cancels_a_stream_that_is_left_or_dropped(
    target: str, script: Script
) -> None:
    script.events, script.hangs = [STARTED, A], True
    with AtmosphereClient(target) as client:

        def leave() -> None:
            with client.chat("hi") as stream:
                next(stream)

        def drop() -> None:
            for _ in client.chat("hi"):
                break

        for run in (leave, drop):
            script.left.clear()
            await asyncio.to_thread(run)
            await soon(script.left)


async def test_another_thread_ends_a_stream_that_is_being_read(target: str, script: Script) -> None:
    script.events, script.hangs = [STARTED, A], True
    client = AtmosphereClient(target)

    def outcome(end: Callable[[Any], None]) -> AtmosphereError | None:
        stream = client.chat("hi")
        reading = threading.Event()

        def ender() -> None:
            reading.wait(PATIENCE)
            end(stream)

        thread = threading.Thread(target=ender)
        thread.start()
        try:
            for _ in stream:
                reading.set()
        except AtmosphereError as error:
            return error
        finally:
            thread.join()
        return None

    for end in (lambda stream: stream.cancel(), lambda stream: client.close()):
        script.left.clear()
        assert isinstance(await asyncio.to_thread(outcome, end), CallCancelledError)
        await soon(script.left)


async def test_the_blocking_client_reads_health(target: str, script: Script) -> None:
    script.answer = answers(b"\x08\x01")
    with AtmosphereClient(target) as client:
        assert await asyncio.to_thread(client.health) == "SERVING"
