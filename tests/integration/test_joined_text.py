"""Text that is joined for a while: fewer deltas, none of them late, nothing lost."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.config import Integration as Settings
from atmosphere_grpc.integrations.integration import Integration, Timeouts
from atmosphere_grpc.v1 import chat_pb2
from tests.fakes import DONE, Close, FakeServer, Pause, Reply, Stall, Until, chunk, event, ollama
from tests.integration.conftest import (
    CHAT_PATH,
    Served,
    Told,
    chat_request,
    content,
    openai,
    read,
    serving,
)

#: Longer than any test waits, so that what does not wait for it is seen.
LONG_MS = 1000
GAP_S = 0.01


def text(content: str) -> bytes:
    return event(chunk({"content": content}))


STOP = event(chunk({}, "stop"))
ENDED = (STOP, DONE)


def paced(*texts: str, end: tuple[Any, ...] = ENDED) -> Reply:
    """An answer, piece by piece."""
    steps: list[Any] = []
    for item in texts:
        steps += [text(item), Pause(GAP_S)]
    return Reply.stream(*steps, *end)


async def deltas(served: Served, max_delay_ms: int) -> tuple[list[str], Told | None, float]:
    """The texts of a chat's deltas, how it failed, and how many seconds it took."""
    request = chat_request(stream=chat_pb2.StreamOptions(max_delay_ms=max_delay_ms))
    began = time.monotonic()
    events, failure = await read(served.stub.Chat(request))
    took_s = time.monotonic() - began
    return [item.delta.content for item in events if item.HasField("delta")], failure, took_s


async def test_text_is_joined_after_the_first_delta_and_the_last_is_not_late(
    tmp_path: Path, fake: FakeServer
) -> None:
    texts = [f"{i} " for i in range(12)]
    fake.script(CHAT_PATH, paced(*texts))
    async with serving(tmp_path, openai(fake.base_url)) as served:
        found, failure, took_s = await deltas(served, LONG_MS)
    assert failure is None
    assert found == [texts[0], "".join(texts[1:])]
    assert took_s < LONG_MS / 1000


async def test_ollamas_lines_are_joined_likewise(tmp_path: Path) -> None:
    steps: list[Any] = []
    for item in "abcd":
        steps += [ollama.line({"content": item}), Pause(GAP_S)]
    end = ollama.line(done="stop")
    async with FakeServer(ollama.Ollama()) as fake:
        fake.script("/api/chat", ollama.lines(*steps, end))
        made = integration_of(Settings(id="fake", kind="ollama", base_urls=[fake.url]))
        assert isinstance(made, Integration)
        async with serving(tmp_path, made) as served:
            found, failure, took_s = await deltas(served, LONG_MS)
    assert (failure, found) == (None, ["a", "bcd"])
    assert took_s < LONG_MS / 1000


async def test_joined_text_is_sent_when_its_time_is_over(tmp_path: Path, fake: FakeServer) -> None:
    go_on = asyncio.Event()
    fake.script(CHAT_PATH, paced(*"abcd", end=(Until(go_on), text("e"), *ENDED)))
    async with serving(tmp_path, openai(fake.base_url)) as served:
        request = chat_request(stream=chat_pb2.StreamOptions(max_delay_ms=100))
        found = []
        async for item in served.stub.Chat(request):
            if item.HasField("delta"):
                found.append(item.delta.content)
            if len(found) == 2:
                go_on.set()
    assert found == ["a", "bcd", "e"]


async def test_without_a_wish_few_streams_are_not_joined(tmp_path: Path, fake: FakeServer) -> None:
    fake.script(CHAT_PATH, paced(*"abcd"))
    async with serving(tmp_path, openai(fake.base_url)) as served:
        found, _, _ = await deltas(served, 0)
    assert found == list("abcd")


async def test_the_server_may_have_a_default(tmp_path: Path, fake: FakeServer) -> None:
    fake.script(CHAT_PATH, paced(*"abcd"))
    async with serving(tmp_path, openai(fake.base_url), stream_join="1s") as served:
        found, _, _ = await deltas(served, 0)
    assert found == ["a", "bcd"]


