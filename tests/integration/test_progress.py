"""What a chat is told while there is nothing to show: that it is alive, and what it waits for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.config import Integration as Settings
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from tests.fakes import ColdModel, FakeServer, Ollama, Reply, Until, answer_events
from tests.fakes.sockets import unanswering
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

BEAT_S = 0.05
Phase = chat_pb2.Progress.Phase


def integration(url: str, **settings: Any) -> Integration:
    given = {"id": "fake", "base_urls": [url], "default_model": "fake-model", **settings}
    made = integration_of(Settings.model_validate(given))
    assert isinstance(made, Integration)
    return made


async def beats(call: Any, count: int) -> list[chat_pb2.Progress]:
    """The first signs of life of a chat."""
    found: list[chat_pb2.Progress] = []
    while len(found) < count:
        event = await call.read()
        assert event.WhichOneof("event") == "progress"
        found.append(event.progress)
    return found


def held_back(go_on: asyncio.Event) -> Reply:
    return Reply.stream(*answer_events()).after(Until(go_on))


async def test_a_chat_that_waits_for_its_first_token_says_so_until_it_comes(
    tmp_path: Path,
) -> None:
    go_on = asyncio.Event()
    async with FakeServer() as fake:
        fake.script(CHAT_PATH, held_back(go_on))
        made = integration(fake.base_url)
        async with serving(tmp_path, made, progress_interval=BEAT_S) as served:
            call = served.stub.Chat(chat_request())
            found = await beats(call, 3)
            go_on.set()
            rest, failure = await read(call)
    assert failure is None
    assert {item.phase for item in found} == {Phase.PHASE_WAITING_FIRST_TOKEN}
    times = [item.elapsed_ms for item in found]
    assert times == sorted(times)
    assert times[0] >= BEAT_S * 1000
    kinds = [event.WhichOneof("event") for event in rest]
    kinds = [kind for kind in kinds if kind != "progress"]
    assert kinds == ["started", "delta", "delta", "completed"]
    assert content(rest) == "Hello world"


async def test_a_chat_that_waits_for_its_turn_says_how_many_are_ahead(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with FakeServer() as fake:
        fake.script(CHAT_PATH, *[held_back(go_on)] * 3)
        limits = {"max_concurrency": 1, "max_queue": 2}
        made = integration(fake.base_url, limits=limits)
        async with serving(tmp_path, made, progress_interval=BEAT_S) as served:
            first = served.stub.Chat(chat_request())
            await until(lambda: made.limiter.active == 1, "the first to run")
            second = served.stub.Chat(chat_request())
            await until(lambda: made.limiter.waiting == 1, "the second to wait")
            third = served.stub.Chat(chat_request())
            await until(lambda: made.limiter.waiting == 2, "the third to wait")
            (waiting,) = await beats(third, 1)
            assert (waiting.phase, waiting.queue_position) == (Phase.PHASE_QUEUED, 1)
            refused = await failure_of(
                served.stub.Execute(execution_pb2.ExecuteRequest(intent="hi"))
            )
            assert refused.reason == "QUEUE_FULL"
            second.cancel()
            await until(lambda: made.limiter.waiting == 1, "the second to leave")
            while waiting.queue_position:  # some may have been sent before
                (waiting,) = await beats(third, 1)
            assert waiting.phase == Phase.PHASE_QUEUED
            go_on.set()
            for call in (first, third):
                events, failure = await read(call)
                assert failure is None
                assert content(events) == "Hello world"
            assert (made.limiter.active, made.limiter.waiting) == (0, 0)


async def test_a_chat_that_waits_for_a_connection_says_so(tmp_path: Path) -> None:
    with unanswering() as address:
        made = integration(f"http://{address}/v1", timeouts={"connect": 0.4})
        # The probe would take as long as it is given: nothing is asked before the call.
        async with serving(tmp_path, made, progress_interval=BEAT_S) as served:
            call = served.stub.Chat(chat_request())
            found = await beats(call, 2)
            call.cancel()
    assert {item.phase for item in found} == {Phase.PHASE_CONNECTING}


async def test_a_chat_that_waits_for_a_model_to_be_loaded_says_so(tmp_path: Path) -> None:
    cold = ColdModel()
    async with FakeServer(Ollama(cold=cold)) as fake:
        made = integration(fake.url, kind="ollama")
        async with serving(tmp_path, made, progress_interval=BEAT_S) as served:
            call = served.stub.Chat(chat_request())
            found = await beats(call, 2)
            cold.finish()
            rest, failure = await read(call)
    assert failure is None
    assert {item.phase for item in found} == {Phase.PHASE_WAITING_FIRST_TOKEN}
    assert content(rest) == "Hello world"


async def test_a_client_may_do_without(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with FakeServer() as fake:
        fake.script(CHAT_PATH, held_back(go_on))
        made = integration(fake.base_url)
        async with serving(tmp_path, made, progress_interval=BEAT_S) as served:
            options = chat_pb2.StreamOptions(no_progress=True)
            call = served.stub.Chat(chat_request(stream=options))
            reading = asyncio.create_task(read(call))
            assert await asyncio.wait({reading}, timeout=4 * BEAT_S) == (set(), {reading})
            go_on.set()
            events, failure = await reading
    assert failure is None
    assert [event.WhichOneof("event") for event in events] == [
        *("started", "delta", "delta", "completed")
    ]


async def test_the_client_of_this_project_reads_over_them(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with FakeServer() as fake:
        fake.script(CHAT_PATH, held_back(go_on))
        made = integration(fake.base_url)
        async with (
            serving(tmp_path, made, progress_interval=BEAT_S) as served,
            served.client.chat("hi") as stream,
        ):
            asyncio.get_running_loop().call_later(3 * BEAT_S, go_on.set)
            said = "".join([delta.content async for _, delta in stream])
    assert said == "Hello world"


# --- the queue and the caller's time -------------------------------------------------------------


async def occupied(served: Served, made: Integration) -> Any:
    """A call that holds the only turn."""
    call = served.stub.Chat(chat_request())
    await first_delta(call)
    assert made.limiter.active == 1
    return call


@pytest.mark.parametrize("fastest_s", [0.0, 10.0])
async def test_a_turn_that_cannot_come_in_time_is_not_waited_for(
    tmp_path: Path, fastest_s: float
) -> None:
    go_on = asyncio.Event()
    async with FakeServer() as fake:
        events = [*answer_events()]
        fake.always(CHAT_PATH, Reply.stream(*events[:2], Until(go_on), *events[2:]))
        made = integration(fake.base_url, limits={"max_concurrency": 1, "max_queue": 5})
        if fastest_s:
            made.limiter._observe(fastest_s)
        async with serving(tmp_path, made) as served:
            await occupied(served, made)
            loop = asyncio.get_running_loop()
            began = loop.time()
            request = execution_pb2.ExecuteRequest(intent="hi")
            failure = await failure_of(served.stub.Execute(request, timeout=0.5))
            took_s = loop.time() - began
            go_on.set()
    assert (failure.reason, failure.metadata["phase"]) == ("DEADLINE_EXCEEDED", "QUEUE")
    assert 'its turn at integration "fake", with 0 calls ahead of it' in failure.message
    # With calls that take longer than that, it is known at once.
    assert took_s < 0.2 if fastest_s else 0.4 < took_s < 0.55
