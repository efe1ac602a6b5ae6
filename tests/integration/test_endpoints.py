"""Several endpoints of an integration: balanced, and done without where one fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.config import Integration as Settings
from atmosphere_grpc.domain import IntegrationState
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.v1 import execution_pb2
from tests.fakes import FakeServer, LlamaFarm, Reply, Stall, event, text
from tests.fakes.server import Dialect
from tests.integration.conftest import (
    CHAT_PATH,
    Served,
    chat_request,
    content,
    failure_of,
    first_delta,
    read,
    serving,
    until,
)

EXECUTE = execution_pb2.ExecuteRequest(intent="hi")
LOAD = 40


def integration(urls: list[str], **settings: Any) -> Integration:
    given = {"id": "fake", "base_urls": urls, "default_model": "fake-model", **settings}
    made = integration_of(Settings.model_validate(given))
    assert isinstance(made, Integration)
    return made


@asynccontextmanager
async def pair(
    tmp_path: Path, dialect: type[Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Served, list[FakeServer]]]:
    """A server over two endpoints of one integration."""
    async with AsyncExitStack() as stack:
        made: list[Dialect | None] = [dialect() if dialect else None for _ in range(2)]
        fakes = [
            await stack.enter_async_context(FakeServer(item) if item else FakeServer())
            for item in made
        ]
        server = {name: settings.pop(name) for name in ("attempts",) if name in settings}
        urls = [fake.url if dialect else fake.base_url for fake in fakes]
        served = await stack.enter_async_context(
            serving(tmp_path, integration(urls, **settings), **server)
        )
        yield served, fakes


def chats(fake: FakeServer) -> int:
    return len([request for request in fake.requests if request.body])


@pytest.mark.parametrize("balancing", ["least_outstanding", "round_robin"])
async def test_calls_are_spread_over_the_endpoints(tmp_path: Path, balancing: str) -> None:
    async with pair(tmp_path, balancing=balancing) as (served, fakes):
        await asyncio.gather(*(served.stub.Execute(EXECUTE) for _ in range(LOAD)))
        counts = [chats(fake) for fake in fakes]
    assert sum(counts) == LOAD
    assert min(counts) >= LOAD / 4
    if balancing == "round_robin":
        assert counts == [LOAD / 2, LOAD / 2]


async def test_one_that_has_much_to_do_is_given_less(tmp_path: Path) -> None:
    async with pair(tmp_path) as (served, (busy, free)):
        busy.always(CHAT_PATH, Reply.stream(event(text("a")), Stall()))
        free.script(CHAT_PATH, *[Reply.stream(event(text("a")), Stall())] * 1)
        held = [served.stub.Chat(chat_request()) for _ in range(2)]
        for call in held:
            await first_delta(call)
        (endpoints,) = [item.endpoints for item in served.server.registry]
        assert sorted(item.active for item in endpoints) == [1, 1]
        for call in held:
            call.cancel()


async def test_a_session_stays_at_its_endpoint(tmp_path: Path) -> None:
    settings = {"kind": "llamafarm", "project": "default/fake"}
    async with pair(tmp_path, LlamaFarm, **settings) as (served, fakes):
        for session in [*"abcdefgh"] * 3:
            _, failure = await read(served.stub.Chat(chat_request(session_id=session)))
            assert failure is None
        seen = [
            Counter(request.headers["x-session-id"] for request in fake.requests if request.body)
            for fake in fakes
        ]
    assert not seen[0].keys() & seen[1].keys()
    assert set((seen[0] + seen[1]).values()) == {3}


async def test_all_endpoints_are_listed_and_one_of_them_is_enough(tmp_path: Path) -> None:
    async with pair(tmp_path) as (served, (one, two)):
        one.always("/v1/models", Reply.json({}, 503))
        listed = await served.stub.ListModels(execution_pb2.ListModelsRequest())
        assert [model.id for model in listed.models] == ["fake-model"]
        assert not listed.unavailable
        integrations = await served.stub.ListIntegrations(execution_pb2.ListIntegrationsRequest())
        (item,) = integrations.integrations
        assert item.state == execution_pb2.INTEGRATION_STATE_UP
        assert list(item.endpoints) == [url.url.removeprefix("http://") for url in (one, two)]
        assert item.error == ""


async def test_killing_one_of_two_under_load_fails_no_call_and_it_is_used_again_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        stays = await stack.enter_async_context(FakeServer())
        goes = FakeServer()
        await goes.__aenter__()
        made = integration([stays.base_url, goes.base_url])
        served = await stack.enter_async_context(serving(tmp_path, made, probe_interval=0.2))
        failures: list[str] = []
        done = asyncio.Event()

        async def calls() -> int:
            count = 0
            while not done.is_set():
                response = await served.stub.Execute(EXECUTE)
                count += 1
                if response.data.message.content != "Hello world":
                    failures.append(response.data.message.content)
            return count

        async def streams() -> int:
            count = 0
            while not done.is_set():
                events, failure = await read(served.stub.Chat(chat_request()))
                count += 1
                begun = any(event.HasField("delta") for event in events)
                if failure is not None and not begun:
                    failures.append(failure.message)
            return count

        running = [asyncio.create_task(work()) for work in (calls, streams) for _ in range(8)]
        await until(lambda: chats(goes) > 20, "load on the one that goes")
        port = int(goes.url.rpartition(":")[2])
        await goes.__aexit__(None, None, None)
        (gone,) = [item for item in made.endpoints if str(port) in item.address]
        await until(lambda: gone.state is IntegrationState.DOWN, "a probe to find it gone")
        before = chats(stays)
        await until(lambda: chats(stays) > before + 50, "calls without it")
        back = FakeServer(port=port)
        await stack.enter_async_context(back)
        await until(lambda: chats(back) > 20, "calls to it once it is back", within_s=2)
        done.set()
        counts = await asyncio.gather(*running)
    assert failures == []
    assert sum(counts) > 100


async def test_an_endpoint_that_fails_again_and_again_is_left_alone_but_for_one_call_at_a_time(
    tmp_path: Path,
) -> None:
    breaker = {"failures": 3, "cooldown": "0.3s"}
    async with pair(tmp_path, balancing="round_robin", breaker=breaker) as (served, (bad, good)):
        bad.always(CHAT_PATH, Reply.json({}, 500))
        for _ in range(LOAD):
            assert (await served.stub.Execute(EXECUTE)).success
        assert chats(bad) == 3
        assert chats(good) == LOAD
        await asyncio.sleep(0.31)  # the cooldown is what is tested
        for _ in range(10):
            assert (await served.stub.Execute(EXECUTE)).success
        assert chats(bad) == 4  # the one that tried it failed, and opened it anew


async def test_an_only_endpoint_is_asked_however_often_it_failed(tmp_path: Path) -> None:
    async with FakeServer() as fake:
        made = integration([fake.base_url], breaker={"failures": 2, "cooldown": "1h"})
        async with serving(tmp_path, made) as served:
            fake.script(CHAT_PATH, *[Reply.json({}, 500)] * 6)
            for _ in range(6):
                failure = await failure_of(served.stub.Execute(EXECUTE))
                assert failure.reason == "BACKEND_ERROR"
            assert (await served.stub.Execute(EXECUTE)).data.message.content == "Hello world"


async def test_an_integration_that_starts_after_the_server_is_found(tmp_path: Path) -> None:
    async with FakeServer() as placeholder:
        port = int(placeholder.url.rpartition(":")[2])
    made = integration([f"http://127.0.0.1:{port}/v1"])
    async with serving(tmp_path, made, probe_interval=0.2) as served:
        failure = await failure_of(served.stub.Execute(EXECUTE))
        assert failure.reason == "BACKEND_UNAVAILABLE"
        async with FakeServer(port=port):
            await until(lambda: made.state is IntegrationState.UP, "a probe", within_s=1)
            events, broken = await read(served.stub.Chat(chat_request()))
    assert broken is None
    assert content(events) == "Hello world"