async def test_what_comes_further_apart_is_not_held_back(tmp_path: Path, fake: FakeServer) -> None:
    fake.script(CHAT_PATH, paced(*"abcd"))
    async with serving(tmp_path, openai(fake.base_url)) as served:
        found, _, _ = await deltas(served, 1)
    assert found == list("abcd")


@pytest.mark.parametrize("end", [(Close(),), (event({"error": {"message": "out of memory"}}),)])
async def test_what_came_before_a_failure_is_delivered(
    tmp_path: Path, fake: FakeServer, end: tuple[Any, ...]
) -> None:
    fake.script(CHAT_PATH, paced(*"abcd", end=end))
    async with serving(tmp_path, openai(fake.base_url), attempts={"maximum": 1}) as served:
        found, failure, took_s = await deltas(served, LONG_MS)
    assert "".join(found) == "abcd"
    assert len(found) == 2
    assert failure is not None
    assert took_s < LONG_MS / 1000


async def test_an_answer_that_ends_while_its_stream_stays_open_is_not_late(
    tmp_path: Path, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, paced(*"abcd", end=(*ENDED, Stall())))
    async with serving(tmp_path, openai(fake.base_url)) as served:
        found, failure, took_s = await deltas(served, LONG_MS)
    assert (failure, found) == (None, ["a", "bcd"])
    assert took_s < LONG_MS / 1000


async def test_a_pause_of_the_model_is_told_while_text_is_joined(
    tmp_path: Path, fake: FakeServer
) -> None:
    made = openai(fake.base_url, timeouts=Timeouts(idle_s=0.2))
    fake.script(CHAT_PATH, paced(*"abcd", end=(Stall(),)))
    async with serving(tmp_path, made, attempts={"maximum": 1}) as served:
        found, failure, _ = await deltas(served, 50)
    assert "".join(found) == "abcd"
    assert failure is not None
    assert (failure.reason, failure.metadata["phase"]) == ("DEADLINE_EXCEEDED", "IDLE")


async def test_a_cancelled_call_lets_go_while_text_is_joined(
    tmp_path: Path, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, paced(*"ab", end=(Stall(),)))
    async with serving(tmp_path, openai(fake.base_url)) as served:
        request = chat_request(stream=chat_pb2.StreamOptions(max_delay_ms=LONG_MS))
        call = served.stub.Chat(request)
        async for item in call:
            if item.HasField("delta"):
                break
        began = time.monotonic()
        call.cancel()
        await fake.client_gone()
        assert time.monotonic() - began < LONG_MS / 2000


async def test_a_drain_waits_for_what_is_joined(tmp_path: Path, fake: FakeServer) -> None:
    go_on = asyncio.Event()
    fake.script(CHAT_PATH, paced(*"abcd", end=(Until(go_on), *ENDED)))
    async with serving(tmp_path, openai(fake.base_url)) as served:
        chat = asyncio.create_task(deltas(served, LONG_MS))
        await fake.arrived(1)
        draining = asyncio.create_task(served.server.drain())
        await asyncio.sleep(0.2)
        go_on.set()
        found, failure, _ = await chat
        await draining
    assert (failure, "".join(found)) == (None, "abcd")


async def test_many_streams_are_joined_by_themselves(tmp_path: Path, fake: FakeServer) -> None:
    count, texts = 40, [f"{i} " for i in range(30)]
    for _ in range(count):
        fake.script(CHAT_PATH, paced(*texts))
    async with serving(tmp_path, openai(fake.base_url)) as served:
        chats = await asyncio.gather(*(deltas(served, 0) for _ in range(count)))
        assert served.server._execution.join.open == 0
    assert all("".join(found) == "".join(texts) for found, _, _ in chats)
    assert sum(len(found) for found, _, _ in chats) < count * len(texts) * 0.8


async def test_the_whole_is_as_it_would_be(tmp_path: Path, fake: FakeServer) -> None:
    for _ in range(2):
        fake.script(CHAT_PATH, paced(*"abcdef"))
    async with serving(tmp_path, openai(fake.base_url)) as served:
        events, failure = await read(served.stub.Chat(chat_request()))
        found, joined_failure, _ = await deltas(served, 20)
    assert content(events) == "".join(found) == "abcdef"
    assert (failure, joined_failure) == (None, None)
