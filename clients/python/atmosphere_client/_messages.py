"""Conversations, tools and formats from plain Python values.

A dictionary may have the shape of our messages or that of OpenAI's. A key that is
not known is an error that names it: what a caller writes is sent or rejected, never
dropped. Whether the *values* make sense is for the server to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from atmosphere_grpc.v1 import chat_pb2

MessageLike: TypeAlias = Mapping[str, Any] | chat_pb2.Message
Messages: TypeAlias = str | MessageLike | Sequence[MessageLike]
ToolLike: TypeAlias = Mapping[str, Any] | chat_pb2.Tool
ToolChoiceLike: TypeAlias = str | Mapping[str, Any] | chat_pb2.ToolChoice
ResponseFormatLike: TypeAlias = str | Mapping[str, Any] | chat_pb2.ResponseFormat

_MODES = {
    "auto": chat_pb2.ToolChoice.MODE_AUTO,
    "none": chat_pb2.ToolChoice.MODE_NONE,
    "required": chat_pb2.ToolChoice.MODE_REQUIRED,
}


def messages(value: Messages) -> list[chat_pb2.Message]:
    """Returns a conversation.

    Args:
        value: A string (what the user says), a message, or a sequence of messages. A
            message is a `chat_pb2.Message` or a dictionary with `role`, `content` (a
            string, or a list of parts) and, as needed, `name`, `tool_calls`,
            `tool_call_id`.

    Raises:
        TypeError: A value is of the wrong type; the message names it.
        ValueError: A key is not known; the message names it.
    """
    if isinstance(value, str):
        return [chat_pb2.Message(role="user", content=value)]
    if isinstance(value, Mapping | chat_pb2.Message):
        value = [value]
    return [_message(item, f"messages[{i}]") for i, item in enumerate(value)]


def tools(value: Sequence[ToolLike]) -> list[chat_pb2.Tool]:
    """Returns tools.

    Args:
        value: Each a `chat_pb2.Tool` or a dictionary with `name`, `description` and
            `parameters` (a JSON Schema), also in OpenAI's ``{"type": "function",
            "function": {…}}``.
    """
    return [_tool(item, f"tools[{i}]") for i, item in enumerate(value)]


def tool_choice(value: ToolChoiceLike) -> chat_pb2.ToolChoice:
    """Returns a tool choice.

    Args:
        value: ``"auto"``, ``"none"``, ``"required"``, or the one tool to call as
            ``{"name": …}``.
    """
    if isinstance(value, chat_pb2.ToolChoice):
        return value
    if isinstance(value, str):
        if value not in _MODES:
            raise ValueError(
                f"tool_choice: {value!r} is not one of {', '.join(_MODES)};"
                ' name a tool as {"name": …}'
            )
        return chat_pb2.ToolChoice(mode=_MODES[value])
    fields = _known(_flat(value, "tool_choice"), "tool_choice", "name")
    return chat_pb2.ToolChoice(name=_text(fields, "name", "tool_choice"))


def response_format(value: ResponseFormatLike) -> chat_pb2.ResponseFormat:
    """Returns a response format.

    Args:
        value: ``"text"``, ``"json_object"``, a JSON Schema as a dictionary, or OpenAI's
            ``{"type": "json_schema", "json_schema": {"name", "schema", "strict"}}``.
    """
    path = "response_format"
    if isinstance(value, chat_pb2.ResponseFormat):
        return value
    kind = value if isinstance(value, str) else _mapping(value, path).get("type")
    if kind in ("text", "json_object"):
        if not isinstance(value, str):
            _known(dict(value), path, "type")
        if kind == "text":
            return chat_pb2.ResponseFormat(text=chat_pb2.ResponseFormat.Text())
        return chat_pb2.ResponseFormat(json_object=chat_pb2.ResponseFormat.JsonObject())
    if isinstance(value, str):
        raise ValueError(f"{path}: {value!r} is neither 'text' nor 'json_object'")
    if kind != "json_schema":
        schema = chat_pb2.ResponseFormat.JsonSchema(name="response", schema_json=_json(value, path))
        return chat_pb2.ResponseFormat(json_schema=schema)
    _known(dict(value), path, "type", "json_schema")
    path = f"{path}.json_schema"
    fields = _known(_mapping(value.get("json_schema"), path), path, "name", "schema", "strict")
    schema = chat_pb2.ResponseFormat.JsonSchema(
        name=_text(fields, "name", path) or "response",
        schema_json=_json(fields.get("schema"), f"{path}.schema"),
    )
    if (strict := _strict(fields, path)) is not None:
        schema.strict = strict
    return chat_pb2.ResponseFormat(json_schema=schema)


def _message(value: MessageLike, path: str) -> chat_pb2.Message:
    if isinstance(value, chat_pb2.Message):
        return value
    fields = _known(
        _mapping(value, path),
        path,
        *("role", "content", "parts", "name", "tool_calls", "tool_call_id", "reasoning"),
    )
    result = chat_pb2.Message(
        role=_text(fields, "role", path),
        name=_text(fields, "name", path),
        tool_call_id=_text(fields, "tool_call_id", path),
        reasoning=_text(fields, "reasoning", path),
    )
    content, parts = fields.get("content"), fields.get("parts")
    if isinstance(content, str):
        result.content = content
    elif content is not None:
        if parts is not None:
            raise ValueError(f"{path}: give the parts once, in content or in parts")
        result.parts.extend(_parts(content, f"{path}.content"))
    if parts is not None:
        result.parts.extend(_parts(parts, f"{path}.parts"))
    calls = _sequence(fields.get("tool_calls") or (), f"{path}.tool_calls")
    result.tool_calls.extend(
        _tool_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(calls)
    )
    return result


def _parts(value: object, path: str) -> list[chat_pb2.ContentPart]:
    return [_part(part, f"{path}[{i}]") for i, part in enumerate(_sequence(value, path))]


def _part(value: object, path: str) -> chat_pb2.ContentPart:
    if isinstance(value, chat_pb2.ContentPart):
        return value
    if isinstance(value, str):
        return chat_pb2.ContentPart(text=value)
    fields = _known(_mapping(value, path), path, "type", "text", "image", "image_url")
    kinds = [kind for kind in ("text", "image", "image_url") if kind in fields]
    if len(kinds) != 1 or fields.get("type", kinds[0]) != kinds[0]:
        raise ValueError(f"{path}: expected either text or image (or OpenAI's image_url)")
    if kinds == ["text"]:
        return chat_pb2.ContentPart(text=_text(fields, "text", path))
    return chat_pb2.ContentPart(image=_image(fields[kinds[0]], f"{path}.{kinds[0]}"))


def _image(value: object, path: str) -> chat_pb2.Image:
    if isinstance(value, chat_pb2.Image):
        return value
    if isinstance(value, str):
        return chat_pb2.Image(url=value)
    fields = _known(_mapping(value, path), path, "url", "data", "media_type")
    image = chat_pb2.Image(media_type=_text(fields, "media_type", path))
    if ("url" in fields) == ("data" in fields):
        raise ValueError(f"{path}: expected either url or data")
    if "url" in fields:
        image.url = _text(fields, "url", path)
    elif isinstance(fields["data"], bytes):
        image.data = fields["data"]
    else:
        raise TypeError(f"{path}.data: expected bytes, got {type(fields['data']).__name__}")
    return image


def _tool_call(value: object, path: str) -> chat_pb2.ToolCall:
    if isinstance(value, chat_pb2.ToolCall):
        return value
    fields = _known(_flat(value, path), path, "id", "name", "arguments", "arguments_json")
    return chat_pb2.ToolCall(
        id=_text(fields, "id", path),
        name=_text(fields, "name", path),
        arguments_json=_either_json(fields, "arguments", path),
    )


def _tool(value: object, path: str) -> chat_pb2.Tool:
    if isinstance(value, chat_pb2.Tool):
        return value
    fields = _known(
        _flat(value, path), path, "name", "description", "parameters", "parameters_json", "strict"
    )
    return chat_pb2.Tool(
        name=_text(fields, "name", path),
        description=_text(fields, "description", path),
        parameters_json=_either_json(fields, "parameters", path),
        strict=_strict(fields, path),
    )


def _strict(fields: Mapping[str, Any], path: str) -> bool | None:
    strict = fields.get("strict")
    if strict is None or isinstance(strict, bool):
        return strict
    raise TypeError(f"{path}.strict: expected a bool, got {type(strict).__name__}")


def _flat(value: object, path: str) -> dict[str, Any]:
    """Lifts OpenAI's ``{"type": "function", "function": {…}}`` to our flat shape."""
    fields = _mapping(value, path)
    if "function" not in fields:
        return fields
    if fields.pop("type", "function") != "function":
        raise ValueError(f"{path}.type: only 'function' is known")
    inner = _mapping(fields.pop("function"), f"{path}.function")
    return {**fields, **inner}


def _either_json(fields: Mapping[str, Any], name: str, path: str) -> str:
    """Returns the JSON text under a name, given as a value or, in ``…_json``, as text."""
    plain, encoded = fields.get(name), fields.get(f"{name}_json")
    if plain is not None and encoded is not None:
        raise ValueError(f"{path}: give either {name} or {name}_json")
    if plain is None:
        return _text(fields, f"{name}_json", path)
    return _json(plain, f"{path}.{name}")


def _json(value: object, path: str) -> str:
    """Returns JSON text; a string is taken to be that already."""
    if isinstance(value, str):
        return value
    fields = _mapping(value, path)
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from None


def _known(fields: dict[str, Any], path: str, *names: str) -> dict[str, Any]:
    for key in fields:
        if key not in names:
            raise ValueError(f"{path}.{key}: not known; known are {', '.join(names)}")
    return fields


def _mapping(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{path}: expected a dictionary, got {type(value).__name__}")
    return dict(value)


def _sequence(value: object, path: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"{path}: expected a list, got {type(value).__name__}")
    return value


def _text(fields: Mapping[str, Any], name: str, path: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{path}.{name}: expected a string, got {type(value).__name__}")
    return value
