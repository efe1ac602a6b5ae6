"""A call as the body of an OpenAI-shaped request, for each dialect that has that shape."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, assert_never

import msgspec

from atmosphere_grpc.backends.parameters import Dialect, Draft, Parameter
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

#: Fields of the body that this service writes itself; `extra` must not name them.
OWN_CHAT_FIELDS = frozenset(
    "frequency_penalty logprobs max_tokens messages model n presence_penalty response_format seed "
    "stop stream stream_options temperature tool_choice tools top_k top_logprobs top_p".split()
)
OWN_EMBED_FIELDS = frozenset("dimensions encoding_format input model".split())

#: Puts `extra` into a draft, as its dialect wants it.
AddExtra = Callable[[Draft, ChatCall | EmbedCall], None]


def add_as_it_is(draft: Draft, call: ChatCall | EmbedCall) -> None:
    """Puts `extra` into a draft field by field: what a server of the OpenAI dialect makes of it."""
    draft.body.update(call.extra)


def chat_body(
    dialect: Dialect, model: str, call: ChatCall, add_extra: AddExtra = add_as_it_is
) -> bytes:
    """The JSON of `POST …/chat/completions`, always as a stream.

    Backends stop generating only when a streaming connection closes.

    Raises:
        Failure: A parameter that the dialect does not honour, or a wrong `extra`.
    """
    draft = Draft(dialect, {"model": model, "messages": [], "stream": True})
    if dialect is Dialect.OPENAI:  # the others would leave it out, or break on what it brings
        draft.set("stream_options", {"include_usage": True})
    check_messages(draft, call)
    draft.body["messages"] = [_message(message) for message in call.messages]
    if call.session_id:
        draft.allows(Parameter.SESSION_ID, "session_id")
    put_sampling(draft, call)
    put_tools(draft, call)
    _put_response_format(draft, call)
    check_own_fields(draft, call, OWN_CHAT_FIELDS)
    add_extra(draft, call)
    draft.check()
    return msgspec.json.encode(draft.body)


def embed_body(
    dialect: Dialect, model: str, call: EmbedCall, add_extra: AddExtra = add_as_it_is
) -> bytes:
    """The JSON of `POST …/embeddings`.

    Raises:
        Failure: A parameter that the dialect does not honour, or a wrong `extra`.
    """
    draft = Draft(dialect, {"model": model, "input": call.input, "encoding_format": "float"})
    if call.dimensions is not None:
        draft.put(Parameter.DIMENSIONS, call.dimensions, "dimensions")
    check_own_fields(draft, call, OWN_EMBED_FIELDS)
    add_extra(draft, call)
    draft.check()
    return msgspec.json.encode(draft.body)


def check_own_fields(draft: Draft, call: ChatCall | EmbedCall, own: frozenset[str]) -> None:
    """Notes names in `extra` of what the request has typed fields for."""
    for name in sorted(own & call.extra.keys()):
        draft.reject(
            f"{call.extra_path}.{name}", "is set by the server; use its typed field, if any"
        )


def check_messages(draft: Draft, call: ChatCall) -> None:
    """Notes what the messages hold that the dialect has no place for."""
    for i, message in enumerate(call.messages):
        if message.name:
            draft.allows(Parameter.NAME, f"{call.path_of(i)}.name")
        for j, part in enumerate(message.parts):
            if isinstance(part, Image):
                by_value = bool(part.data) or part.url.startswith("data:")
                parameter = Parameter.IMAGE_DATA if by_value else Parameter.IMAGE_URL
                draft.allows(parameter, call.path_of(i, j))


def put_sampling(draft: Draft, call: ChatCall) -> None:
    """Puts what the call says of sampling into a draft."""
    paths = {path.rpartition(".")[2]: path for path in call.sampling_fields}
    for parameter, value in _sampling(call.sampling).items():
        if value is not None:
            draft.put(parameter, value, paths.get(parameter.value, f"sampling.{parameter.value}"))


def put_tools(draft: Draft, call: ChatCall) -> None:
    """Puts what the model may call, and whether it must, into a draft."""
    without = call.tool_choice is ToolMode.NONE and not draft.sends(Parameter.TOOL_CHOICE_NONE)
    if call.tools and not without:
        for i, tool in enumerate(call.tools):
            if tool.strict:
                draft.allows(Parameter.TOOL_STRICT, f"tools[{i}].strict")
        states = draft.sends(Parameter.TOOL_STRICT)
        tools = [_tool(tool, states_strict=states) for tool in call.tools]
        draft.put(Parameter.TOOLS, tools, "tools")
    match call.tool_choice:
        case None:
            pass
        case ToolMode() as mode:
            parameter = Parameter[f"TOOL_CHOICE_{mode.name}"]
            draft.put(parameter, mode.value, "tool_choice")
        case NamedTool(name):
            named = {"type": "function", "function": {"name": name}}
            draft.put(Parameter.TOOL_CHOICE_NAME, named, "tool_choice")
        case other:
            assert_never(other)


def _put_response_format(draft: Draft, call: ChatCall) -> None:
    match call.response_format:
        case None:
            pass
        case JsonObjectFormat():
            draft.put(Parameter.JSON_OBJECT, {"type": "json_object"}, "response_format")
        case JsonSchemaFormat(name, schema, strict):
            described = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
            draft.put(Parameter.JSON_SCHEMA, described, "response_format")
            if strict is not None:
                draft.put(Parameter.STRICT, strict, "response_format.json_schema.strict")
        case other:
            assert_never(other)


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


def _sampling(sampling: Sampling) -> dict[Parameter, Any]:
    return {
        Parameter.TEMPERATURE: sampling.temperature,
        Parameter.TOP_P: sampling.top_p,
        Parameter.PRESENCE_PENALTY: sampling.presence_penalty,
        Parameter.FREQUENCY_PENALTY: sampling.frequency_penalty,
        Parameter.MAX_TOKENS: sampling.max_tokens,
        Parameter.TOP_K: sampling.top_k,
        Parameter.SEED: sampling.seed,
        Parameter.STOP: list(sampling.stop) or None,
        Parameter.LOGPROBS: sampling.logprobs,
        Parameter.TOP_LOGPROBS: sampling.top_logprobs,
    }


def _tool(tool: Tool, *, states_strict: bool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if states_strict and tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}
