"""A call as the body of an OpenAI-dialect request."""

from __future__ import annotations

import base64
from typing import Any, assert_never

import msgspec

from atmosphere_grpc.domain import (
    ChatCall,
    EmbedCall,
    Image,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Sampling,
    Tool,
    ToolMode,
)
from atmosphere_grpc.errors import Failure, Reason, Violation

#: Fields of the body that this service writes itself; `extra` must not name them.
OWN_CHAT_FIELDS = frozenset(
    "frequency_penalty logprobs max_tokens messages model n presence_penalty response_format seed "
    "stop stream stream_options temperature tool_choice tools top_k top_logprobs top_p".split()
)
OWN_EMBED_FIELDS = frozenset("dimensions encoding_format input model".split())


def chat_body(model: str, call: ChatCall) -> bytes:
    """The JSON of `POST /chat/completions`, always as a stream.

    Backends stop generating only when a streaming connection closes.

    Raises:
        Failure: A parameter that the dialect has no word for.
    """
    if call.session_id:
        raise Failure(
            Reason.UNSUPPORTED_PARAMETER,
            "session_id: a server of the OpenAI dialect keeps no sessions – send the whole "
            "conversation in messages",
            violations=[Violation("session_id", "not supported by this integration")],
        )
    _reject_own_fields(call, OWN_CHAT_FIELDS)
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in call.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body.update(_sampling(call.sampling))
    if call.tools:
        body["tools"] = [_tool(tool) for tool in call.tools]
    match call.tool_choice:
        case None:
            pass
        case ToolMode() as mode:
            body["tool_choice"] = mode.value
        case NamedTool(name):
            body["tool_choice"] = {"type": "function", "function": {"name": name}}
        case other:
            assert_never(other)
    match call.response_format:
        case None:
            pass
        case JsonObjectFormat():
            body["response_format"] = {"type": "json_object"}
        case JsonSchemaFormat(name, schema, strict):
            described: dict[str, Any] = {"name": name, "schema": schema}
            if strict is not None:
                described["strict"] = strict
            body["response_format"] = {"type": "json_schema", "json_schema": described}
        case other_format:
            assert_never(other_format)
    body.update(call.extra)
    return msgspec.json.encode(body)


def embed_body(model: str, call: EmbedCall) -> bytes:
    """The JSON of `POST /embeddings`.

    Raises:
        Failure: `extra` names a field that the request has itself.
    """
    _reject_own_fields(call, OWN_EMBED_FIELDS)
    body: dict[str, Any] = {"model": model, "input": call.input, "encoding_format": "float"}
    if call.dimensions is not None:
        body["dimensions"] = call.dimensions
    return msgspec.json.encode({**body, **call.extra})


def _reject_own_fields(call: ChatCall | EmbedCall, own: frozenset[str]) -> None:
    if names := sorted(own & call.extra.keys()):
        raise Failure.invalid(
            *(
                Violation(
                    f"{call.extra_path}.{name}",
                    "is set by the server; use its typed field, if any",
                )
                for name in names
            )
        )


def _message(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role}
    if message.parts:
        out["content"] = [_part(part) for part in message.parts]
    elif message.content or not message.tool_calls:
        out["content"] = message.content
    else:
        out["content"] = None
    if message.name:
        out["name"] = message.name
    if message.tool_calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        out["tool_call_id"] = message.tool_call_id
    return out


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = part.url
    if part.data:
        url = f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _sampling(sampling: Sampling) -> dict[str, Any]:
    fields = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "max_tokens": sampling.max_tokens,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "logprobs": sampling.logprobs,
        "top_logprobs": sampling.top_logprobs,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    return {"type": "function", "function": function}
