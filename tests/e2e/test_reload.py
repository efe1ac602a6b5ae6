"""A running server that reads its settings anew, and one that is told to stop with streams open."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionStub
from tests.e2e.processes import COMMAND, Finished, Serving, run, serving
from tests.fakes import FakeServer, OpenAI, Reply, Until, answer_events

pytestmark = pytest.mark.xdist_group("e2e")

CHAT = "/v1/chat/completions"
STREAMS = 50


@dataclass
class Place:
    """A server, its configuration, and the backend that it names."""

    server: Serving
    config: Path
    state_dir: Path
    fake: FakeServer

    def write(self, *entries: str, more: str = "") -> None:
        """Writes the configuration anew."""
        items = "".join(f"  - {entry}\n" for entry in entries)
        self.config.write_text(f"integrations:\n{items}{more}")

    def named(self, name: str) -> str:
        """An entry for the backend."""
        return f'{{id: {name}, base_urls: ["{self.fake.base_url}"]}}'

    async def reload(self) -> Finished:
        """Has the server read it."""
        words = ("config", "reload", "--listen", self.server.address)
        state = str(self.state_dir)
        return await asyncio.to_thread(run, [COMMAND, *words], ATMOSPHERE_STATE_DIR=state)

    async def ids(self) -> list[str]:
        """The integrations that the server has."""
        done = await asyncio.to_thread(
            run, [COMMAND, "integrations", "--json"], ATMOSPHERE_TARGET=self.server.address
        )
        return [item["id"] for item in json.loads(done.out)["integrations"]]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeServer(OpenAI()))
        config = tmp_path / "atmosphere.yaml"
        config.write_text(f'integrations: [{{id: one, base_urls: ["{fake.base_url}"]}}]')
        with ExitStack() as processes:
            starting = serving(tmp_path / "server", "--config", str(config))
            server = await asyncio.to_thread(processes.enter_context, starting)
            assert server.address, server.log
            yield Place(server, config, tmp_path / "server" / "state", fake)


async def test_right_settings_hold_for_new_calls(place: Place) -> None:
    assert await place.ids() == ["one"]
    place.write(place.named("two"), place.named("one"))
    done = await place.reload()
    assert (done.status, done.out) == (0, "ok: the settings hold for new calls\n")
    assert await place.ids() == ["two", "one"]


async def test_wrong_settings_are_kept_out_with_the_reason(place: Place) -> None:
    place.write(place.named("two"), "{id: three}")
    done = await place.reload()
    assert done.status == 2
    assert f"{place.config}: integrations[1].base_urls: Field required" in done.err
    assert await place.ids() == ["one"]
    assert "the settings are wrong, and those from before go on" in place.server.log
    place.write(place.named("two"))
    assert (await place.reload()).status == 0
    assert await place.ids() == ["two"]


async def test_a_secret_that_is_missing_keeps_all_of_it_out(place: Place) -> None:
    place.write(place.named("two"), place.named("three")[:-1] + ", api_key: {env: NOT_THERE}}")
    done = await place.reload()
    assert done.status == 2
    assert 'integration "three": the environment variable NOT_THERE' in done.err
    assert await place.ids() == ["one"]


async def test_what_needs_a_restart_is_told(place: Place) -> None:
    place.write(place.named("two"), more="reflection: false\n")
    done = await place.reload()
    assert done.status == 0
    assert "reflection has changed, and holds after a restart only" in done.err
    assert await place.ids() == ["two"]


async def test_a_call_that_is_under_way_goes_on_though_its_integration_is_gone(
    place: Place,
) -> None:
    go_on = asyncio.Event()
    events = [*answer_events()]
    place.fake.script(CHAT, Reply.stream(*events[:2], Until(go_on), *events[2:]))
    async with grpc.aio.insecure_channel(place.server.address) as channel:
        call: Any = ExecutionStub(channel).Chat(request())
        while not (await call.read()).HasField("delta"):
            pass
        place.write(place.named("two"))
        place.server.process.send_signal(signal.SIGHUP)
        while await place.ids() != ["two"]:
            pass
        go_on.set()
        assert "".join(event.delta.content for event in await rest(call)) == " world"


async def test_there_is_nothing_to_reload_where_no_server_is(tmp_path: Path) -> None:
    command = [COMMAND, "config", "reload", "--listen", "127.0.0.1:1"]
    done = await asyncio.to_thread(run, command, ATMOSPHERE_STATE_DIR=str(tmp_path))
    assert done.status == 2
    assert "no server with the state directory" in done.err


async def test_a_server_that_was_killed_is_not_taken_for_a_live_one(place: Place) -> None:
    place.server.process.kill()
    place.server.process.wait()
    done = await place.reload()
    assert done.status == 2
    assert "no server with the state directory" in done.err


async def test_a_server_that_is_told_to_stop_lets_its_streams_finish_and_takes_no_new_ones(
    place: Place,
) -> None:
    go_on = asyncio.Event()
    events = [*answer_events()]
    place.fake.always(CHAT, Reply.stream(*events[:2], Until(go_on), *events[2:]))
    async with (
        grpc.aio.insecure_channel(place.server.address) as channel,
        grpc.aio.insecure_channel(place.server.address) as other,
    ):
        await other.channel_ready()
        stub = ExecutionStub(channel)
        calls: list[Any] = [stub.Chat(request()) for _ in range(STREAMS)]
        for call in calls:
            while not (await call.read()).HasField("delta"):
                pass
        place.server.process.send_signal(signal.SIGTERM)
        late = ExecutionStub(other)
        while (code := await attempted(late)) is grpc.StatusCode.OK:
            pass
        assert code is grpc.StatusCode.UNAVAILABLE
        go_on.set()
        for call in calls:
            left = await rest(call)
            assert "".join(event.delta.content for event in left) == " world"
            assert left[-1].HasField("completed")
    done = await asyncio.to_thread(place.server.ended)
    assert done.status == 0, done.err


async def rest(call: Any) -> list[chat_pb2.ChatResponse]:
    """What is left of a chat."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def attempted(stub: Any) -> grpc.StatusCode:
    """How a call that asks no backend ends."""
    call = stub.ListIntegrations(execution_pb2.ListIntegrationsRequest())
    code: grpc.StatusCode = await call.code()
    if code is not grpc.StatusCode.OK:
        # Iterated, since what older gRPC gives passes for a mapping and is none.
        trailers = [*(await call.trailing_metadata() or ())]
        assert any(b"DRAINING" in value for name, value in trailers if name.endswith("-bin"))
    return code


def request() -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(messages=[chat_pb2.Message(role="user", content="hi")])
