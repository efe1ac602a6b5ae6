"""A model that is loaded when it is first asked for has `timeouts.load`, not `first_token`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import pytest

from atmosphere_grpc import config
from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.v1 import execution_pb2
from tests.fakes import (
    ColdModel,
    FakeServer,
    LlamaFarm,
    Load,
    Ollama,
    OpenAI,
    Reply,
    Stall,
    answer_events,
)
from tests.fakes.ollama import line, lines
from tests.integration.conftest import (
    CHAT_PATH,
    broken,
    chat_request,
    content,
    failure_of,
    read,
    serving,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from pathlib import Path

#: Far less than a load takes, in seconds.
FIRST_TOKEN_S = 0.1
#: How long a call is seen to wait before its model is there.
PATIENT_S = 4 * FIRST_TOKEN_S
#: Far more than a test takes.
LONG_S = 50.0
PROJECT = "default/fake"
CHAT_PATHS = {
    "ollama": "/api/chat",
    "llamafarm": f"/v1/projects/{PROJECT}/chat/completions",
    "openai": CHAT_PATH,
}
EMBED_PATH = "/api/embed"
EMBED = execution_pb2.EmbedRequest(input=["a"])
T = TypeVar("T")


def loading(kind: str, cold: ColdModel) -> FakeServer:
    """A server of a kind whose model is loaded when it is asked for."""
    if kind == "ollama":
        return FakeServer(Ollama(cold=cold))
    fake = FakeServer(LlamaFarm() if kind == "llamafarm" else OpenAI())
    fake.always(CHAT_PATHS[kind], Reply.stream(*answer_events()).after(Load(cold)))
    return fake


def integration(
    fake: FakeServer,
    kind: str,
    *,
    first_token: float = FIRST_TOKEN_S,
    load: float = LONG_S,
    idle: float = LONG_S,
) -> Integration:
    """An integration as it is configured."""
    settings: dict[str, Any] = {
        "id": "fake",
        "kind": kind,
        "base_urls": [fake.base_url if kind == "openai" else fake.url],
        "timeouts": {"first_token": first_token, "load": load, "idle": idle},
    }
    if kind == "llamafarm":
        settings["project"] = PROJECT
    made = integration_of(config.Integration.model_validate(settings))
    assert isinstance(made, Integration)
    return made


async def result(call: Awaitable[T]) -> T:
    return await call


async def after_a_load(
    fake: FakeServer, path: str, cold: ColdModel, call: Coroutine[Any, Any, T]
) -> T:
    """What a call brings whose model is loaded when `first_token` is long over."""
    waiting = asyncio.create_task(call)
    await fake.arrived_at(path)
    assert await asyncio.wait({waiting}, timeout=PATIENT_S) == (set(), {waiting})
    cold.finish()
    return await waiting


@pytest.mark.parametrize("kind", ["ollama", "llamafarm"])
async def test_a_chat_waits_for_a_load_that_takes_longer_than_first_token(
    tmp_path: Path, kind: str
) -> None:
    cold = ColdModel()
    async with (
        loading(kind, cold) as fake,
        serving(tmp_path, integration(fake, kind)) as served,
    ):
        call = served.stub.Chat(chat_request())
        events, failure = await after_a_load(fake, CHAT_PATHS[kind], cold, read(call))
    assert failure is None
    assert content(events) == "Hello world"
    (attempt,) = events[-1].completed.attempts
    assert attempt.time_to_first_token_ms > FIRST_TOKEN_S * 1000
    assert (cold.begun, cold.aborted) == (1, 0)


async def test_an_embedding_waits_for_a_load_likewise(tmp_path: Path) -> None:
    cold = ColdModel()
    async with (
        loading("ollama", cold) as fake,
        serving(tmp_path, integration(fake, "ollama")) as served,
    ):
        # A model that can chat is loaded by an empty chat, whatever it is to do then.
        call = result(served.stub.Embed(EMBED))
        response = await after_a_load(fake, CHAT_PATHS["ollama"], cold, call)
    assert len(response.embeddings) == 1
    assert (cold.begun, cold.aborted) == (1, 0)


async def test_a_server_that_loads_nothing_on_demand_has_first_token_alone(tmp_path: Path) -> None:
    cold = ColdModel()
    async with (
        loading("openai", cold) as fake,
        serving(tmp_path, integration(fake, "openai")) as served,
    ):
        events, failure = await broken(served.stub.Chat(chat_request()))
        await fake.client_gone()
    assert content(events) == ""
    assert (failure.reason, failure.metadata["phase"]) == ("DEADLINE_EXCEEDED", "FIRST_TOKEN")
    assert f"within its limit of {FIRST_TOKEN_S} s" in failure.message
    assert (cold.begun, cold.aborted) == (1, 1)


@pytest.mark.parametrize(("first_token", "load", "limit"), [(0.05, 0.2, "0.2"), (0.2, 0.05, "0.2")])
async def test_the_greater_of_both_limits_holds_for_a_load(
    tmp_path: Path, first_token: float, load: float, limit: str
) -> None:
    cold = ColdModel()
    async with loading("ollama", cold) as fake:
        limited = integration(fake, "ollama", first_token=first_token, load=load)
        async with serving(tmp_path, limited) as served:
            failures = [
                (await broken(served.stub.Chat(chat_request())))[1],
                await failure_of(served.stub.Embed(EMBED)),
            ]
            await until(lambda: cold.aborted == 2, "both loads to be given up")
    for failure in failures:
        assert (failure.reason, failure.metadata["phase"]) == ("DEADLINE_EXCEEDED", "FIRST_TOKEN")
        assert f"within its limit of {limit} s" in failure.message


async def test_a_load_goes_on_without_the_caller_that_asked_for_it_and_the_next_finds_it_done(
    tmp_path: Path,
) -> None:
    cold = ColdModel()
    async with (
        loading("ollama", cold) as fake,
        serving(tmp_path, integration(fake, "ollama")) as served,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in served.stub.Chat(chat_request(), timeout=0.3):
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (cold.begun, cold.aborted) == (1, 0)
        cold.finish()
        events, failure = await read(served.stub.Chat(chat_request()))
    assert failure is None
    assert content(events) == "Hello world"
    assert (cold.begun, cold.aborted) == (1, 0)


async def test_all_who_wait_for_a_model_share_one_load(tmp_path: Path) -> None:
    cold = ColdModel()
    async with (
        loading("ollama", cold) as fake,
        serving(tmp_path, integration(fake, "ollama")) as served,
    ):
        calls = [asyncio.create_task(read(served.stub.Chat(chat_request()))) for _ in range(5)]
        await fake.arrived_at("/api/chat")
        leaving = served.stub.Chat(chat_request())
        await until(lambda: served.server.in_flight == 6, "all calls")
        leaving.cancel()
        await until(lambda: served.server.in_flight == 5, "one to leave")
        cold.finish()
        answers = await asyncio.gather(*calls)
        chats = [request.json for request in fake.requests if request.path == "/api/chat"]
    assert [content(events) for events, _ in answers] == ["Hello world"] * 5
    assert [bool(chat["messages"]) for chat in chats] == [False, *[True] * 5]
    assert (cold.begun, cold.aborted) == (1, 0)


async def test_a_server_that_stops_gives_up_what_it_loads(tmp_path: Path) -> None:
    cold = ColdModel()
    async with loading("ollama", cold) as fake:
        async with serving(tmp_path, integration(fake, "ollama")) as served:
            with pytest.raises(grpc.aio.AioRpcError):
                await served.stub.Execute(execution_pb2.ExecuteRequest(intent="hi"), timeout=0.2)
            assert (cold.begun, cold.aborted) == (1, 0)
        await until(lambda: cold.aborted == 1, "the load to be given up")


async def test_once_it_has_begun_an_answer_has_no_more_than_idle_between_two_tokens(
    tmp_path: Path,
) -> None:
    async with FakeServer(Ollama()) as fake:
        fake.script(CHAT_PATHS["ollama"], lines(line({"content": "Half"}), Stall()))
        async with serving(tmp_path, integration(fake, "ollama", idle=0.2)) as served:
            events, failure = await broken(served.stub.Chat(chat_request()))
    assert content(events) == "Half"
    assert (failure.reason, failure.metadata["phase"]) == ("DEADLINE_EXCEEDED", "IDLE")
