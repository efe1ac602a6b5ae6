"""OpenAI's own Python client against the HTTP API: over a fake backend and the real models."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from openai import (
    APIError,
    AsyncOpenAI,
    AsyncStream,
    BadRequestError,
    NotFoundError,
    pydantic_function_tool,
)
from openai import AuthenticationError as OpenAIAuthenticationError
from pydantic import BaseModel

from atmosphere_grpc.access import key_file
from atmosphere_grpc.composition import integration_of
from atmosphere_grpc.config import Integration as IntegrationSettings
from atmosphere_grpc.http import chat
from atmosphere_grpc.integrations.integration import Integration
from tests.fakes import (
    MODEL,
    USAGE,
    Close,
    FakeServer,
    Ollama,
    OpenAI,
    Pause,
    Reply,
    Stall,
    Until,
    answer_events,
    event,
    text,
    tool_call,
)
from tests.fakes.chunks import DONE, chunk
from tests.integration.conftest import (
    CHAT_PATH,
    EMBEDDED,
    PATIENCE_S,
    Served,
    embedded_integration,
    generating,
    openai,
    serving,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from atmosphere_grpc.embedded.supervisor import LlamaServer

ANYWHERE = {"listen": "127.0.0.1:0"}
HI: Any = [{"role": "user", "content": "hi"}]
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}


def client_of(served: Served, **options: Any) -> AsyncOpenAI:
    given = {"api_key": "none", "timeout": PATIENCE_S, "max_retries": 0, **options}
    return AsyncOpenAI(base_url=f"http://{served.http}/v1", **given)


@pytest.fixture
async def served(fake: FakeServer, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, openai(fake.base_url), http=ANYWHERE) as made:
        yield made


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(served) as made:
        yield made


async def test_a_chat(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HI)
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.total_tokens == USAGE["total_tokens"]


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream(client: AsyncOpenAI, include_usage: bool) -> None:
    said: Any = {"stream_options": {"include_usage": True}} if include_usage else {}
    stream = await client.chat.completions.create(model="auto", messages=HI, stream=True, **said)
    assert isinstance(stream, AsyncStream)
    chunks = [item async for item in stream]
    pieces = [item.choices[0].delta.content or "" for item in chunks if item.choices]
    assert "".join(pieces) == "Hello world"
    last = chunks[-1]
    if include_usage:
        assert last.usage is not None
        assert last.usage.completion_tokens == USAGE["completion_tokens"]
    else:
        assert last.choices[0].finish_reason == "stop"


async def test_tools(client: AsyncOpenAI, fake: FakeServer) -> None:
    pieces = [
        event(tool_call("", index=0, call_id="call-1", name="add")),
        event(tool_call('{"a":', index=0)),
        event(tool_call("1}", index=0)),
        event(chunk(finish="tool_calls")),
        DONE,
    ]
    fake.script(CHAT_PATH, Reply.stream(*pieces), Reply.stream(*pieces))
    named: Any = {"type": "function", "function": {"name": "add"}}
    answer = await client.chat.completions.create(
        model=MODEL, messages=HI, tools=[ADD], tool_choice=named
    )
    message = answer.choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    call: Any = message.tool_calls[0]
    assert (call.id, call.function.name, call.function.arguments) == ("call-1", "add", '{"a":1}')
    asked = (await generating(fake)).json
    assert asked["tools"] == [ADD]
    assert asked["tool_choice"] == named
    async with client.chat.completions.stream(
        model=MODEL, messages=HI, tools=[ADD], tool_choice="required"
    ) as stream:
        whole: Any = (await stream.get_final_completion()).choices[0].message.tool_calls
    assert whole[0].function.arguments == '{"a":1}'
    # The answer goes back as the client has it, with the tool's.
    back: Any = [
        *HI,
        message.model_dump(),
        {"role": "tool", "tool_call_id": "call-1", "content": "4"},
    ]
    await client.chat.completions.create(model=MODEL, messages=back, tools=[ADD])
    assert (await generating(fake, 3)).json["messages"][1]["tool_calls"][0]["id"] == "call-1"


class Sum(BaseModel):
    """A sum."""

    total: int


async def test_response_formats(client: AsyncOpenAI, fake: FakeServer) -> None:
    fake.always(CHAT_PATH, OpenAI(['{"total": 4}']).chat({"stream": True}))
    await client.chat.completions.create(
        model=MODEL, messages=HI, response_format={"type": "json_object"}
    )
    assert (await generating(fake)).json["response_format"] == {"type": "json_object"}
    parsed = await client.chat.completions.parse(model=MODEL, messages=HI, response_format=Sum)
    assert parsed.choices[0].message.parsed == Sum(total=4)
    asked = (await generating(fake, 2)).json["response_format"]["json_schema"]
    assert (asked["name"], asked["strict"]) == ("Sum", True)


async def test_the_clients_own_tools_are_strict(client: AsyncOpenAI, fake: FakeServer) -> None:
    pieces = [
        event(tool_call('{"total": 4}', index=0, call_id="call-1", name="Sum")),
        event(chunk(finish="tool_calls")),
        DONE,
    ]
    fake.script(CHAT_PATH, Reply.stream(*pieces))
    parsed = await client.chat.completions.parse(
        model=MODEL, messages=HI, tools=[pydantic_function_tool(Sum)]
    )
    calls = parsed.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.parsed_arguments == Sum(total=4)
    assert (await generating(fake)).json["tools"][0]["function"]["strict"] is True


async def test_a_strict_tool_is_refused_by_a_backend_that_knows_none(tmp_path: Path) -> None:
    async with FakeServer(Ollama()) as fake:
        given = {"id": "fake", "kind": "ollama", "base_urls": [fake.url], "default_model": MODEL}
        made = integration_of(IntegrationSettings.model_validate(given))
        assert isinstance(made, Integration)
        async with serving(tmp_path, made, http=ANYWHERE) as served, client_of(served) as client:
            with pytest.raises(BadRequestError) as caught:
                await client.chat.completions.create(
                    model=MODEL, messages=HI, tools=[pydantic_function_tool(Sum)]
                )
    assert caught.value.param == "tools[0].function.strict"


async def test_logprobs(client: AsyncOpenAI, fake: FakeServer) -> None:
    token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    told = chunk({"content": "a"})
    told["choices"][0]["logprobs"] = {"content": [token]}
    fake.script(CHAT_PATH, Reply.stream(event(told), event(chunk(finish="stop")), DONE))
    answer = await client.chat.completions.create(model=MODEL, messages=HI, logprobs=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert (logprobs.content[0].token, logprobs.content[0].bytes) == ("a", [97])


async def test_what_a_backend_alone_knows_goes_on_to_it(
    client: AsyncOpenAI, fake: FakeServer
) -> None:
    await client.chat.completions.create(
        model=MODEL, messages=HI, user="ann", extra_body={"min_p": 0.1, "integration_id": "fake"}
    )
    asked = (await generating(fake)).json
    assert (asked["min_p"], asked["user"]) == (0.1, "ann")
    assert "integration_id" not in asked


async def test_embeddings_in_both_forms(client: AsyncOpenAI) -> None:
    packed = await client.embeddings.create(model=MODEL, input=["a cat", "a dog"])
    plain = await client.embeddings.create(
        model=MODEL, input=["a cat", "a dog"], encoding_format="float"
    )
    assert [item.index for item in packed.data] == [0, 1]
    for left, right in zip(packed.data, plain.data, strict=True):
        assert left.embedding == pytest.approx(right.embedding, abs=1e-6)
    assert packed.usage.prompt_tokens == 2


async def test_models_are_listed_and_looked_up(client: AsyncOpenAI) -> None:
    assert [item.id async for item in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).owned_by == "llamacpp"
    with pytest.raises(NotFoundError) as caught:
        await client.models.retrieve("nope")
    assert caught.value.code == "model_not_found"


async def test_errors_are_those_of_the_client(client: AsyncOpenAI, fake: FakeServer) -> None:
    with pytest.raises(BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=HI, temperature=9)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    assert caught.value.request_id
    fake.script(CHAT_PATH, Reply.stream(event(text("a")), Close()))
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    with pytest.raises(APIError, match="before the answer was whole"):
        [item async for item in stream]


async def test_what_cannot_succeed_is_not_tried_again(served: Served, fake: FakeServer) -> None:
    fake.always(CHAT_PATH, Reply.json({}, 500))
    async with client_of(served, max_retries=2) as client:
        with pytest.raises(APIError, match="fake"):
            await client.chat.completions.create(model=MODEL, messages=HI)
    assert len([item for item in fake.requests if item.method == "POST"]) == 1


async def test_a_stream_that_waits_is_kept_alive(
    tmp_path: Path, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "SILENT_S", 0.3)
    waiting = {"progress_interval": "100ms"}
    async with (
        serving(tmp_path, openai(fake.base_url), http=ANYWHERE, **waiting) as served,
        client_of(served) as client,
    ):
        for then, told in ((answer_events(), "Hello"), ([Close()], "STREAM_TRUNCATED")):
            go_on = asyncio.Event()
            fake.script(CHAT_PATH, Reply.stream(Until(go_on), *then))
            async with client.chat.completions.with_streaming_response.create(
                model=MODEL, messages=HI, stream=True
            ) as answer:
                lines = answer.iter_lines()
                began = asyncio.get_running_loop().time()
                assert [await anext(lines), await anext(lines)] == [
                    ": waiting for the first token",
                    "",
                ]
                assert asyncio.get_running_loop().time() - began < 1
                go_on.set()
                rest = [line async for line in lines if not line.startswith(":")]
            assert told in "".join(rest)
        # Its own stream reads over them, and what fails soon has a status of its own.
        fake.script(CHAT_PATH, Reply.stream(Pause(0.6), *answer_events()), Reply.json({}, 400))
        stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
        pieces = [item.choices[0].delta.content or "" async for item in stream]
        assert "".join(pieces) == "Hello world"
        with pytest.raises(BadRequestError):
            await client.chat.completions.create(model=MODEL, messages=HI, stream=True)


async def test_keys(tmp_path: Path, fake: FakeServer) -> None:
    _, key = key_file.create(tmp_path / "keys.json", "alice", None)
    auth = {"keys_file": tmp_path / "keys.json"}
    async with serving(tmp_path, openai(fake.base_url), http=ANYWHERE, auth=auth) as served:
        async with client_of(served, api_key=key) as client:
            await client.chat.completions.create(model=MODEL, messages=HI)
        async with client_of(served, api_key="sk-wrong") as client:
            with pytest.raises(OpenAIAuthenticationError) as caught:
                await client.models.list()
    assert caught.value.code == "invalid_api_key"


async def test_leaving_a_stream_stops_the_backend(
    served: Served, client: AsyncOpenAI, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, Reply.stream(event(text("a")), Stall()))
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    async for item in stream:
        if item.choices[0].delta.content:
            break
    await stream.close()
    async with asyncio.timeout(5):
        await (await generating(fake)).gone.wait()
    await until(lambda: served.server.in_flight == 0, "the call to end")


async def test_cancelling_a_whole_chat_stops_the_backend(
    client: AsyncOpenAI, fake: FakeServer
) -> None:
    fake.script(CHAT_PATH, Reply.raw(Stall()))
    task = asyncio.ensure_future(client.chat.completions.create(model=MODEL, messages=HI))
    asked = await generating(fake)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await asked.gone.wait()


async def test_auto_goes_where_the_router_says(tmp_path: Path) -> None:
    routing = {
        "routes": [
            {
                "name": "code",
                "rules": ["python"],
                "models": ["coder"],
                "parameters": {"system": "You write code.", "temperature": 0.25},
            }
        ]
    }
    async with FakeServer(OpenAI(models=["talker", "coder"])) as fake:
        item = openai(fake.base_url, default_model="talker")
        async with (
            serving(tmp_path, item, http=ANYWHERE, routing=routing) as served,
            client_of(served) as client,
        ):
            for said in ("Some Python, please", "Hello", "Embed: this"):
                messages: Any = [{"role": "user", "content": said}]
                answer = await client.chat.completions.create(
                    model="auto", messages=messages, tools=[ADD]
                )
                assert answer.choices[0].message.content == "Hello world"
        asked = [request.json for request in fake.requests if request.method == "POST"]
    assert [item["model"] for item in asked] == ["coder", "talker", "talker"]
    assert asked[0]["messages"][0] == {"role": "system", "content": "You write code."}
    assert asked[0]["temperature"] == 0.25
    assert all(item["tools"] == [ADD] for item in asked)


@EMBEDDED
async def test_the_embedded_models(children: list[LlamaServer], tmp_path: Path) -> None:
    async with (
        serving(tmp_path, embedded_integration(children), http=ANYWHERE) as served,
        client_of(served, timeout=60) as client,
    ):
        answer = await client.chat.completions.create(
            model="auto", messages=HI, temperature=0, max_tokens=8
        )
        assert answer.choices[0].message.content
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8
        vectors = await client.embeddings.create(model="all-minilm-l6-v2", input="a cat")
        assert len(vectors.data[0].embedding) == 384
        assert sum(x * x for x in vectors.data[0].embedding) == pytest.approx(1, abs=1e-3)
