"""A real server in this process, over a fake backend or the embedded models, and its clients."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import inspect
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from atmosphere_client import AsyncAtmosphereClient
from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.config import Settings
from atmosphere_grpc.embedded.backend import INTEGRATION_ID, EmbeddedBackend
from atmosphere_grpc.embedded.start import find_children, running
from atmosphere_grpc.integrations.discovery import Discovery
from atmosphere_grpc.integrations.integration import (
    Integration,
    IntegrationSpec,
    Limits,
    Timeouts,
)
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.server import Server
from atmosphere_grpc.v1 import chat_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionStub
from tests.fakes import FakeServer, Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from atmosphere_grpc.embedded.supervisor import LlamaServer
    from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionAsyncStub

HERE = Path(__file__).parent
CHAT_PATH = "/v1/chat/completions"
EMBED_PATH = "/v1/embeddings"
NODE = "node-of-tests"
#: How long any test of this folder may take, in seconds.
TEST_LIMIT_S = 60
#: How long a server may take to start or stop, in seconds.
LIFE_LIMIT_S = 20
#: How long whatever a test waits for may take, in seconds.
PATIENCE_S = 10


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Bounds every test of this folder, so that none can hang."""
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and HERE in item.path.parents
            and inspect.iscoroutinefunction(item.obj)
        ):
            item.obj = _bounded(item.obj)


