"""The embedded default as a backend: each model in its own child, asked in the OpenAI dialect."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from atmosphere_grpc.backends.language import LanguageOnly
from atmosphere_grpc.backends.openai import OpenAIBackend
from atmosphere_grpc.backends.wire import WireSettings
from atmosphere_grpc.domain import (
    BackendEvent,
    Call,
    Capability,
    ChatCall,
    EmbedCall,
    Embeddings,
    Model,
    Sampling,
)
from atmosphere_grpc.embedded.models import ModelFile
from atmosphere_grpc.errors import Failure, Reason

#: The id of the integration.
INTEGRATION_ID = "embedded"
#: What holds for a request that does not say. So small a model often does not find its end, and
#: would go on until its context is full; the temperature is its makers' own advice.
DEFAULTS = Sampling(max_tokens=512, temperature=0.2)


class Child(Protocol):
    """A child that serves a model, run by this process or another."""

    @property
    def model(self) -> ModelFile:
        """What it serves."""

    @property
    def api_key(self) -> str:
        """The bearer token that it asks for."""

    @property
    def address(self) -> str | None:
        """Where it is; None while it is down."""

    @property
    def last_error(self) -> str:
        """Why it is down, in plain words."""


class EmbeddedBackend(LanguageOnly):
    """The models of several children, under one integration.

    Args:
        children: The children; each serves one model. They are started and stopped
            by whoever made them.
    """

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = {child.model.id: child for child in children}
        self._clients: dict[str, tuple[str, OpenAIBackend]] = {}  # by model: address and client
        self._known: dict[str, tuple[str, Model]] = {}  # by model: address and what it said

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The hosts and ports of the children that run."""
        addresses = (child.address for child in self._children.values())
        return tuple(address.removeprefix("http://") for address in addresses if address)

    def lists_all_models(self, capability: Capability) -> bool:
        """It has the children's models and no others."""
        return True

    def is_cold(self, model: str) -> bool:
        """Never: a child has its model loaded before it is asked."""
        return False

    async def warm(self, model: str) -> None:
        """Does nothing: there is nothing to load."""

    async def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        """Continues a conversation on the child that serves the model."""
        client = await self._client(model)
        call = replace(call, sampling=_with_defaults(call.sampling))
        async with aclosing(client.chat(model, call, connect_s=connect_s)) as events:
            async for event in events:
                yield event

    def check(self, model: str, call: Call) -> None:
        """That the dialect has words for what a call holds."""
        if (known := self._clients.get(model)) is not None:
            known[1].check(model, call)

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        """Turns texts into vectors on the child that serves the model."""
        client = await self._client(model)
        return await client.embed(model, call, connect_s=connect_s)

    async def models(self) -> tuple[Model, ...]:
        """Every child's model.

        Raises:
            Failure: A child is down; the others' models are known from before.
        """
        return tuple([await self._model(child) for child in self._children.values()])

    async def aclose(self) -> None:
        """Closes the connections; the children go on."""
        for _, client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    async def _model(self, child: Child) -> Model:
        """What a child said once it had loaded: asking again would only measure its queue."""
        client = await self._client(child.model.id)
        address, known = self._known.get(child.model.id, ("", None))
        if known is not None and address == child.address:
            return known
        listed = await client.models()
        said = next((item for item in listed if item.id == child.model.id), Model(child.model.id))
        model = replace(
            said,
            capabilities=(child.model.capability,),
            description=child.model.description,
            accepts_tools=child.model.accepts_tools,
        )
        self._known[child.model.id] = (child.address or "", model)
        return model

    async def _client(self, model: str) -> OpenAIBackend:
        """A client of the child that serves a model; a restarted child has a new address."""
        child = self._children[model]
        address = child.address
        if address is None:
            why = child.last_error or f"the llama.cpp server for {model} is not running"
            raise Failure(Reason.BACKEND_UNAVAILABLE, f'integration "{INTEGRATION_ID}": {why}')
        known_address, client = self._clients.get(model, ("", None))
        if client is not None and known_address == address:
            return client
        made = OpenAIBackend(
            WireSettings(
                INTEGRATION_ID,
                f"{address}/v1",
                headers={"authorization": f"Bearer {child.api_key}"},
                hint="it is started again by itself",
            )
        )
        self._clients[model] = (address, made)
        if client is not None:
            await client.aclose()
        return made


def _with_defaults(sampling: Sampling) -> Sampling:
    return replace(
        sampling,
        max_tokens=sampling.max_tokens or DEFAULTS.max_tokens,
        temperature=DEFAULTS.temperature if sampling.temperature is None else sampling.temperature,
    )
