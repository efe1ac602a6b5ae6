"""Whatever a backend sends, nothing but a `Failure` comes of it.

`make fuzz` tries 100,000 inputs; the suite, `DEFAULT_INPUTS`. Each is made from what servers were
recorded to send, or are documented to, by a few random changes, and goes through everything that
reads such bytes.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, cast

import msgspec
import pytest

from atmosphere_grpc.backends import llamafarm_schema, ollama_errors, openai_errors
from atmosphere_grpc.backends.events import Event, EventTooLarge, Parser
from atmosphere_grpc.backends.llamafarm import LlamaFarmBackend
from atmosphere_grpc.backends.ollama import OllamaBackend
from atmosphere_grpc.backends.ollama_stream import Answer
from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.openai_calls import OpenAICalls
from atmosphere_grpc.backends.openai_stream import Assembly
from atmosphere_grpc.backends.thinking import ThinkSplitter
from atmosphere_grpc.backends.wire import HttpStatus, Wire, WireSettings
from atmosphere_grpc.domain import ChatCall, EmbedCall, Message, Sampling, Target
from atmosphere_grpc.errors import Failure
from tests.fakes import chunks, llamafarm, ollama, recordings

DEFAULT_INPUTS = 6_000
INPUTS = int(os.environ.get("ATMOSPHERE_FUZZ_INPUTS", DEFAULT_INPUTS))
#: Runs of their own, so that they can be spread over processes.
RUNS = 8
LIMIT = 20_000

CALL = ChatCall(Target(), (Message("user", "Hi"),), sampling=Sampling(logprobs=True))
TEXTS = EmbedCall(Target(), ("a", "b"))
#: What JSON may hold where something else is meant.
VALUES = (
    *(b"null", b"true", b"0", b"-1", b"1e999", b"NaN", b"9223372036854775808", b"1.5"),
    *(b'""', b'"\\ud800"', b'"\\u0000"', b"[]", b"{}", b"[[[]]]", b'{"a":{}}', b'"x"'),
    *(b"[" * 2000, b'{"a":' * 1500, b"1" * 400, b'"' + b"x" * 500 + b'"'),
)
SCRAPS = (b"\n", b"\r", b"\n\n", b"data: ", b"[DONE]", b"\xff", b"\x00", b"\xf0\x9f", b":", b",")


def corpus() -> list[bytes]:
    """What is changed: recordings, and what the fakes say."""
    recorded = [recordings.body(path) for path in sorted(recordings.WIRE.rglob("*.txt"))]
    made = [
        b"".join(chunks.answer_events(["<think>a</think>", "b"])),
        chunks.event({"sources": [{"content": "a", "score": 1, "metadata": {}}]}, name="sources"),
        chunks.event({"error": {"message": "x", "code": "429", "type": None}}),
        b"".join(
            chunks.event(chunks.tool_call("{}", index=i, call_id="c", name="f")) for i in (0, 0)
        ),
        ollama.line({"content": "a", "thinking": "b"}, logprobs=[{"token": "a", "logprob": -1}])
        + ollama.line(ollama.tool_call_message("f", {"a": [1]}))
        + ollama.line(done="stop"),
        ollama.error_line("boom"),
        msgspec.json.encode(chunks.embeddings([[0.5], [1.0]])),
        msgspec.json.encode({"model": "m", "embeddings": [[0.5], [1.0]], "prompt_eval_count": 2}),
        msgspec.json.encode({"models": [{"name": "m", "size": 1, "details": {"family": "f"}}]}),
        msgspec.json.encode({"models": [{"name": "m", "context_length": 4096}]}),
        msgspec.json.encode({"capabilities": ["completion"], "model_info": {}}),
        msgspec.json.encode({"version": "1", "data_directory": "/x"}),
        msgspec.json.encode({"status": "healthy", "components": [{"name": "a", "status": "b"}]}),
        msgspec.json.encode({"status": "healthy", "device": {}, "loaded_models": ["language:a"]}),
        msgspec.json.encode({"data": [{"id": "language:a/b:ctxauto:quantQ4", "size": 1}]}),
        msgspec.json.encode({"projects": [{"name": "a", "namespace": "b"}], "total": 1}),
        msgspec.json.encode({"error": "ProjectNotFound", "message": "x", "details": None}),
        msgspec.json.encode({"detail": [{"loc": ["body"], "msg": "x"}]}),
        llamafarm.APOLOGY.encode(),
        b"<!doctype html><html></html>",
    ]
    return [data for data in (*recorded, *made) if data]


CORPUS = corpus()
_VALUE = re.compile(rb'(?<=:)\s*("[^"]*"|-?[\d.]+|null|true|false|\[\]|\{\})')


def changed(chance: random.Random) -> bytes:
    """A piece of the corpus after a few changes."""
    data = bytearray(chance.choice(CORPUS)[: chance.choice((200, 2_000, LIMIT // 2))])
    for _ in range(chance.randint(0, 6)):
        at = chance.randint(0, len(data))
        match chance.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                del data[at : at + chance.randint(1, 40)]
            case 2:
                data[at:at] = chance.choice(SCRAPS)
            case 3:
                data[at:at] = data[at : at + chance.randint(1, 60)]
            case 4:
                del data[at:]
            case 5:
                other = chance.choice(CORPUS)
                start = chance.randint(0, len(other))
                data[at:at] = other[start : start + chance.randint(1, 200)]
            case _:
                if values := [*_VALUE.finditer(data)]:
                    place = chance.choice(values)
                    data[place.start(1) : place.end(1)] = chance.choice(VALUES)
    return bytes(data)


class Bytes:
    """What a `Stream` is to those that read it, without a socket."""

    content_type = "text/event-stream"

    def __init__(self, data: bytes, chance: random.Random, wire: Wire) -> None:
        self._data = data
        self._chance = chance
        self._endpoint = wire.endpoint

    async def body(self) -> bytes:
        return self._data

    async def batches(self, kind: Callable[[int], Parser]) -> AsyncGenerator[list[Event], None]:
        parser, start = kind(LIMIT), 0
        try:
            while start < len(self._data):
                end = start + self._chance.choice((1, 7, 100, 5_000, len(self._data)))
                if events := parser.feed(self._data[start:end]):
                    yield events
                start = end
            if events := parser.flush():
                yield events
        except EventTooLarge:
            raise self._endpoint.contract("an event is too large") from None

    async def drain(self) -> None:
        pass


class Readers:
    """Everything that reads what a backend sends."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        settings = WireSettings("x", "http://127.0.0.1:1")
        self.openai = OpenAIBackend(settings)
        self.ollama = OllamaBackend(settings)
        self.farm = LlamaFarmBackend(settings, "a/b")
        self.data = b""
        for backend in (self.openai, self.ollama, self.farm):
            wire = cast(Any, backend)._wire
            wire.get = wire.post = self._said

    async def aclose(self) -> None:
        for backend in (self.openai, self.ollama, self.farm):
            await backend.aclose()

    async def _said(self, *_: object, **__: object) -> bytes:
        if self._chance.random() < 0.1:
            raise HttpStatus(self._chance.choice((404, 422, 500, 503)), self.data, None)
        return self.data

    def every(self) -> Iterator[Callable[[], Any]]:
        """The ways to read the bytes that there are now."""
        yield self._stream
        yield self._whole
        yield self._lines
        yield self.openai.models
        yield self.ollama.models
        yield self.farm.models
        yield lambda: self.openai.embed("m", TEXTS, connect_s=1)
        yield lambda: self.ollama.embed("m", TEXTS, connect_s=1)
        yield lambda: self.farm.embed("m", TEXTS, connect_s=1)
        yield self._errors

    def _bytes(self, backend: Any) -> Any:
        return Bytes(self.data, self._chance, backend._wire)

    async def _stream(self) -> None:
        calls: OpenAICalls = self.farm._calls
        await read(calls._from_stream(self._bytes(self.farm), Assembly(ThinkSplitter(), 3)))

    async def _whole(self) -> None:
        calls: OpenAICalls = self.openai._calls
        await read(calls._from_whole(self._bytes(self.openai), Assembly()))

    async def _lines(self) -> None:
        await read(self.ollama._read(self._bytes(self.ollama), Answer(CALL, 4096)))

    async def _errors(self) -> None:
        endpoint = self.openai._wire.endpoint
        for status in (302, 400, 404, 429, 500, 503):
            answer = HttpStatus(status, self.data, None)
            for explain in (openai_errors.from_status, ollama_errors.explain, self.farm._explain):
                assert isinstance(explain(endpoint, answer), Failure)
        llamafarm_schema.runtime_model(self.data.decode(errors="replace"))


async def read(events: AsyncGenerator[Any, None]) -> None:
    async with aclosing(events):
        async for _ in events:
            pass


@pytest.mark.parametrize("run", range(RUNS))
async def test_nothing_but_a_failure_comes_of_what_a_backend_sends(run: int) -> None:
    chance = random.Random(run)  # noqa: S311 - not for secrecy
    readers = Readers(chance)
    failed = answered = 0
    try:
        for _ in range(INPUTS // RUNS):
            readers.data = changed(chance)
            for way in readers.every():
                try:
                    await way()
                    answered += 1
                except Failure:
                    failed += 1
                except Exception as error:
                    raise AssertionError(f"{way} raised {error!r} for {readers.data!r}") from error
    finally:
        await readers.aclose()
    assert failed > answered > 0  # most of it is no answer, but some is
