"""Whatever a backend sends, a `Failure` comes of it or an answer that fits the contract.

`make fuzz` tries 100,000 inputs; the suite, `DEFAULT_INPUTS`. Each is made from what servers were
recorded to send, or are documented to, by a few random changes, and goes through everything that
reads such bytes: whole backends, on a wire that is not there.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest

from atmosphere_grpc.backends import llamafarm_schema, ollama_errors, openai_errors
from atmosphere_grpc.backends.events import Event, EventTooLarge, Parser
from atmosphere_grpc.backends.llamafarm import LlamaFarmBackend, LlamaFarmNamespace
from atmosphere_grpc.backends.ollama import OllamaBackend
from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import Endpoint, HttpStatus, WireSettings
from atmosphere_grpc.codec import failures, responses
from atmosphere_grpc.domain import (
    BackendEvent,
    Begun,
    Capability,
    ChatCall,
    Completed,
    Delta,
    EmbedCall,
    Embeddings,
    EmbedResult,
    Finished,
    ListedModel,
    Message,
    Model,
    ModelList,
    RouteDecision,
    RouteMethod,
    Sampling,
    Target,
)
from atmosphere_grpc.errors import Failure
from tests.fakes import chunks, llamafarm, ollama, recordings

DEFAULT_INPUTS = 4_000
INPUTS = int(os.environ.get("ATMOSPHERE_FUZZ_INPUTS", DEFAULT_INPUTS))
#: Runs of their own, so that they can be spread over processes.
RUNS = 8
LIMIT = 20_000

CALL = ChatCall(Target(), (Message("user", "Hi"),))
TEXTS = EmbedCall(Target(), ("a", "b"))
ROUTE = RouteDecision(Capability.CHAT, RouteMethod.DEFAULT, "x", "m", "")
#: What JSON may hold where something else is meant; the last are as great as an index may be.
VALUES = (
    *(b"null", b"true", b"0", b"-1", b"1e999", b"NaN", b"9223372036854775808", b"1.5", b"1e308"),
    *(b'""', b'"\\ud800"', b'"\\u0000"', b"[]", b"{}", b"[[[]]]", b'{"a":{}}', b'"x"'),
    *(b"1" * 400, b"1" * 5000, b'"' + b"x" * 500 + b'"', b"[" * 2000, b'{"a":' * 1500),
    *(b"2147483647", b"2147483646", b"1073741823"),
)
SCRAPS = (b"\n", b"\r", b"\n\n", b"data: ", b"[DONE]", b"\xff", b"\x00", b"\xf0\x9f", b":", b",")
#: As many levels as Python and msgspec go down, less what the calls above have used, and around.
DEPTHS: Sequence[int] = (*range(900, 1001), 10, 100, 500, 2000)
TYPES = (
    *("text/event-stream", "application/x-ndjson", "application/json", "text/json"),
    *("text/html", ""),
)
STATUSES = (302, 400, 401, 404, 422, 429, 500, 501, 503)


def tool_stream(*calls: tuple[int, str]) -> bytes:
    """A whole answer of tool calls, each by its index and id."""
    called = [chunks.tool_call("{}", index=i, call_id=name, name="f") for i, name in calls]
    return b"".join(map(chunks.event, [*called, chunks.chunk(finish="tool_calls")]))


SOURCES: Mapping[str, Any] = {
    "sources": [{"content": "a", "score": 1, "metadata": {"b": [1]}}, "c"]
}
LOGPROB = {"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": []}
CHAT = b"".join(chunks.answer_events(["<think>a</think>", "b"]))
WHOLE = chunks.chunk(
    choices=[{"message": {"content": "<think>a</think>b"}, "finish_reason": "stop"}],
    thinking={"content": "c"},
    usage=chunks.USAGE,
    **SOURCES,
)
NATIVE = (
    ollama.line({"content": "a", "thinking": "b"}, logprobs=[LOGPROB])
    + ollama.line(ollama.tool_call_message("f", {"a": [1]}))
    + ollama.line(done="stop")
)
RESIDENT = {"models": [{"name": "m", "context_length": 4096}]}
CARDS = {"data": [{"id": "language:a/b:ctxauto:quantQ4", "size": 1, "meta": {"n_ctx": 1}}]}
#: What each path is answered with; a path without a chat or vectors stands for several backends'.
ANSWERS: Mapping[str, tuple[bytes, ...]] = {
    "chat/completions": (
        CHAT,
        chunks.event({"choices": [], **SOURCES}) + CHAT,
        chunks.event(SOURCES, name="sources") + CHAT,
        tool_stream((3, "a"), (3, "b"), (3, "c")),
        tool_stream(*((2**30 - 1, name) for name in "abc")),
        tool_stream(*((2**31 - 2, name) for name in "abc")),
        tool_stream((1, "a"), (1, "")),
        chunks.event({"error": {"message": "x", "code": "429", "type": None}}),
        chunks.event({"detail": "x"}),
        msgspec.json.encode(WHOLE),
        chunks.event(chunks.chunk({"content": llamafarm.APOLOGY}, finish="stop")),
        *map(recordings.body, sorted(recordings.WIRE.rglob("*stream*.txt"))),
    ),
    "api/chat": (NATIVE, NATIVE, ollama.error_line("boom")),
    "embeddings": (msgspec.json.encode(chunks.embeddings([[0.5], [1.0]])),),
    "api/embed": (msgspec.json.encode({"embeddings": [[0.5], [1.0]], "prompt_eval_count": 2}),),
    "api/tags": (
        msgspec.json.encode({"models": [{"name": "m", "size": 1, "details": {"family": "f"}}]}),
        msgspec.json.encode({"models": [{"name": "m", "capabilities": ["completion"]}]}),
    ),
    "api/ps": (msgspec.json.encode(RESIDENT),),
    "api/show": (msgspec.json.encode({"capabilities": ["completion"], "model_info": {}}),),
    "a/b/models": (msgspec.json.encode({"models": [{"name": "m", "default": True}]}),),
    "models": (
        msgspec.json.encode(CARDS),
        recordings.body("llama-cpp-server/get_v1_models.resp.txt"),
    ),
    "v1/projects/a": (msgspec.json.encode({"projects": [{"name": "b", "namespace": "a"}]}),),
    "info": (msgspec.json.encode({"version": "1", "data_directory": "/x"}), b"<html></html>"),
    "health": (
        msgspec.json.encode({"status": "unhealthy", "components": [{"name": "a", "status": "b"}]}),
        msgspec.json.encode({"status": "healthy", "device": {}, "loaded_models": ["language:a"]}),
    ),
}
ERRORS = (
    msgspec.json.encode({"error": "ProjectNotFound", "message": "x", "details": None}),
    msgspec.json.encode({"detail": [{"loc": ["body"], "msg": "x"}]}),
    msgspec.json.encode({"error": {"code": "exceed_context_size_error", "n_ctx": 1}}),
    b"<!doctype html><html></html>",
)
CORPUS = [
    data
    for data in (
        *(recordings.body(path) for path in sorted(recordings.WIRE.rglob("*.txt"))),
        *(answer for answers in ANSWERS.values() for answer in answers),
        *ERRORS,
    )
    if data
]
_VALUE = re.compile(rb'(?<=:)\s*("[^"]*"|-?[\d.]+|null|true|false|\[\]|\{\})')


def well(path: str, chance: random.Random) -> bytes:
    """What a server answers at a path when all is well."""
    answers = next(answers for end, answers in ANSWERS.items() if path.endswith(end))
    return chance.choice(answers)


def changed(whole: bytes, chance: random.Random) -> bytes:
    """Bytes after a few changes."""
    data = bytearray(whole[: chance.choice((200, 2_000, LIMIT // 2))])
    for _ in range(chance.randint(0, 6)):
        at = chance.randint(0, len(data))
        match chance.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                del data[at : at + chance.randint(1, 40)]
            case 2:
                data[at:at] = chance.choice(SCRAPS)
            case 3:
                data[at:at] = data[at : at + chance.randint(1, 60)]
            case 4 if chance.random() < 0.5:
                del data[at:]
            case 5:
                other = chance.choice(CORPUS)
                start = chance.randint(0, len(other))
                data[at:at] = other[start : start + chance.randint(1, 200)]
            case _:
                replace_value(data, chance)
    return bytes(data)


def replace_value(data: bytearray, chance: random.Random) -> None:
    """Puts another value in the place of one, or of all that are like it."""
    if not (values := [*_VALUE.finditer(data)]):
        return
    place = chance.choice(values)
    before, value = place[1], chance.choice((*VALUES, nest(chance), nest(chance)))
    if chance.random() < 0.3:
        data[:] = data.replace(b":" + before, b":" + value).replace(b": " + before, b": " + value)
    else:
        data[place.start(1) : place.end(1)] = value


def nest(chance: random.Random) -> bytes:
    """A value within values, each closed: what is read, if it is not too deep."""
    depth = chance.choice(DEPTHS)
    opens, closes = (b"[", b"]") if chance.random() < 0.5 else (b'{"a":', b"}")
    return opens * depth + b"1" + closes * depth


class Bytes:
    """What a `Stream` is to those that read it, without a socket."""

    def __init__(self, data: bytes, endpoint: Endpoint, chance: random.Random) -> None:
        self.content_type = chance.choice(TYPES)
        if chance.random() < 0.7:  # as it should be, mostly
            self.content_type = TYPES[0 if data.lstrip().startswith((b"data", b"event")) else 2]
        self._data = data
        self._endpoint = endpoint
        self._chance = chance
        self._parser: Parser | None = None

    async def body(self) -> bytes:
        return self._data

    async def batch(self, kind: Callable[[int], Parser]) -> list[Event] | None:
        parser = self._parser = self._parser or kind(LIMIT)
        try:
            while self._data:
                end = self._chance.choice((1, 7, 100, 5_000, len(self._data)))
                piece, self._data = self._data[:end], self._data[end:]
                if events := parser.feed(piece):
                    return events
            return parser.flush() or None
        except EventTooLarge:
            raise self._endpoint.contract("an event is too large") from None

    @property
    def due(self) -> bool:
        return self._chance.random() < 0.5

    def sent(self, *, last: bool) -> None:
        pass

    async def drain(self) -> None:
        pass


class Server:
    """What is at the other end of the wire: a server that is not well.

    Attributes:
        heard: What it said last, for who finds that it broke something.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.heard: list[bytes] = []

    def take_over(self, backend: Any) -> None:
        """Answers for the server of a backend from now on."""
        wire = backend._wire

        async def say(path: str, *_: object, **__: object) -> bytes:
            return self._said(path)

        @asynccontextmanager
        async def stream(path: str, *_: object, **__: object) -> AsyncIterator[Bytes]:
            yield Bytes(self._said(path), wire.endpoint, self._chance)

        wire.get = wire.post = say
        wire.stream = stream

    def broken(self) -> bytes:
        """Anything, after a few changes."""
        return changed(self._chance.choice(CORPUS), self._chance)

    def _said(self, path: str) -> bytes:
        whole = well(path, self._chance)
        fault = self._chance.random()
        said = whole if fault < 0.4 else changed(whole, self._chance)
        if fault > 0.9:
            said = self.broken()
        self.heard.append(said)
        if fault > 0.95:
            after_s = self._chance.choice((None, 0.0, 3600.0))
            raise HttpStatus(self._chance.choice(STATUSES), said, after_s)
        return said


