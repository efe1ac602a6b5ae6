"""The RPCs with one answer as paths: how each is read and told."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from atmosphere_grpc.codec.failures_json import failure_document, openai_error
from atmosphere_grpc.codec.messages_json import decode_json, decode_query, encode_json, json_object
from atmosphere_grpc.codec.openai_requests import OpenAIEmbeddings, decode_openai_embeddings
from atmosphere_grpc.codec.openai_responses import (
    openai_embeddings,
    openai_model,
    openai_models,
)
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.http.call import HttpCall
from atmosphere_grpc.http.endpoint import Endpoint, Read, Tell, Unary
from atmosphere_grpc.http.surface import Surface
from atmosphere_grpc.v1 import execution_pb2

#: Clients of OpenAI's API know no pages.
ALL_MODELS = 1000


@dataclass(frozen=True, slots=True)
class Plain:
    """A request of the contract, and nothing beside it."""

    request: Any


Handle: TypeAlias = Callable[[Any, HttpCall], Awaitable[Any]]


def execute(surface: Surface) -> Endpoint[Plain]:
    """`POST /v1/execute`."""
    read = _body(execution_pb2.ExecuteRequest)
    return _plain(surface, "Execute", read, surface.servicer.Execute)


def route(surface: Surface) -> Endpoint[Plain]:
    """`POST /v1/route`."""
    read = _body(execution_pb2.RouteRequest)
    return _plain(surface, "Route", read, surface.servicer.Route)


def integration_test(surface: Surface) -> Endpoint[Plain]:
    """`POST /v1/integrations/test`."""
    read = _body(execution_pb2.TestIntegrationRequest)
    return _plain(surface, "TestIntegration", read, surface.servicer.TestIntegration)


def integrations(surface: Surface) -> Endpoint[Plain]:
    """`GET /v1/integrations`."""
    read = _query(execution_pb2.ListIntegrationsRequest)
    return _plain(surface, "ListIntegrations", read, surface.servicer.ListIntegrations)


def models(surface: Surface) -> Endpoint[Plain]:
    """`GET /v1/models`: the contract's list and OpenAI's, in one."""

    async def handle(
        request: execution_pb2.ListModelsRequest, call: HttpCall
    ) -> execution_pb2.ListModelsResponse:
        request.page_size = request.page_size or ALL_MODELS
        return await surface.servicer.ListModels(request, call)

    read = _query(execution_pb2.ListModelsRequest)
    return _plain(surface, "ListModels", read, handle, openai_models, openai_error)


def model(surface: Surface) -> Endpoint[Plain]:
    """`GET /v1/models/{model}`, by OpenAI's API."""

    async def handle(
        request: execution_pb2.ListModelsRequest, call: HttpCall
    ) -> execution_pb2.Model:
        wanted = call.path_parameters["model"]
        known: list[str] = []
        request.page_size = ALL_MODELS
        while True:
            page = await surface.servicer.ListModels(request, call)
            for item in page.models:
                if item.id == wanted:
                    return item
                known.append(item.id)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        near = difflib.get_close_matches(wanted, known, n=3) or known[:3]
        raise Failure(
            Reason.MODEL_NOT_FOUND,
            f'model: there is no model "{wanted[:80]}"; near are {", ".join(near) or "none"} – '
            "GET /v1/models lists all",
        )

    read = _query(execution_pb2.ListModelsRequest)
    return _plain(surface, "ListModels", read, handle, openai_model, openai_error)


def embeddings(surface: Surface) -> Endpoint[OpenAIEmbeddings]:
    """`POST /v1/embeddings`, by OpenAI's API."""

    async def read(call: HttpCall) -> Callable[[], OpenAIEmbeddings]:
        body = await call.json_body()
        return lambda: decode_openai_embeddings(json_object(body))

    def encode(asked: OpenAIEmbeddings, response: execution_pb2.EmbedResponse) -> Any:
        return openai_embeddings(response, as_base64=asked.base64)

    return Unary(surface, "Embed", read, surface.servicer.Embed, encode, openai_error)


def _plain(
    surface: Surface,
    rpc: str,
    read: Read[Plain],
    handle: Handle,
    encode: Callable[[Any], Any] = encode_json,
    tell: Tell = failure_document,
) -> Endpoint[Plain]:
    return Unary(surface, rpc, read, handle, lambda _, response: encode(response), tell)


def _body(message_type: Any) -> Read[Plain]:
    """Reads a body as a message."""

    async def read(call: HttpCall) -> Callable[[], Plain]:
        body = await call.json_body()
        return lambda: Plain(decode_json(message_type, json_object(body)))

    return read


def _query(message_type: Any) -> Read[Plain]:
    """Reads a query as a message."""

    async def read(call: HttpCall) -> Callable[[], Plain]:
        await call.no_body()
        return lambda: Plain(decode_query(message_type, call.query))

    return read
