"""LlamaFarm: its server, and its Universal Runtime, told apart by what they answer."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import msgspec

from atmosphere_grpc.backends.extra import LLAMAFARM_CHAT, NOTHING, RUNTIME_CHAT, add_known
from atmosphere_grpc.backends.llamafarm_fitted import FittedModels, merged
from atmosphere_grpc.backends.llamafarm_schema import (
    Health,
    decode,
    files_decoder,
    health_decoder,
    info_decoder,
    is_projects_fault,
    project_models_decoder,
    projects_decoder,
    runtime_model,
)
from atmosphere_grpc.backends.openai_calls import OpenAICalls
from atmosphere_grpc.backends.openai_errors import from_status
from atmosphere_grpc.backends.openai_request import chat_body, embed_body
from atmosphere_grpc.backends.openai_schema import MALFORMED
from atmosphere_grpc.backends.openai_stream import Assembly
from atmosphere_grpc.backends.parameters import Dialect, Draft
from atmosphere_grpc.backends.thinking import ThinkSplitter
from atmosphere_grpc.backends.together import together
from atmosphere_grpc.backends.wire import Endpoint, HttpStatus, Wire, WireSettings
from atmosphere_grpc.domain import (
    Anomalies,
    AnomalyCall,
    BackendEvent,
    Call,
    Capability,
    ChatCall,
    Classifications,
    ClassifyCall,
    Delta,
    EmbedCall,
    Embeddings,
    Model,
    ModelState,
)
from atmosphere_grpc.errors import Failure, Reason, Violation

log = logging.getLogger(__name__)
T = TypeVar("T")

#: What a LlamaFarm server says, in an answer that looks whole, when the model behind it failed
#: (`FALLBACK_ECHO_RESPONSE` in its project_chat_service).
APOLOGY = (
    "I notice my previous response wasn't very helpful. Let me try to provide a better answer. "
    "Could you provide more specific details about what you're looking for? For example, if you're "
    "asking about a particular feature or need help with something specific, please let me know "
    "and I'll do my best to assist you properly."
)
#: How many tokens a Universal Runtime makes at most when nothing is said.
RUNTIME_MAX_TOKENS = 512
#: A server uses the session's id as the name of a folder, unchecked.
SESSION_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
#: How long a server may take to say how it is doing, in seconds: it waits for its own backends.
HEALTH_S = 3.0
#: What the model of a project is called where a server does not list its models, as those of August
#: 2025, which answer with whatever the project is configured with.
UNNAMED = Model("default", capabilities=(Capability.CHAT.value,))
#: How LlamaFarm calls its health; other servers have the same page in other words.
STATUSES = ("healthy", "degraded", "unhealthy")
#: A component without which LlamaFarm is well: it calls itself unhealthy where Ollama is missing.
OPTIONAL_COMPONENTS = frozenset({"ollama"})


class LlamaFarmBackend:
    """A LlamaFarm server or Universal Runtime.

    Args:
        settings: Where it is; its `base_url` is the root of its address.
        project: The project that chats go to, as `namespace/name`; empty for none.
    """

    def __init__(self, settings: WireSettings, project: str = "") -> None:
        self._wire = Wire(settings)
        self._endpoint = self._wire.endpoint
        self._project = project
        self._calls = OpenAICalls(self._wire, self._explain)
        self._fitted = FittedModels(self._wire)
        #: What answered when it was last asked; None: not yet.
        self._dialect: Dialect | None = None
        self._lists_models = False

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The server's host and port."""
        return (self._endpoint.address,)

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._wire.aclose()

    def lists_all_models(self, capability: Capability) -> bool:
        """Whether a model that `models` did not name can be ruled out: only a project's can.

        Other chats, and all embeddings, go to a runtime that fetches whatever it is asked for;
        a fitted model may be in memory only.
        """
        return self._lists_models and capability.is_chat

    def offers(self, capability: Capability) -> bool:
        """Retrieval in a project only, fitted models where they are listed, no images on a runtime.

        A runtime has no place for them in its messages.
        """
        if capability.is_fitted:
            return self._fitted.offers(capability)
        if capability is Capability.RAG:
            return bool(self._project)
        return capability is not Capability.VISION or self._dialect is not Dialect.RUNTIME

    def is_cold(self, model: str) -> bool:
        """Never: it has no call that loads a model and generates nothing."""
        return False

    async def warm(self, model: str) -> None:
        """Does nothing: there is nothing to load."""

    async def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        """Continues a conversation, in the project if there is one."""
        dialect = self._dialect or await self._recognise()
        headers: Mapping[str, str] = {}
        max_pieces = None
        if dialect is Dialect.LLAMAFARM:
            headers = _session_headers(call)
        elif not call.extra.get("think"):
            # It says `stop` of an answer that was cut, and sends a token at a time.
            max_pieces = call.sampling.max_tokens or RUNTIME_MAX_TOKENS
        body = chat_body(dialect, model, call, partial(_add_extra, dialect))
        events = self._calls.chat(
            self._chat_path(dialect),
            body,
            Assembly(ThinkSplitter(), max_pieces),
            connect_s=connect_s,
            headers=headers,
        )
        first = True
        async with aclosing(events):
            async for event in events:
                if first and isinstance(event, Delta):
                    first = False
                    if event.content == APOLOGY:
                        raise self._endpoint.fail(
                            Reason.BACKEND_ERROR,
                            "LlamaFarm answered with the apology that hides a failure of the model "
                            "behind it – its own log says which",
                        )
                yield event

    def check(self, model: str, call: Call) -> None:
        """That the dialect has words for what a call holds; nothing before it is known."""
        dialect = self._dialect
        if dialect is None:
            return
        match call:
            case ChatCall():
                if dialect is Dialect.LLAMAFARM:
                    _session_headers(call)
                chat_body(dialect, model, call, partial(_add_extra, dialect))
            case EmbedCall():
                embed_body(dialect, model, call, partial(_add_extra, dialect))
            case ClassifyCall():
                self._fitted.classify_body(dialect, model, call)
            case AnomalyCall():
                self._fitted.anomaly_body(dialect, model, call)

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        """Turns texts into vectors, on the runtime (which a server passes them on to)."""
        dialect = self._dialect or await self._recognise()
        path = "v1/nlp/embeddings" if dialect is Dialect.LLAMAFARM else "v1/embeddings"
        body = embed_body(dialect, model, call, partial(_add_extra, dialect))
        return await self._calls.embed(path, body, model, call, connect_s=connect_s)

    async def classify(
        self, model: str, call: ClassifyCall, *, connect_s: float
    ) -> Classifications:
        """Gives texts labels, on the runtime (which a server passes them on to)."""
        dialect = self._dialect or await self._recognise()
        return await self._fitted.classify(dialect, model, call, connect_s=connect_s)

    async def anomalies(self, model: str, call: AnomalyCall, *, connect_s: float) -> Anomalies:
        """Scores rows, on the runtime (which a server passes them on to)."""
        dialect = self._dialect or await self._recognise()
        return await self._fitted.anomalies(dialect, model, call, connect_s=connect_s)

    async def models(self) -> tuple[Model, ...]:
        """The project's models; without one, those on disk; a runtime's, those in memory.

        After them those that were fitted.

        Raises:
            Failure: It does not answer, or says that it is not well.
        """
        dialect = await self._recognise()
        async with together() as group:
            fitted = group.create_task(self._fitted.models(dialect))
            named = group.create_task(
                self._runtime_models() if dialect is Dialect.RUNTIME else self._well_models()
            )
        return merged((*named.result(), *fitted.result()))

    async def _runtime_models(self) -> tuple[Model, ...]:
        self._lists_models = False
        cards = await self._calls.models("v1/models")
        # The same one may be in memory more than once, with other settings.
        loaded = dict.fromkeys(runtime_model(card.id) for card in cards)
        return tuple(filter(None, loaded))

    async def _well_models(self) -> tuple[Model, ...]:
        self._check(await self._health())
        return await self._server_models()

    async def _recognise(self) -> Dialect:
        """Which of the two answers at the address."""
        info = await self._ask("info", info_decoder)
        if info is not None:
            self._dialect = Dialect.LLAMAFARM
            return Dialect.LLAMAFARM
        health = await self._ask("health", health_decoder)
        self._dialect = None
        if health is None or health.status not in STATUSES:
            raise self._endpoint.contract(
                "neither a LlamaFarm server nor a Universal Runtime answers there"
            )
        is_runtime = health.device is not None or health.loaded_models is not None
        if is_runtime and self._project:
            raise self._endpoint.fail(
                Reason.BACKEND_CONTRACT,
                f"a Universal Runtime answers at {self._endpoint.address}, which has no projects – "
                "leave project out, or set base_urls to the LlamaFarm server",
            )
        self._dialect = Dialect.RUNTIME if is_runtime else Dialect.LLAMAFARM
        return self._dialect

    async def _health(self) -> Health | None:
        """What a server says of itself; None where it does not say, or not soon enough."""
        try:
            async with asyncio.timeout(HEALTH_S):
                return await self._ask("health", health_decoder)
        except TimeoutError:
            log.debug("%s: no /health within %g s", self._endpoint.address, HEALTH_S)
            return None

    def _check(self, health: Health | None) -> None:
        """That a server does not call itself unhealthy, for a reason that matters here."""
        if health is None or health.status != "unhealthy":
            return
        ill = [item.name for item in health.components or () if item.status == "unhealthy"]
        if ill and OPTIONAL_COMPONENTS.issuperset(ill):
            return
        which = [name for name in ill if re.fullmatch(r"[a-z0-9_-]{1,32}", name)]
        what = f" ({', '.join(which[:5])})" if which else ""
        raise self._endpoint.unavailable(
            f"LlamaFarm says that it is unhealthy{what}", remedy="its own log says why"
        )

    async def _server_models(self) -> tuple[Model, ...]:
        if self._project:
            body = await self._get(f"v1/projects/{self._project}/models")
            self._lists_models = body is not None
            if body is None:
                return (UNNAMED,)
            listed = decode(self._endpoint, project_models_decoder, body, "the project's models")
            # The project's default first: it is what a request that names none gets.
            rows = sorted(listed.models, key=lambda row: not row.default)
            return tuple(
                Model(
                    row.name,
                    owned_by=row.provider or "",
                    capabilities=(Capability.CHAT.value,),
                    state=ModelState.AVAILABLE,
                    description=row.description or row.model or "",
                )
                for row in rows
            )
        body = await self._get("v1/models")
        if body is None:
            return ()
        has_root_chat = await self._has_root_chat()
        files = decode(self._endpoint, files_decoder, body, "the models on disk")
        return tuple(
            Model(
                name,
                # Without a project, and without a chat outside of projects, vectors are left.
                capabilities=() if has_root_chat else (Capability.EMBED.value,),
                size_bytes=file.size or 0,
                state=ModelState.AVAILABLE,
            )
            for file in files.data or ()
            if (name := file.id or file.model_id or file.name)
        )

    async def _has_root_chat(self) -> bool:
        """Whether there is a chat outside of projects: a GET of a path that is only posted to."""
        try:
            await self._wire.get("v1/chat/completions")
        except HttpStatus as answer:
            return answer.status == 405
        return False

    async def _get(self, path: str) -> bytes | None:
        """A body; None where a server has no such path, as those of August 2025."""
        try:
            return await self._wire.get(path)
        except HttpStatus as answer:
            if answer.status == 404 and not is_projects_fault(answer.body):
                return None
            raise _speechless(self._explain(self._endpoint, answer)) from None

    async def _ask(self, path: str, decoder: msgspec.json.Decoder[T]) -> T | None:
        """A small JSON object; None where there is none, or another."""
        try:
            return decoder.decode(await self._wire.get(path))
        except HttpStatus as answer:
            if answer.status in (404, 405):
                return None
            raise from_status(self._endpoint, answer) from None
        except MALFORMED:
            return None

    def _chat_path(self, dialect: Dialect) -> str:
        if self._project and dialect is Dialect.LLAMAFARM:
            return f"v1/projects/{self._project}/chat/completions"
        return "v1/chat/completions"

    def _explain(self, endpoint: Endpoint, answer: HttpStatus) -> Failure:
        """The failure that an answer other than 2xx stands for."""
        if answer.status in (404, 422) and is_projects_fault(answer.body):
            # Without its words: they may quote the project's configuration.
            return endpoint.unavailable(
                f'LlamaFarm has no project "{self._project}", or cannot read it,',
                remedy="create it, or correct project",
            )
        if answer.status == 404 and self._dialect is not Dialect.RUNTIME:
            remedy = (
                "update it"
                if self._project
                else "most answer chats in projects only: set project: namespace/name, or "
                "discover: namespace"
            )
            return endpoint.fail(
                Reason.CAPABILITY_UNSUPPORTED,
                f"this LlamaFarm server has no such path (HTTP 404) – {remedy}",
            )
        return from_status(endpoint, answer)


