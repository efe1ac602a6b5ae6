"""The OpenAPI document, made from the contract."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from atmosphere_grpc.codec.json_schema import Schemas, comments, query_parameters
from atmosphere_grpc.errors import HTTP_STATUS
from atmosphere_grpc.http import openai_shapes
from atmosphere_grpc.v1 import execution_pb2

JSON = "application/json"
_FAILURE: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "success": {"const": False},
        "error": {"type": "string", "description": "What is wrong and what to do, for people."},
        "reason": {"type": "string", "description": "Why, for programs: see docs/errors.md."},
        "code": {"type": "string", "description": "The gRPC status, by its name."},
        "request_id": {"type": "string"},
        "violations": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "description": {"type": "string"}},
                "required": ["field", "description"],
            },
        },
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "retry_after_s": {"type": ["number", "null"]},
    },
    "required": ["success", "error", "reason", "request_id", "violations", "metadata"],
}
_HEADERS: list[dict[str, Any]] = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "description": "The request's id, 1 to 128 printable characters; the answer and the log "
        "repeat it.",
        "schema": {"type": "string"},
    },
    {
        "name": "X-Request-Timeout",
        "in": "header",
        "description": "How long the call may take: seconds, or 300ms, 5s, 10m, 1h.",
        "schema": {"type": "string", "pattern": r"^[0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h)?$"},
    },
]
#: Statuses that HTTP has beside those of the calls.
_OWN_STATUSES = (405, 408, 413, 415, 431)
#: Those of requests that are no call, and those that calls have too.
_NO_CALL, _BOTH = (405, 431), (400, 403, 404)


@dataclass(frozen=True, slots=True)
class Operation:
    """A call at a path.

    Attributes:
        verb: `get` or `post`.
        path: The path.
        rpc: The RPC that it stands for.
        asked: The message of its query or body; None: OpenAI's.
        answered: The message of its answer; None: OpenAI's.
        body: OpenAI's body.
        answer: OpenAI's answer.
        openai: Whether failures are told as OpenAI's API does.
    """

    verb: str
    path: str
    rpc: str
    asked: Any = None
    answered: Any = None
    body: Mapping[str, Any] | None = None
    answer: Mapping[str, Any] | None = None
    openai: bool = False


OPERATIONS = (
    Operation(
        "post",
        "/v1/execute",
        "Execute",
        execution_pb2.ExecuteRequest,
        execution_pb2.ExecuteResponse,
    ),
    Operation(
        "post", "/v1/route", "Route", execution_pb2.RouteRequest, execution_pb2.RouteResponse
    ),
    Operation(
        "post",
        "/v1/integrations/test",
        "TestIntegration",
        execution_pb2.TestIntegrationRequest,
        execution_pb2.TestIntegrationResponse,
    ),
    Operation(
        "get",
        "/v1/integrations",
        "ListIntegrations",
        execution_pb2.ListIntegrationsRequest,
        execution_pb2.ListIntegrationsResponse,
    ),
    Operation(
        "get",
        "/v1/models",
        "ListModels",
        execution_pb2.ListModelsRequest,
        answer=openai_shapes.MODELS,
        openai=True,
    ),
    Operation("get", "/v1/models/{model}", "ListModels", answer=openai_shapes.MODEL, openai=True),
    Operation(
        "post",
        "/v1/embeddings",
        "Embed",
        body=openai_shapes.EMBEDDINGS_REQUEST,
        answer=openai_shapes.EMBEDDINGS,
        openai=True,
    ),
    Operation(
        "post",
        "/v1/chat/completions",
        "Chat",
        body=openai_shapes.CHAT_REQUEST,
        answer=openai_shapes.COMPLETION,
        openai=True,
    ),
)


@functools.cache
def openapi() -> dict[str, Any]:
    """The document, in version 3.1."""
    schemas = Schemas()
    schemas.components["Failure"] = _FAILURE
    schemas.components["OpenAIError"] = openai_shapes.ERROR
    paths: dict[str, Any] = {
        "/health": {"get": _health()},
    }
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.verb] = _described(operation, schemas)
    schemas.of(execution_pb2.ListModelsResponse)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "atmosphere-grpc",
            "version": version("atmosphere-grpc"),
            "description": comments()["atmosphere.v1.Execution"],
        },
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _described(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = list(_HEADERS)
    described: dict[str, Any] = {
        "operationId": f"{operation.verb}_{operation.path.strip('/').replace('/', '_')}".replace(
            "{", ""
        ).replace("}", ""),
        "summary": comments()[f"atmosphere.v1.Execution.{operation.rpc}"],
        "parameters": parameters,
    }
    if "{model}" in operation.path:
        parameters.append(
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        )
    if operation.verb == "get" and operation.asked is not None:
        parameters += query_parameters(operation.asked)
    if operation.verb == "post":
        body = operation.body or schemas.of(operation.asked, asked=True)
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    answer = operation.answer or schemas.of(operation.answered)
    content: dict[str, Any] = {JSON: {"schema": answer}}
    if operation.rpc == "Chat":
        content["text/event-stream"] = {"schema": {"type": "string"}}
    described["responses"] = {
        "200": {"description": "The answer.", "content": content},
        **_failures("OpenAIError" if operation.openai else "Failure"),
    }
    return described


def _failures(shape: str) -> dict[str, Any]:
    """What can go wrong with a call; what is no call at all is told in one shape everywhere."""
    own, plain = ({"$ref": f"#/components/schemas/{name}"} for name in (shape, "Failure"))
    schemas = {key: {"anyOf": [own, plain]} for key in _BOTH} | dict.fromkeys(_NO_CALL, plain)
    names = {status: code.name for code, status in HTTP_STATUS.items()}
    return {
        str(status): {
            "description": names.get(status, "See docs/http.md."),
            "content": {JSON: {"schema": schemas.get(status, own)}},
        }
        for status in sorted({*names, *_OWN_STATUSES})
    }


def _health() -> dict[str, Any]:
    def status(value: str, meaning: str) -> dict[str, Any]:
        schema = {
            "type": "object",
            "properties": {"status": {"const": value}},
            "required": ["status"],
        }
        return {"description": meaning, "content": {JSON: {"schema": schema}}}

    return {
        "operationId": "health",
        "summary": "Whether at least one integration is usable, and this server stays.",
        "security": [],
        "responses": {
            "200": status("SERVING", "It is."),
            "503": status("NOT_SERVING", "It is not."),
        },
    }
