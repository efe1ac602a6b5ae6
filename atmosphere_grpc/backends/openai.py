"""The OpenAI dialect: llama.cpp, vLLM, LM Studio, Ollama's and LlamaFarm's `/v1`, and OpenAI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from atmosphere_grpc.backends.openai_errors import from_error, from_status, stream_error_status
from atmosphere_grpc.backends.openai_request import chat_body, embed_body
from atmosphere_grpc.backends.openai_schema import (
    MALFORMED,
    Chunk,
    ModelCard,
    chunk_decoder,
    embeddings_decoder,
    models_decoder,
)
from atmosphere_grpc.backends.openai_stream import Assembly, usage
from atmosphere_grpc.backends.events import Event, SSEParser
from atmosphere_grpc.backends.wire import HttpStatus, Stream, Wire, WireSettings
from atmosphere_grpc.domain import (
    BackendEvent,
    Begun,
    ChatCall,
    EmbedCall,
    Embeddings,
    Model,
    ModelState,
)
from atmosphere_grpc.errors import Failure, Reason, Violation

#: The types of events that hold chunks; others, such as `x_cache`, are a server's own.
MESSAGE_TYPES = (b"", b"message", b"error")
#: How long an answer that has ended is waited for to report its usage, in seconds.
TAIL_S = 1.0
JSON_TYPES = ("application/json", "text/json")


class OpenAIBackend:
    """One server of the OpenAI dialect.

    Args:
        settings: Where it is; its `base_url` ends in `/v1` as that ecosystem writes it.
    """

    def __init__(self, settings: WireSettings) -> None:
        self._wire = Wire(settings)
        self._endpoint = self._wire.endpoint

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The server's host and port."""
        return (self._endpoint.address,)

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._wire.aclose()

    async def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        """Continues a conversation; every event of one socket read becomes one delta."""
        body = chat_body(model, call)
        try:
            async with self._wire.stream("chat/completions", body, connect_s=connect_s) as stream:
                if stream.content_type == "text/event-stream":
                    events = self._from_stream(stream)
                elif stream.content_type in JSON_TYPES:
                    # Some servers answer a request for a stream with the whole (LlamaFarm did).
                    events = self._from_whole(stream)
                else:
                    raise self._endpoint.contract(
                        f"its answer is {stream.content_type or 'of no type'}, not an event stream"
                    )
                async with aclosing(events):
                    async for event in events:
                        yield event
        except HttpStatus as answer:
            raise from_status(self._endpoint, answer) from None

    async def _from_stream(self, stream: Stream) -> AsyncGenerator[BackendEvent, None]:
        assembly = Assembly()
        begun = done = False
        async with aclosing(stream.batches(SSEParser)) as batches:
            while True:
                try:
                    # Some servers keep a finished stream open and report no usage.
                    async with asyncio.timeout(TAIL_S if assembly.finished else None):
                        batch = await anext(batches)
                except (StopAsyncIteration, TimeoutError):
                    break
                failure: Failure | None = None
                for event in batch:
                    if event.type not in MESSAGE_TYPES:
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
                if delta := assembly.take():
                    yield delta
                if failure is not None:  # after what came before it in the same read
                    raise failure
                if done or assembly.whole:
                    await stream.drain()
                    break
        if not assembly.finished:
            raise self._endpoint.truncated("its stream ended")
        yield assembly.end()

    async def _from_whole(self, stream: Stream) -> AsyncGenerator[BackendEvent, None]:
        chunk = self._chunk(Event(b"", await stream.body()))
        assembly = Assembly()
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
        if error_body is not None:
            status = stream_error_status(error_body)
            raise from_error(self._endpoint, status, {"error": error_body})
        return chunk

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        """Turns texts into vectors; checks that there is one a text, of the length asked for."""
        try:
            body = await self._wire.post("embeddings", embed_body(model, call), connect_s=connect_s)
            answer = embeddings_decoder.decode(body)
        except HttpStatus as status:
            raise from_status(self._endpoint, status) from None
        except MALFORMED as error:
            raise self._endpoint.contract(
                "its answer is not a list of embeddings", detail=str(error)
            ) from None
        vectors = [item.embedding for item in answer.data]
        if all(item.index is not None for item in answer.data):
            by_index = {item.index: item.embedding for item in answer.data}
            vectors = [by_index[i] for i in range(len(answer.data)) if i in by_index]
        if len(vectors) != len(call.input):
            raise self._endpoint.contract(
                f"it answered {len(call.input)} texts with {len(vectors)} vectors"
            )
        lengths = {len(vector) for vector in vectors}
        if len(lengths) != 1 or 0 in lengths:
            raise self._endpoint.contract("its vectors are empty or differ in length")
        if call.dimensions is not None and lengths != {call.dimensions}:
            raise Failure(
                Reason.UNSUPPORTED_PARAMETER,
                f"dimensions: the model returns vectors of {lengths.pop()}, not of "
                f"{call.dimensions} – leave dimensions unset",
                violations=[Violation("dimensions", "not supported by this model")],
            )
        return Embeddings(tuple(vectors), answer.model or model, usage(answer.usage))

    async def models(self) -> tuple[Model, ...]:
        """The models that `/models` lists."""
        try:
            cards = models_decoder.decode(await self._wire.get("models"))
        except HttpStatus as status:
            raise from_status(self._endpoint, status) from None
        except MALFORMED as error:
            raise self._endpoint.contract(
                "its answer to /models is not a list of models", detail=str(error)
            ) from None
        return tuple(_model(card) for card in cards.data or ())


def _model(card: ModelCard) -> Model:
    meta = card.meta
    modalities = card.architecture.input_modalities if card.architecture else None
    return Model(
        card.id,
        owned_by=card.owned_by or "",
        context_length=(meta and meta.n_ctx) or card.max_model_len or card.context_length or 0,
        size_bytes=(meta and meta.size) or 0,
        # Only a model in memory has a context.
        state=ModelState.LOADED if meta and meta.n_ctx else ModelState.UNKNOWN,
        description=card.description or "",
        accepts_images=None if modalities is None else "image" in modalities,
    )
