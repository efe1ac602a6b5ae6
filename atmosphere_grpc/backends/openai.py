"""The OpenAI dialect: llama.cpp, vLLM, LM Studio, OpenAI, and every other `/v1`."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from atmosphere_grpc.backends.language import LanguageOnly
from atmosphere_grpc.backends.openai_calls import OpenAICalls
from atmosphere_grpc.backends.openai_request import chat_body, embed_body
from atmosphere_grpc.backends.openai_schema import ModelCard
from atmosphere_grpc.backends.openai_stream import Assembly
from atmosphere_grpc.backends.parameters import Dialect
from atmosphere_grpc.backends.wire import Wire, WireSettings
from atmosphere_grpc.domain import (
    BackendEvent,
    Call,
    Capability,
    ChatCall,
    EmbedCall,
    Embeddings,
    Model,
    ModelState,
)


class OpenAIBackend(LanguageOnly):
    """One server of the OpenAI dialect.

    Args:
        settings: Where it is; its `base_url` ends in `/v1` as that ecosystem writes it.
    """

    def __init__(self, settings: WireSettings) -> None:
        self._wire = Wire(settings)
        self._calls = OpenAICalls(self._wire)
        self._lists_models = False

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The server's host and port."""
        return (self._wire.endpoint.address,)

    def lists_all_models(self, capability: Capability) -> bool:
        """Whether it lists any: some servers list none, and serve what they have all the same."""
        return self._lists_models

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._wire.aclose()

    def is_cold(self, model: str) -> bool:
        """Never: the dialect has no word for loading."""
        return False

    async def warm(self, model: str) -> None:
        """Does nothing: there is nothing to load."""

    def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        """Continues a conversation; every event of one socket read becomes one delta."""
        body = chat_body(Dialect.OPENAI, model, call)
        return self._calls.chat("chat/completions", body, Assembly(), connect_s=connect_s)

    def check(self, model: str, call: Call) -> None:
        """That the dialect has words for what a call holds."""
        if isinstance(call, ChatCall):
            chat_body(Dialect.OPENAI, model, call)
        elif isinstance(call, EmbedCall):
            embed_body(Dialect.OPENAI, model, call)

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        """Turns texts into vectors; checks that there is one a text, of the length asked for."""
        body = embed_body(Dialect.OPENAI, model, call)
        return await self._calls.embed("embeddings", body, model, call, connect_s=connect_s)

    async def models(self) -> tuple[Model, ...]:
        """The models that `/models` lists."""
        cards = await self._calls.models("models")
        self._lists_models = bool(cards)
        return tuple(_model(card) for card in cards)


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
