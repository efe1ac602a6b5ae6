"""The life of a server: bind, serve, follow its backends up and down, drain, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from atmosphere_grpc.config import Settings
from atmosphere_grpc.embedded.supervisor import Backoff
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.listening import StartError
from atmosphere_grpc.server import LEAVE_PAUSE_S, LIVE, Server
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.fakes import FakeServer, Reply, Stall, Until, answer_events, event, text
from tests.fakes.sockets import refusing
from tests.integration.conftest import (
    CHAT_PATH,
    EMBEDDED,
    Served,
    Told,
    broken,
    chat_request,
    content,
    embedded_integration,
    failure_of,
    first_delta,
    generating,
    openai,
    read,
    serving,
    told,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from atmosphere_grpc.embedded.supervisor import LlamaServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UP, DOWN = execution_pb2.INTEGRATION_STATE_UP, execution_pb2.INTEGRATION_STATE_DOWN
SERVICE = "atmosphere.v1.Execution"
#: Far less than the pause between two probes of these servers.
SOON_S = 5


def health(served: Served) -> Any:
    return health_pb2_grpc.HealthStub(served.channel)


async def checked(served: Served) -> Any:
    """The health, which is the same for the server and for its service."""
    both = [
        (await health(served).Check(health_pb2.HealthCheckRequest(service=service))).status
        for service in ("", SERVICE)
    ]
    assert both[0] == both[1]
    return both[0]


@asynccontextmanager
async def watching(served: Served) -> AsyncIterator[Any]:
    """Gives the health, now and whenever it changes, to who asks."""
    call = health(served).Watch(health_pb2.HealthCheckRequest(service=SERVICE))

    async def following() -> Any:
        async with asyncio.timeout(SOON_S):
            return (await call.read()).status

    yield following
    call.cancel()


async def the_integration(served: Served) -> execution_pb2.Integration:
    request = execution_pb2.ListIntegrationsRequest()
    (integration,) = (await served.stub.ListIntegrations(request)).integrations
    return integration


def chat(served: Served) -> Any:
    return served.stub.Chat(chat_request())


# --- bind --------------------------------------------------------------------------------------


async def test_a_port_that_is_taken_is_told_as_the_setting_listen(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = Server(Settings(state_dir=tmp_path, listen=address), Registry([]))
        with pytest.raises(StartError, match=f"listen.*{address}.*--listen"):
            server.bind()
        await server.stop()


async def test_a_second_server_does_not_get_the_port_of_the_first(
    served: Served, tmp_path: Path
) -> None:
    second = Server(Settings(state_dir=tmp_path, listen=served.address), Registry([]))
    with pytest.raises(StartError, match="listen"):
        second.bind()
    await second.stop()


# --- backends that come and go -----------------------------------------------------------------


async def test_a_backend_that_is_down_is_told_in_every_way(tmp_path: Path) -> None:
    with refusing() as address:
        async with serving(tmp_path, openai(f"http://{address}/v1")) as served:
            assert await checked(served) == NOT_SERVING
            await check_down(served, address)


async def check_down(served: Served, address: str) -> None:
    """Every RPC says that the backend is down, in its way, and what to do."""
    integration = await the_integration(served)
    assert (integration.state, integration.error_reason) == (DOWN, "BACKEND_UNAVAILABLE")
    assert integration.error == (
        f'integration "fake": connection refused at {address} – is it running?'
    )
    assert list(integration.endpoints) == [address]
    _, failure = await broken(served.stub.Chat(chat_request()))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE")
    assert integration.error in failure.message
    assert failure.retry_after_s is not None
    models = await served.stub.ListModels(execution_pb2.ListModelsRequest())
    assert not models.models
    assert models.unavailable[0].error == integration.error
    tested = await served.stub.TestIntegration(
        execution_pb2.TestIntegrationRequest(integration_id="fake")
    )
    assert (tested.success, tested.error_reason) == (False, "BACKEND_UNAVAILABLE")


async def test_health_follows_a_backend(tmp_path: Path) -> None:
    async with FakeServer() as fake:
        pass  # to have a port that is free
    integration = openai(f"http://127.0.0.1:{fake.port}/v1")
    async with serving(tmp_path, integration) as served, watching(served) as following:
        registry = served.server.registry
        assert await following() == NOT_SERVING
        async with FakeServer(port=fake.port):
            registry.wake("fake")
            assert await following() == SERVING
            assert await checked(served) == SERVING
            integration_now = await the_integration(served)
            assert (integration_now.state, integration_now.error) == (UP, "")
            assert (await served.client.execute("hi")).success
        registry.wake("fake")
        assert await following() == NOT_SERVING
        assert (await the_integration(served)).state == DOWN


async def test_a_process_is_live_whatever_its_backends_do(tmp_path: Path) -> None:
    integration = openai("http://127.0.0.1:1/v1")
    async with serving(tmp_path, integration) as served:
        live = health_pb2.HealthCheckRequest(service=LIVE)
        assert await checked(served) == NOT_SERVING
        assert (await health(served).Check(live)).status == SERVING
        await served.server.drain()
        assert (await health(served).Check(live)).status == NOT_SERVING


async def test_a_call_finds_a_backend_that_came_up_since_the_last_probe(tmp_path: Path) -> None:
    async with FakeServer() as fake:
        pass
    async with (
        serving(tmp_path, openai(f"http://127.0.0.1:{fake.port}/v1")) as served,
        FakeServer(port=fake.port),
    ):
        assert (await served.client.execute("hi")).success


async def test_one_usable_backend_of_two_is_enough(fake: FakeServer, tmp_path: Path) -> None:
    with refusing() as address:
        first = openai(f"http://{address}/v1", "first")
        async with serving(tmp_path, first, openai(fake.base_url, "second")) as served:
            assert await checked(served) == SERVING
            response = await served.client.execute("hi")
            assert response.data.integration_id == "second"
            models = await served.stub.ListModels(execution_pb2.ListModelsRequest())
            assert {model.integration_id for model in models.models} == {"second"}
            assert [item.integration_id for item in models.unavailable] == ["first"]


# --- drain and stop ----------------------------------------------------------------------------


async def refused_call(served: Served) -> Told:
    """Calls until a call is refused."""
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                await served.stub.ListIntegrations(execution_pb2.ListIntegrationsRequest())
            except grpc.aio.AioRpcError as error:
                return told(error)


async def test_a_drain_lets_calls_finish_and_no_more_in(served: Served, fake: FakeServer) -> None:
    go_on = asyncio.Event()
    fake.script(CHAT_PATH, Reply.stream(event(text("Well: ")), Until(go_on), *answer_events()))
    async with watching(served) as following:
        assert await following() == SERVING
        call = chat(served)
        await first_delta(call)
        drain = asyncio.ensure_future(served.server.drain())
        assert await following() == NOT_SERVING
        # The news comes before the first refusal.
        assert (await served.client.integrations())[0].state == UP
        failure = await refused_call(served)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert failure.retry_after_s is not None
        assert await checked(served) == NOT_SERVING
        assert not drain.done()
        go_on.set()
        rest, failed = await read(call)
        assert failed is None
        assert content(rest) == "Hello world"
        assert rest[-1].completed.finish_reason == chat_pb2.FINISH_REASON_STOP
        await asyncio.wait_for(drain, SOON_S)  # although the health is still watched


async def test_a_drain_is_bounded(fake: FakeServer, tmp_path: Path) -> None:
    fake.always(CHAT_PATH, Reply.stream(event(text("a")), Stall()))
    async with serving(tmp_path, openai(fake.base_url), drain_grace=0.2) as served:
        call = chat(served)
        await first_delta(call)
        began = time.monotonic()
        await served.server.drain()
        assert 0.2 <= time.monotonic() - began < LEAVE_PAUSE_S + 0.2 + 1
        assert served.server.in_flight == 1
        call.cancel()


async def test_stopping_ends_calls_at_once_and_stops_the_backend(
    fake: FakeServer, tmp_path: Path
) -> None:
    fake.always(CHAT_PATH, Reply.stream(event(text("a")), Stall()))
    async with serving(tmp_path, openai(fake.base_url)) as served:
        call = chat(served)
        await first_delta(call)
        request = await generating(fake)
        async with watching(served) as following:
            await following()
            began = time.monotonic()
            await served.server.stop()
            assert time.monotonic() - began < 1
        assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        await asyncio.wait_for(request.gone.wait(), SOON_S)


# --- embedded models ---------------------------------------------------------------------------


@EMBEDDED
async def test_an_embedded_model_that_is_killed_is_told_and_comes_back(
    children: list[LlamaServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_child = children[0]
    # Time enough to look at it while it is down.
    monkeypatch.setattr(chat_child, "_backoff", Backoff(initial_s=1.5))
    async with serving(tmp_path, embedded_integration(children)) as served:
        registry = served.server.registry
        monkeypatch.setattr(chat_child, "on_change", lambda: registry.wake("embedded"))
        async with watching(served) as following:
            assert await following() == SERVING
            endless = chat_pb2.SamplingOptions(max_tokens=3500, temperature=1.5)
            call: Any = served.stub.Chat(chat_request("Tell a story.", sampling=endless))
            await first_delta(call)
            assert chat_child.pid is not None
            os.kill(chat_child.pid, signal.SIGKILL)
            assert await following() == NOT_SERVING
            integration = await the_integration(served)
            assert (integration.state, integration.error_reason) == (DOWN, "BACKEND_UNAVAILABLE")
            assert "killed by SIGKILL" in integration.error
            assert "restarting" in integration.error
            _, failure = await broken(call)
            assert failure.reason == "STREAM_TRUNCATED"
            refusal = await failure_of(
                served.stub.Execute(execution_pb2.ExecuteRequest(intent="hi"))
            )
            assert refusal.reason == "BACKEND_UNAVAILABLE"
            assert "killed by SIGKILL" in refusal.message
            assert await following() == SERVING
            assert (await the_integration(served)).state == UP
            assert (await served.client.execute("hi", max_tokens=1)).success
        await until(lambda: served.server.in_flight == 0, "the calls to end")