def _bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def wrapped(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(TEST_LIMIT_S):
            await test(*args, **kwargs)

    return wrapped


# --- servers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A server that serves, ways to call it, and where its metrics and HTTP are, if anywhere."""

    server: Server
    address: str
    channel: grpc.aio.Channel
    stub: ExecutionAsyncStub
    client: AsyncAtmosphereClient
    metrics: str = ""
    http: str = ""


def openai(
    base_url: str,
    integration_id: str = "fake",
    *,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    default_model: str = "",
) -> Integration:
    """An integration of the OpenAI dialect."""
    timeouts = timeouts or Timeouts()
    wire = WireSettings(
        integration_id, base_url, connect_s=timeouts.connect_s, hint="is it running?"
    )
    limits = limits or Limits()
    spec = IntegrationSpec(
        integration_id, "openai", default_model, timeouts=timeouts, limits=limits
    )
    return Integration(spec, OpenAIBackend(wire))


def embedded_integration(children: Sequence[LlamaServer]) -> Integration:
    """The integration of the embedded models."""
    return Integration(IntegrationSpec(INTEGRATION_ID, "embedded"), EmbeddedBackend(children))


@contextlib.asynccontextmanager
async def serving(
    state_dir: Path, *integrations: Integration | Discovery, **settings: Any
) -> AsyncIterator[Served]:
    """A server on a free port, which probes only when it starts or is woken.

    Its metrics can be read, and it speaks HTTP, where the settings say something of that.
    """
    given = {"listen": "127.0.0.1:0", "node_id": NODE, "probe_interval": 3600, **settings}
    server = Server(Settings(state_dir=state_dir, **given), Registry(integrations))
    address = server.bind()
    metrics = (server.bind_metrics() or "") if "metrics" in settings else ""
    http = (server.bind_http() or "") if "http" in settings else ""
    async with asyncio.timeout(LIFE_LIMIT_S):
        await server.start()
    try:
        async with (
            grpc.aio.insecure_channel(address) as channel,
            AsyncAtmosphereClient(address, timeout=TEST_LIMIT_S) as client,
        ):
            yield Served(server, address, channel, ExecutionStub(channel), client, metrics, http)
    finally:
        async with asyncio.timeout(LIFE_LIMIT_S):
            await server.stop()


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    """A backend that answers as a test scripts it."""
    async with FakeServer() as server:
        yield server


@pytest.fixture
async def served(fake: FakeServer, tmp_path: Path) -> AsyncIterator[Served]:
    """A server over the fake backend alone."""
    async with serving(tmp_path, openai(fake.base_url)) as made:
        yield made


@pytest.fixture(scope="session")
async def children(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[LlamaServer]]:
    """The embedded models, loaded once: give each test that uses them `EMBEDDED`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        made = await find_children(None, None, threads=1, progress=lambda _: None)
    async with running(made):
        yield list(made)


#: Has one worker run every test that uses the embedded models, since each that does loads them.
EMBEDDED = pytest.mark.xdist_group("embedded")


@pytest.fixture(scope="session")
async def embedded(
    children: list[LlamaServer], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """A server over the embedded models."""
    state_dir = tmp_path_factory.mktemp("state")
    async with serving(state_dir, embedded_integration(children)) as made:
        yield made


# --- calls -------------------------------------------------------------------------------------


def chat_request(text: str = "hi", **fields: Any) -> chat_pb2.ChatRequest:
    """A conversation of one message."""
    return chat_pb2.ChatRequest(messages=[chat_pb2.Message(role="user", content=text)], **fields)


@dataclass(frozen=True)
class Told:
    """What a caller is told of a failure."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    fields: dict[str, str]
    request_id: str
    retry_after_s: float | None
    #: Bytes of the trailers as a peer gets them that knows no binary ones.
    trailers_size: int


async def failure_of(call: Awaitable[object]) -> Told:
    """How a unary call failed."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told(caught.value)


async def read(call: Any) -> tuple[list[chat_pb2.ChatResponse], Told | None]:
    """What a chat sends from now on, and how it fails, if it does."""
    events: list[chat_pb2.ChatResponse] = []
    try:
        while (event := await call.read()) is not grpc.aio.EOF:
            events.append(event)
    except grpc.aio.AioRpcError as error:
        return events, told(error)
    return events, None


async def first_delta(call: Any) -> None:
    """Reads the first piece of a chat's answer."""
    while not (await call.read()).HasField("delta"):
        pass


async def broken(call: Any) -> tuple[list[chat_pb2.ChatResponse], Told]:
    """What a chat sent before it failed, and how it did."""
    events, failure = await read(call)
    assert failure is not None, f"the chat ended well: {events}"
    return events, failure


def content(events: Iterable[chat_pb2.ChatResponse]) -> str:
    """The text that came."""
    return "".join(event.delta.content for event in events)


class UntoldError(AssertionError):
    """A caller's gRPC ended a call by itself, before the server's status came."""


def told(error: grpc.aio.AioRpcError) -> Told:
    """What an error says, which must be what the contract promises."""
    trailers = dict(error.trailing_metadata())
    if error.details() == "Deadline Exceeded" and "grpc-status-details-bin" not in trailers:
        raise UntoldError
    encoded = trailers["grpc-status-details-bin"]
    assert isinstance(encoded, bytes)
    status = status_pb2.Status.FromString(encoded)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info = _detail(status.details, error_details_pb2.ErrorInfo())
    assert info is not None
    assert info.domain == "atmosphere"
    request = _detail(status.details, error_details_pb2.RequestInfo())
    assert request is not None
    assert request.request_id == trailers["x-request-id"]
    bad = _detail(status.details, error_details_pb2.BadRequest())
    retry = _detail(status.details, error_details_pb2.RetryInfo())
    return Told(
        error.code(),
        status.message,
        info.reason,
        dict(info.metadata),
        {item.field: item.description for item in bad.field_violations} if bad else {},
        request.request_id,
        retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
        _size(trailers) + len("grpc-message" + quote(status.message)),
    )


def _detail(details: Iterable[any_pb2.Any], kind: Any) -> Any:
    return next((kind for packed in details if packed.Unpack(kind)), None)


def _size(trailers: dict[str, str | bytes]) -> int:
    values = (base64.b64encode(v) if isinstance(v, bytes) else v for v in trailers.values())
    return sum(map(len, trailers)) + sum(map(len, values))


# --- waiting -----------------------------------------------------------------------------------


async def until(condition: Callable[[], bool], what: str, *, within_s: float = PATIENCE_S) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {within_s} s in vain for {what}"
        await asyncio.sleep(0.002)


async def generating(fake: FakeServer, count: int = 1) -> Request:
    """Waits until so many requests in all had a model generate or embed; the last of these."""

    def posts() -> list[Request]:
        return [request for request in fake.requests if request.method == "POST"]

    await until(lambda: len(posts()) >= count, f"{count} requests that generate")
    return posts()[count - 1]


async def no_open_requests(fake: FakeServer) -> None:
    """Waits until every request is answered, or its client gone."""

    def is_over(request: Request) -> bool:
        return request.answered.is_set() or request.gone.is_set()

    await until(lambda: all(map(is_over, fake.requests)), "the backend to be left in peace")


def tasks() -> Counter[str]:
    """The coroutines that tasks run, but for the test's own and those of the fake backends."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    coroutines: list[Any] = [task.get_coro() for task in others]
    return Counter(
        coroutine.__qualname__
        for coroutine in coroutines
        if "/tests/fakes/" not in _file(coroutine)
    )


async def no_tasks_but(before: Counter[str]) -> None:
    """Waits until no more tasks are left than there were."""
    with contextlib.suppress(AssertionError):
        await until(lambda: not tasks() - before, "the tasks of the calls to end")
    assert not tasks() - before


def _file(coroutine: Any) -> str:
    code = getattr(coroutine, "cr_code", None)
    return str(code.co_filename) if code else ""
