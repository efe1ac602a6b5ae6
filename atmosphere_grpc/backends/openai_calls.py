"""The calls of an OpenAI-shaped API over HTTP: chat, embeddings, models, at any path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

import msgspec

from atmosphere_grpc.backends.events import Event, SSEParser
from atmosphere_grpc.backends.openai_errors import from_error, from_status, stream_error_status
from atmosphere_grpc.backends.openai_schema import (
    MALFORMED,
    Chunk,
    ModelCard,
    chunk_decoder,
    embeddings_decoder,
    models_decoder,
)
from atmosphere_grpc.backends.openai_stream import Assembly, usage
from atmosphere_grpc.backends.vectors import check_vectors
from atmosphere_grpc.backends.wire import (
    NO_HEADERS,
    Endpoint,
    HttpStatus,
    Stream,
    Wire,
)
from atmosphere_grpc.domain import BackendEvent, Begun, EmbedCall, Embeddings
from atmosphere_grpc.errors import Failure, Reason

#: The types of events that hold chunks; others, such as `x_cache`, are a server's own.
MESSAGE_TYPES = (b"", b"message", b"error")
#: How long an answer that has ended is waited for to report its usage, in seconds.
TAIL_S = 1.0
JSON_TYPES = ("application/json", "text/json")


class OpenAICalls:
    """What a server of an OpenAI-shaped API can be asked, each at a path of its own.

    Every method raises `Failure` and nothing else.

    Args:
        wire: The connections to it; whoever made them closes them.
        explain: What an answer other than 2xx means there.
    """

    def __init__(
        self, wire: Wire, explain: Callable[[Endpoint, HttpStatus], Failure] = from_status
    ) -> None:
        self._wire = wire
        self._explain = explain
        self._endpoint = wire.endpoint

    async def chat(
        self,
        path: str,
        body: bytes,
        assembly: Assembly,
        *,
        connect_s: float,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncGenerator[BackendEvent, None]:
        """Continues a conversation; every event of one socket read becomes one delta."""
        try:
            async with self._wire.stream(
                path, body, connect_s=connect_s, headers=headers
            ) as stream:
                if stream.content_type == "text/event-stream":
                    events = self._from_stream(stream, assembly)
                elif stream.content_type in JSON_TYPES:
                    # Some servers answer a request for a stream with the whole (LlamaFarm did).
                    events = self._from_whole(stream, assembly)
                else:
                    raise self._endpoint.contract(
                        f"its answer is {stream.content_type or 'of no type'}, not an event stream"
                    )
                async with aclosing(events):
                    async for event in events:
                        yield event
        except HttpStatus as answer:
            raise self._explain(self._endpoint, answer) from None

    async def embed(
        self, path: str, body: bytes, model: str, call: EmbedCall, *, connect_s: float
    ) -> Embeddings:
        """Turns texts into vectors; checks that there is one a text, of the length asked for."""
        try:
            answer = embeddings_decoder.decode(
                await self._wire.post(path, body, connect_s=connect_s)
            )
        except HttpStatus as status:
            raise self._explain(self._endpoint, status) from None
        except MALFORMED as error:
            raise self._endpoint.contract(
                "its answer is not a list of embeddings", detail=str(error)
            ) from None
        vectors = [item.embedding for item in answer.data]
        if all(item.index is not None for item in answer.data):
            by_index = {item.index: item.embedding for item in answer.data}
            vectors = [by_index[i] for i in range(len(answer.data)) if i in by_index]
        check_vectors(self._endpoint, call, vectors)
        return Embeddings(tuple(vectors), answer.model or model, usage(answer.usage))

    async def models(self, path: str) -> list[ModelCard]:
        """The models that a server lists."""
        try:
            cards = models_decoder.decode(await self._wire.get(path))
        except HttpStatus as status:
            raise self._explain(self._endpoint, status) from None
        except MALFORMED as error:
            raise self._endpoint.contract(
                f"its answer to /{path} is not a list of models", detail=str(error)
            ) from None
        return cards.data or []

    async def _from_stream(
        self, stream: Stream, assembly: Assembly
    ) -> AsyncGenerator[BackendEvent, None]:
        begun = done = False
        while True:
            failure: Failure | None = None
            try:
                batch = await _next(stream, assembly)
            except Failure as error:
                if assembly.finished and error.reason is Reason.STREAM_TRUNCATED:
                    break  # the connection did, and not the answer
                batch, failure = (), error
            if batch is None:
                break
            for event in batch:
                if event.type not in MESSAGE_TYPES:
                    assembly.add_other(event)
                    continue
                if event.data == b"[DONE]":
                    done = True
                    break
                try:
                    chunk = self._chunk(event)
                except Failure as error:
                    failure = error
                    break
                if not begun:
                    begun = True
                    yield Begun(chunk.id or "", chunk.model or "")
                assembly.add(chunk)
            if (failure or assembly.finished or stream.due) and (delta := assembly.take()):
                yield delta
                stream.sent(last=assembly.finished)
            if failure is not None:  # after what came before it
                raise failure
            if assembly.goes_on:
                break
            if done or assembly.whole:
                await stream.drain()
                break
        if delta := assembly.take():
            yield delta
        if not assembly.finished:
            raise self._endpoint.truncated("its stream ended")
        yield assembly.end()

    async def _from_whole(
        self, stream: Stream, assembly: Assembly
    ) -> AsyncGenerator[BackendEvent, None]:
        chunk = self._chunk(Event(b"", await stream.body()))
        assembly.add(chunk)
        if not assembly.finished:
            raise self._endpoint.contract("its answer has no finish_reason")
        yield Begun(chunk.id or "", chunk.model or "")
        if delta := assembly.take():
            yield delta
        yield assembly.end()

    def _chunk(self, event: Event) -> Chunk:
        try:
            chunk = chunk_decoder.decode(event.data)
        except MALFORMED as error:
            detail, words = type(error).__name__, self._endpoint.words(event.data)
            if not event.ended:
                raise self._endpoint.truncated(
                    "its stream broke off", detail=detail, words=words
                ) from None
            raise self._endpoint.contract(
                "its answer is not as it should be", detail=detail, words=words
            ) from None
        error_body = chunk.detail if chunk.error is None else chunk.error
        if error_body is None and (chunk.object == "error" or event.type == b"error"):
            error_body = msgspec.json.decode(event.data)  # older vLLM: not inside of `error`
        if error_body is not None:
            status = stream_error_status(error_body)
            raise from_error(self._endpoint, status, {"error": error_body})
        return chunk


async def _next(stream: Stream, assembly: Assembly) -> Sequence[Event] | None:
    """The next batch; None where there is none, or none that is worth waiting for."""
    if not assembly.finished:
        return await stream.batch(SSEParser)
    try:
        # Some servers keep a finished stream open and report no usage.
        async with asyncio.timeout(TAIL_S):
            return await stream.batch(SSEParser)
    except TimeoutError:
        return None
