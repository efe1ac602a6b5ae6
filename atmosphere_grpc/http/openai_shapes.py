"""JSON Schemas of what is of OpenAI's API: no message of the contract has these shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atmosphere_grpc.v1 import chat_pb2

Schema = Mapping[str, Any]


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(items: Schema) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _nullable(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], **more}


_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}
_FUNCTION_CALL = _object(
    "id type function",
    id=_TEXT,
    type={"const": "function"},
    function=_object("name arguments", name=_TEXT, arguments=_TEXT),
)
_PART = {
    "anyOf": [
        _object("type text", type={"const": "text"}, text={"type": "string", "minLength": 1}),
        _object(
            "type image_url",
            type={"const": "image_url"},
            image_url=_object("url", url={"type": "string", "pattern": "^(https?://|data:)"}),
        ),
    ]
}
_MESSAGE = _object(
    "role",
    role={"enum": ["system", "developer", "user", "assistant", "tool"]},
    content={"anyOf": [_TEXT, _list(_PART), {"type": "null"}]},
    name=_nullable("string"),
    tool_calls=_list(_FUNCTION_CALL),
    tool_call_id=_nullable("string"),
)
CHAT_REQUEST: Schema = {
    **_object(
        "messages",
        model=_nullable(
            "string",
            description="A model of GET /v1/models. Unset: the first usable integration's default. "
            "`auto`: the router decides, by what was said last.",
        ),
        messages={**_list(_MESSAGE), "minItems": 1},
        stream=_nullable("boolean"),
        stream_options=_object(include_usage=_nullable("boolean")),
        temperature=_nullable("number", minimum=0, maximum=2),
        top_p=_nullable("number", exclusiveMinimum=0, maximum=1),
        presence_penalty=_nullable("number", minimum=-2, maximum=2),
        frequency_penalty=_nullable("number", minimum=-2, maximum=2),
        max_tokens=_nullable("integer", minimum=1),
        max_completion_tokens=_nullable("integer", minimum=1),
        top_k=_nullable("integer", minimum=1),
        seed=_nullable("integer"),
        stop={"anyOf": [_TEXT, {**_list(_TEXT), "maxItems": 16}, {"type": "null"}]},
        logprobs=_nullable("boolean"),
        top_logprobs=_nullable("integer", minimum=0, maximum=20),
        n={"const": 1},
        tools=_list(
            _object(
                "type function",
                type={"const": "function"},
                function=_object(
                    "name",
                    name={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                    description=_TEXT,
                    parameters={"type": "object"},
                    strict=_nullable("boolean"),
                ),
            )
        ),
        tool_choice={
            "anyOf": [
                {"enum": ["auto", "none", "required"]},
                _object(
                    "type function",
                    type={"const": "function"},
                    function=_object("name", name=_TEXT),
                ),
            ]
        },
        response_format={
            "anyOf": [
                _object("type", type={"enum": ["text", "json_object"]}),
                _object(
                    "type json_schema",
                    type={"const": "json_schema"},
                    json_schema=_object(
                        "name schema",
                        name=_TEXT,
                        schema={"type": "object"},
                        strict=_nullable("boolean"),
                    ),
                ),
            ]
        },
        integration_id=_nullable("string", description="The integration to use."),
        session_id=_nullable("string", description="A conversation that the backend keeps."),
    ),
    "description": "As OpenAI's API has it. Any other field goes to the backend as its own, where "
    "that knows it, and is refused where it does not.",
}
EMBEDDINGS_REQUEST: Schema = {
    **_object(
        "input",
        input={
            "anyOf": [
                {"type": "string", "minLength": 1},
                {**_list({"type": "string", "minLength": 1}), "minItems": 1, "maxItems": 2048},
            ]
        },
        model=_nullable("string"),
        encoding_format={"enum": ["float", "base64"]},
        dimensions=_nullable("integer", minimum=1),
        integration_id=_nullable("string"),
    ),
    "additionalProperties": False,
}
_USAGE = {
    **_object(
        "prompt_tokens total_tokens",
        prompt_tokens=_WHOLE,
        completion_tokens=_WHOLE,
        total_tokens=_WHOLE,
    ),
    "type": ["object", "null"],
}
#: Where an answer came from: what OpenAI's API has no place for.
_FACTS: Schema = _object(
    "integration_id attempts usage_source",
    integration_id=_TEXT,
    attempts=_list({"$ref": "#/components/schemas/Attempt"}),
    usage_source={
        "enum": chat_pb2.UsageSource.keys(),
        "description": "Where the numbers of `usage` come from.",
    },
)
_CHAT_FACTS: Schema = {
    **_FACTS,
    "properties": {
        **_FACTS["properties"],
        "route": {"$ref": "#/components/schemas/RouteDecision"},
        "sources": _list({"$ref": "#/components/schemas/Source"}),
        "time_to_first_token_ms": {"type": "number"},
        "latency_ms": {"type": "number"},
    },
}
COMPLETION: Schema = _object(
    "id object created model choices usage atmosphere",
    id=_TEXT,
    object={"const": "chat.completion"},
    created=_WHOLE,
    model=_TEXT,
    choices=_list(
        _object(
            "index message finish_reason",
            index=_WHOLE,
            message=_object(
                "role content",
                role={"const": "assistant"},
                content=_nullable("string"),
                tool_calls=_list(_FUNCTION_CALL),
                reasoning_content=_TEXT,
            ),
            finish_reason={"enum": ["stop", "length", "tool_calls", "content_filter"]},
        )
    ),
    usage=_USAGE,
    atmosphere=_CHAT_FACTS,
)
EMBEDDINGS: Schema = _object(
    "object data model usage atmosphere",
    object={"const": "list"},
    data=_list(
        _object(
            "object index embedding",
            object={"const": "embedding"},
            index=_WHOLE,
            embedding={"anyOf": [_list({"type": "number"}), _TEXT]},
        )
    ),
    model=_TEXT,
    usage=_USAGE,
    atmosphere=_FACTS,
)
MODEL: Schema = _object(
    "id object created owned_by",
    id=_TEXT,
    object={"const": "model"},
    created=_WHOLE,
    owned_by=_TEXT,
)
MODELS: Schema = _object(
    "object data models next_page_token unavailable",
    object={"const": "list"},
    data=_list(MODEL),
    models=_list({"$ref": "#/components/schemas/Model"}),
    next_page_token=_TEXT,
    unavailable=_list({"$ref": "#/components/schemas/IntegrationError"}),
)
ERROR: Schema = _object(
    "error",
    error=_object(
        "message type param code reason request_id",
        message=_TEXT,
        type=_TEXT,
        param=_nullable("string"),
        code=_TEXT,
        reason=_TEXT,
        request_id=_TEXT,
        metadata={"type": "object", "additionalProperties": {"type": "string"}},
    ),
)
