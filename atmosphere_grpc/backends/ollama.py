"""Ollama by its own API, which tells more than its `/v1`: what is in memory, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

import msgspec

from atmosphere_grpc.backends.events import Event, NDJSONParser
from atmosphere_grpc.backends.language import LanguageOnly
from atmosphere_grpc.backends.ollama_errors import explain, explain_line
from atmosphere_grpc.backends.ollama_request import chat_body, embed_body, warm_body
from atmosphere_grpc.backends.ollama_schema import (
    Line,
    Tag,
    embed_decoder,
    line_decoder,
    residents_decoder,
    shown_decoder,
    tags_decoder,
)
from atmosphere_grpc.backends.ollama_stream import Answer
from atmosphere_grpc.backends.openai_schema import MALFORMED, UsageChunk
from atmosphere_grpc.backends.openai_stream import usage
from atmosphere_grpc.backends.together import together
from atmosphere_grpc.backends.vectors import check_vectors
from atmosphere_grpc.backends.wire import (
    HttpStatus,
    Stream,
    Wire,
    WireSettings,
)
from atmosphere_grpc.domain import (
    BackendEvent,
    Begun,
    Call,
    Capability,
    ChatCall,
    EmbedCall,
    Embeddings,
    Model,
    ModelState,
)
from atmosphere_grpc.errors import Failure

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Lines come as the first; one whole answer, from what ignores `stream`, as the second.
LINE_TYPES = ("application/x-ndjson", "application/json")
#: What Ollama calls what a model can do, in our words.
CAPABILITIES = {
    "completion": Capability.CHAT.value,
    "embedding": Capability.EMBED.value,
    "vision": "vision",
}
#: How many models are asked about at a time.
SHOW_AT_A_TIME = 4


class OllamaBackend(LanguageOnly):
    """An Ollama server.

    Args:
        settings: Where it is; its `base_url` is the root of its address.
        context_length: The context that every request asks for, in tokens; None: that with which
            the model was loaded, else Ollama's own default.
    """

    def __init__(self, settings: WireSettings, context_length: int | None = None) -> None:
        self._wire = Wire(settings)
        self._endpoint = self._wire.endpoint
        self._context_length = context_length
        self._loaded_with: dict[str, int | None] = {}  # context by model in memory
        self._shown: dict[tuple[str, str], tuple[str, ...]] = {}  # by name and digest
        self._can: dict[str, tuple[str, ...]] = {}  # capabilities by model
        self._asked = False

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The server's host and port."""
        return (self._endpoint.address,)

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._wire.aclose()

    def lists_all_models(self, capability: Capability) -> bool:
        """It lists what it has, and has nothing else."""
        return self._asked

    def is_cold(self, model: str) -> bool:
        """Whether a model was not in memory when that was last asked, or found out."""
        return self._asked and self._loaded_with.keys().isdisjoint((model, f"{model}:latest"))

    async def warm(self, model: str) -> None:
        """Has a model loaded, with the context that every request asks for.

        Ollama gives up loading a model when the request that asked for it is cancelled.
        """
        body = warm_body(model, self._num_ctx(model))
        can = self._can.get(model) or self._can.get(f"{model}:latest") or ()
        only_embeds = bool(can) and Capability.CHAT.value not in can
        try:
            path = "api/embed" if only_embeds else "api/chat"
            await self._wire.post(path, body, connect_s=math.inf)
        except HttpStatus as status:
            raise explain(self._endpoint, status) from None
        self._loaded_with.setdefault(model, self._context_length)

    async def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        """Continues a conversation; every line of one socket read becomes one delta."""
        num_ctx = self._num_ctx(model)
        body = chat_body(model, call, num_ctx)
        answer = Answer(call, num_ctx)
        try:
            async with self._wire.stream("api/chat", body, connect_s=connect_s) as stream:
                if stream.content_type not in LINE_TYPES:
                    raise self._endpoint.contract(
                        f"its answer is {stream.content_type or 'of no type'}, not lines of JSON"
                    )
                async with aclosing(self._read(stream, answer)) as events:
                    async for event in events:
                        yield event
        except HttpStatus as status:
            raise explain(self._endpoint, status) from None

    async def _read(self, stream: Stream, answer: Answer) -> AsyncGenerator[BackendEvent, None]:
        begun = False
        while True:
            failure: Failure | None = None
            batch: Sequence[Event] | None = ()
            try:
                batch = await stream.batch(NDJSONParser)
            except Failure as error:
                failure = error
            if batch is None:
                break
            for event in batch:
                try:
                    line = self._line(event)
                except Failure as error:
                    failure = error
                    break
                if not begun:
                    begun = True
                    yield Begun(model=line.model or "")
                answer.add(line)
                if answer.finished:
                    break
            if (failure or answer.finished or stream.due) and (delta := answer.take()):
                yield delta
                stream.sent(last=answer.finished)
            if failure is not None:  # after what came before it
                raise failure
            if answer.finished:
                await stream.drain()
                yield answer.end()
                return
        if delta := answer.take():
            yield delta
        raise self._endpoint.truncated("its stream ended")

    def _line(self, event: Event) -> Line:
        try:
            line = line_decoder.decode(event.data)
        except MALFORMED as error:
            detail, words = type(error).__name__, self._endpoint.words(event.data)
            if not event.ended:
                raise self._endpoint.truncated(
                    "its stream broke off", detail=detail, words=words
                ) from None
            raise self._endpoint.contract(
                "its answer is not as it should be", detail=detail, words=words
            ) from None
        if line.error is not None:
            raise explain_line(self._endpoint, line.error)
        return line

    def check(self, model: str, call: Call) -> None:
        """That the dialect has words for what a call holds."""
        if isinstance(call, ChatCall):
            chat_body(model, call, self._num_ctx(model))
        elif isinstance(call, EmbedCall):
            embed_body(model, call, self._num_ctx(model))

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        """Turns texts into vectors; checks that there is one a text, of the length asked for."""
        body = embed_body(model, call, self._num_ctx(model))
        try:
            answer = embed_decoder.decode(
                await self._wire.post("api/embed", body, connect_s=connect_s)
            )
        except HttpStatus as status:
            raise explain(self._endpoint, status) from None
        except MALFORMED as error:
            raise self._endpoint.contract(
                "its answer holds no embeddings", detail=str(error)
            ) from None
        check_vectors(self._endpoint, call, answer.embeddings)
        tokens = usage(UsageChunk(prompt_tokens=answer.prompt_eval_count))
        return Embeddings(tuple(answer.embeddings), answer.model or model, tokens)

    async def models(self) -> tuple[Model, ...]:
        """The models on disk, and which of them are in memory."""
        async with together() as group:
            listing = group.create_task(self._get("api/tags", tags_decoder))
            running = group.create_task(self._get("api/ps", residents_decoder))
        tags, residents = listing.result(), running.result()
        self._loaded_with = {item.name: item.context_length for item in residents.models or ()}
        self._asked = True
        # Those of Ollama's cloud are no local models: a prompt must not leave the machine unasked.
        files = [file for file in tags.models or () if not file.remote_host]
        turns = asyncio.Semaphore(SHOW_AT_A_TIME)
        abilities = await asyncio.gather(*(self._abilities(file, turns) for file in files))
        # Not more than there are: models come and go.
        self._shown = {
            _key(file): known
            for file, known in zip(files, abilities, strict=True)
            if known is not None
        }
        models = tuple(map(self._model, files, abilities))
        self._can = {model.id: model.capabilities for model in models}
        return models

    def _num_ctx(self, model: str) -> int | None:
        """The context to ask for: always the same of a model in memory, which stays there."""
        # A name without a tag is Ollama's for the latest.
        loaded_with = self._loaded_with.get(model) or self._loaded_with.get(f"{model}:latest")
        return self._context_length or loaded_with

    def _model(self, file: Tag, abilities: tuple[str, ...] | None) -> Model:
        loaded = file.name in self._loaded_with
        known = abilities or ()
        details = file.details
        described = details and (details.family, details.parameter_size, details.quantization_level)
        return Model(
            file.name,
            owned_by="ollama",
            capabilities=tuple(CAPABILITIES[name] for name in known if name in CAPABILITIES),
            context_length=(self._loaded_with.get(file.name) or self._context_length or 0),
            size_bytes=file.size or 0,
            state=ModelState.LOADED if loaded else ModelState.AVAILABLE,
            description=" ".join(filter(None, described or ())),
            accepts_images="vision" in known if known else None,
            accepts_tools="tools" in known if known else None,
        )

    async def _abilities(self, file: Tag, turns: asyncio.Semaphore) -> tuple[str, ...] | None:
        """What a model can do, in Ollama's words; asked once, since a model's file stays as it is.

        Nothing where the server does not tell; None where it failed to, and may do so next time.
        """
        if file.capabilities:
            return tuple(file.capabilities)
        if (key := _key(file)) in self._shown:
            return self._shown[key]
        body = msgspec.json.encode({"model": file.name})
        async with turns:
            try:
                shown = shown_decoder.decode(
                    await self._wire.post("api/show", body, connect_s=math.inf)
                )
            except (Failure, HttpStatus, *MALFORMED):
                return None
        return tuple(shown.capabilities or ())

    async def _get(self, path: str, decoder: msgspec.json.Decoder[T]) -> T:
        try:
            return decoder.decode(await self._wire.get(path))
        except HttpStatus as status:
            if status.status == 404:
                raise self._endpoint.contract(f"it has no /{path}: is it an Ollama?") from None
            raise explain(self._endpoint, status) from None
        except MALFORMED as error:
            raise self._endpoint.contract(
                f"its answer to /{path} is not a list of models", detail=str(error)
            ) from None


def _key(file: Tag) -> tuple[str, str]:
    return file.name, file.digest or ""