class LlamaFarmNamespace:
    """The projects of a namespace of a LlamaFarm server.

    Args:
        settings: Where the server is.
        namespace: The namespace.
    """

    def __init__(self, settings: WireSettings, namespace: str) -> None:
        self._wire = Wire(settings)
        self._namespace = namespace

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The server's host and port."""
        return (self._wire.endpoint.address,)

    async def projects(self) -> tuple[str, ...]:
        """The names of the projects that there are now.

        Raises:
            Failure: The server does not answer, or not as it should.
        """
        endpoint = self._wire.endpoint
        try:
            body = await self._wire.get(f"v1/projects/{self._namespace}")
        except HttpStatus as answer:
            raise _speechless(from_status(endpoint, answer)) from None
        what = f"the projects of namespace {self._namespace}"
        return tuple(row.name for row in decode(endpoint, projects_decoder, body, what).projects)

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._wire.aclose()


def _speechless(failure: Failure) -> Failure:
    """The same without the server's words: those about a project's configuration may hold keys."""
    failure.words = ""
    return failure


def _session_headers(call: ChatCall) -> Mapping[str, str]:
    """What keeps a server from keeping the conversation, or names the one that it keeps.

    Raises:
        Failure: The session's id cannot be one.
    """
    if not call.session_id:
        return {"x-no-session": "true"}
    if not SESSION_ID.fullmatch(call.session_id):
        raise Failure.invalid(
            Violation(
                "session_id",
                "must be letters, digits, `.`, `_` and `-`, and not begin with `.`: LlamaFarm "
                "names a folder by it",
            )
        )
    return {"x-session-id": call.session_id}


def _add_extra(dialect: Dialect, draft: Draft, call: ChatCall | EmbedCall) -> None:
    if isinstance(call, EmbedCall):
        known = NOTHING
    elif dialect is Dialect.LLAMAFARM:
        known = LLAMAFARM_CHAT
    else:
        known = RUNTIME_CHAT
        # Otherwise it would have a long prompt summarised by a model, and not say so.
        draft.body["auto_truncate"] = False
    add_known(draft.body, draft, call.extra, call.extra_path, known)