class Readers:
    """Everything that reads what a backend sends; what is read is made into what a caller gets."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        settings = WireSettings("x", "http://127.0.0.1:1")
        self.server = Server(chance)
        self._openai = OpenAIBackend(settings)
        self._ollama = OllamaBackend(settings)
        self._farm = LlamaFarmBackend(settings, "a/b")
        self._bare_farm = LlamaFarmBackend(settings)
        self._namespace = LlamaFarmNamespace(settings, "a")
        self._backends = (self._openai, self._ollama, self._farm, self._bare_farm)
        for backend in (*self._backends, self._namespace):
            self.server.take_over(backend)

    async def aclose(self) -> None:
        for backend in (*self._backends, self._namespace):
            await backend.aclose()

    def every(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """The ways to read, by name."""
        return {
            "openai chat": lambda: self._chat(self._openai),
            "ollama chat": lambda: self._chat(self._ollama),
            "ollama load": lambda: self._ollama.warm("m"),
            "farm chat": lambda: self._chat(self._farm),
            "bare farm chat": lambda: self._chat(self._bare_farm),
            "openai embed": lambda: self._embed(self._openai),
            "ollama embed": lambda: self._embed(self._ollama),
            "farm embed": lambda: self._embed(self._farm),
            "openai models": lambda: self._models(self._openai),
            "ollama models": lambda: self._models(self._ollama),
            "farm models": lambda: self._models(self._farm),
            "bare farm models": lambda: self._models(self._bare_farm),
            "projects": self._projects,
            "errors": self._errors,
        }

    async def _chat(self, backend: Any) -> None:
        logprobs = self._chance.choice((None, None, True))
        if isinstance(backend, LlamaFarmBackend):
            logprobs = None
        max_tokens = self._chance.choice((None, 1))
        call = ChatCall(Target(), CALL.messages, Sampling(logprobs=logprobs, max_tokens=max_tokens))
        events: list[BackendEvent] = []
        async with aclosing(backend.chat("m", call, connect_s=1)) as answer:
            async for event in answer:
                events.append(event)
                if isinstance(event, Delta):
                    responses.encode_chat(event)
        begun, *deltas, end = events
        assert isinstance(begun, Begun)
        assert all(isinstance(delta, Delta) for delta in deltas)
        assert isinstance(end, Finished)
        responses.encode_chat(Completed(end.finish_reason, end.usage, 0, 0, (), end.sources))

    async def _embed(self, backend: Any) -> None:
        embeddings: Embeddings = await backend.embed("m", TEXTS, connect_s=1)
        assert len(embeddings.vectors) == len(TEXTS.input)
        responses.encode_embed(EmbedResult(embeddings, "x", ROUTE, ()))

    async def _models(self, backend: Any) -> None:
        models: tuple[Model, ...] = await backend.models()
        listed = tuple(ListedModel("x", model, is_default=False) for model in models)
        responses.encode_models(ModelList(listed, ()), "", None, 100)

    async def _projects(self) -> None:
        assert all(isinstance(name, str) for name in await self._namespace.projects())

    async def _errors(self) -> None:
        data, endpoint = self.server.broken(), self._openai._wire.endpoint
        self.server.heard.append(data)
        answer = HttpStatus(self._chance.choice(STATUSES), data, None)
        for explain in (
            openai_errors.from_status,
            ollama_errors.explain,
            self._farm._explain,
            self._bare_farm._explain,
        ):
            failures.encode_failure(explain(endpoint, answer), "")
        llamafarm_schema.runtime_model(data.decode(errors="replace"))


@pytest.mark.parametrize("run", range(RUNS))
async def test_nothing_but_a_failure_comes_of_what_a_backend_sends(run: int) -> None:
    chance = random.Random(run)  # noqa: S311 - not for secrecy
    readers = Readers(chance)
    answered: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    try:
        for _ in range(INPUTS // RUNS):
            for name, way in readers.every().items():
                readers.server.heard.clear()
                try:
                    await way()
                    answered[name] += 1
                except Failure as failure:
                    failures.encode_failure(failure, "")
                    failed[name] += 1
                except Exception as error:
                    said = readers.server.heard
                    raise AssertionError(f"{name}: {error!r} came of {said!r}") from error
    finally:
        await readers.aclose()
    every = set(readers.every())
    assert set(answered) == every  # what is broken is not broken beyond all reading
    assert set(failed) == every - {"errors"}


@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("name", ["error", "detail"])
async def test_an_error_may_nest_as_deep_as_can_just_be_read(
    name: str, opens: str, closes: str
) -> None:
    """What is read at the last level that there is room for is not written again at the next."""
    readers = Readers(random.Random(0))  # noqa: S311 - likewise
    endpoint = readers._openai._wire.endpoint
    read: Counter[str] = Counter()
    for depth in range(800, 1001):
        data = f'{{"{name}":{opens * depth}1{closes * depth}}}'.encode()
        answer, event = HttpStatus(400, data, None), Event(b"", data)
        openai_errors.from_status(endpoint, answer)
        ollama_errors.explain(endpoint, answer)
        for line in (readers._openai._calls._chunk, readers._ollama._line):
            try:
                line(event)
            except Failure as failure:
                read[failure.reason.value] += 1
    await readers.aclose()
    assert set(read) == {"BACKEND_ERROR", "BACKEND_CONTRACT"}  # read, and too deep to be
