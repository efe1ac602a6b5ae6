"""Requests of OpenAI's API as those of the contract.

Every field is sent or refused, none is dropped: one that OpenAI's API or the contract does not know
goes on in `extra`, as a backend's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from atmosphere_grpc.codec.conversation import MAX_INT32
from atmosphere_grpc.codec.fields import Faults, kind
from atmosphere_grpc.codec.messages_json import add_json
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

T = TypeVar("T")

#: The model that stands for the router's choice.
AUTO = "auto"
MAX_INT64 = 2**63 - 1
_MODES = {
    "auto": chat_pb2.ToolChoice.MODE_AUTO,
    "none": chat_pb2.ToolChoice.MODE_NONE,
    "required": chat_pb2.ToolChoice.MODE_REQUIRED,
}
#: What an assistant's message has that came from an answer, and what of it says nothing.
_OF_ANSWERS: Mapping[str, Any] = {
    "refusal": None,
    "annotations": [],
    "audio": None,
    "function_call": None,
}
#: What a model thought is not read again, by no backend: it may come back, and is left out.
_THOUGHTS = ("reasoning_content", "reasoning")
PARTS = '{"type": "text", "text": …} or {"type": "image_url", "image_url": {"url": …}}'


@dataclass(frozen=True, slots=True)
class OpenAIChat:
    """A request for a chat.

    Attributes:
        request: What is asked, by the contract.
        stream: Whether the answer is wanted piece by piece.
        include_usage: Whether the last piece is to say what it cost.
        routed: Whether the router decides where it goes.
    """

    request: chat_pb2.ChatRequest
    stream: bool
    include_usage: bool
    routed: bool


@dataclass(frozen=True, slots=True)
class OpenAIEmbeddings:
    """A request for vectors, and whether they are wanted as base64 of their floats."""

    request: execution_pb2.EmbedRequest
    base64: bool


class _Fields:
    """The fields of an object, taken one after the other; null is as good as not said."""

    def __init__(self, document: Mapping[str, Any], path: str, faults: Faults) -> None:
        self._left = {name: value for name, value in document.items() if value is not None}
        self._path = path
        self.faults = faults

    def where(self, name: str) -> str:
        return f"{self._path}{name[:64]}"

    def any(self, name: str) -> Any:
        return self._left.pop(name, None)

    def text(self, name: str) -> str:
        return self._of(name, str, "a text", "")

    def object(self, name: str) -> dict[str, Any] | None:
        return self._of(name, dict, "an object", None)

    def items(self, name: str) -> list[Any]:
        items: list[Any] = self._of(name, list, "a list", [])
        return items

    def truth(self, name: str) -> bool | None:
        return self._of(name, bool, "true or false", None)

    def number(self, name: str) -> float | None:
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
            self.wrong(name, "a number", value)
            return None
        return float(value)

    def whole(self, name: str, most: int = MAX_INT32) -> int | None:
        value = self.any(name)
        if value is None:
            return None
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or abs(value) > most or value != int(value):
            self.wrong(name, f"a whole number of at most {most}", value)
            return None
        return int(value)

    def texts(self, name: str) -> list[str]:
        """A text, or a list of them."""
        value = self.any(name)
        if value is None:
            return []
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.wrong(name, "a text or a list of texts", value)
            return []
        return value

    def only(self, name: str, *allowed: Any, remedy: str = "leave it out") -> None:
        """That a field, where it is given, says what happens anyway."""
        value = self.any(name)
        if value is not None and not any(value is item or value == item for item in allowed):
            self.faults.add(self.where(name), f"is not supported; {remedy}")

    def wrong(self, name: str, wanted: str, value: Any) -> None:
        self.faults.add(self.where(name), f"must be {wanted}, not {kind(value)[:80]}")

    def rest(self) -> dict[str, Any]:
        """What nobody took."""
        return self._left

    def end(self) -> None:
        """That nothing is left over."""
        for name in self._left:
            self.faults.add(self.where(name), "is unknown; leave it out")

    def _of(self, name: str, wanted: type, words: str, default: T) -> Any | T:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, wanted):
            self.wrong(name, words, value)
            return default
        return value


def decode_openai_chat(document: Mapping[str, Any]) -> OpenAIChat:
    """A request of `POST /v1/chat/completions`.

    Raises:
        Failure: INVALID_FIELD, with every field that has a wrong shape.
    """
    faults = Faults()
    fields = _Fields(document, "", faults)
    model = fields.text("model")
    integration_id = fields.text("integration_id")
    stream = bool(fields.truth("stream"))
    request = chat_pb2.ChatRequest(
        model="" if model == AUTO else model,
        messages=[
            _message(item, f"messages[{i}]", faults)
            for i, item in enumerate(fields.items("messages"))
        ],
        sampling=_sampling(fields),
        tools=[_tool(item, f"tools[{i}]", faults) for i, item in enumerate(fields.items("tools"))],
        tool_choice=_tool_choice(fields),
        response_format=_response_format(fields),
        integration_id=integration_id,
        session_id=fields.text("session_id"),
        # Whoever waits for a whole answer can be told nothing meanwhile.
        stream=chat_pb2.StreamOptions(no_progress=not stream),
    )
    fields.only("n", 1, remedy="there is one answer; send as many requests as you want answers")
    include_usage = _include_usage(fields, stream=stream)
    add_json(request.extra, fields.rest())
    faults.check()
    routed = model == AUTO and not integration_id
    return OpenAIChat(request, stream, include_usage, routed)


def decode_openai_embeddings(document: Mapping[str, Any]) -> OpenAIEmbeddings:
    """A request of `POST /v1/embeddings`.

    Raises:
        Failure: INVALID_FIELD, with every field that has a wrong shape or is unknown.
    """
    faults = Faults()
    fields = _Fields(document, "", faults)
    model = fields.text("model")
    form = fields.text("encoding_format") or "float"
    if form not in ("float", "base64"):
        faults.add("encoding_format", f"must be float or base64, not {form[:40]!r}")
    request = execution_pb2.EmbedRequest(
        model="" if model == AUTO else model,
        input=_inputs(fields),
        integration_id=fields.text("integration_id"),
        dimensions=fields.whole("dimensions"),
    )
    fields.end()
    faults.check()
    return OpenAIEmbeddings(request, form == "base64")


def _inputs(fields: _Fields) -> list[str]:
    value = fields.any("input")
    if isinstance(value, list) and value and not isinstance(value[0], str):
        fields.faults.add("input", "must be a text or a list of texts; tokens are not read")
        return []
    fields.rest()["input"] = value
    if value is None:
        del fields.rest()["input"]
    return fields.texts("input")


def _message(value: Any, path: str, faults: Faults) -> chat_pb2.Message:
    if not isinstance(value, dict):
        faults.add(path, f"must be an object with role and content, not {kind(value)[:80]}")
        return chat_pb2.Message()
    fields = _Fields(value, f"{path}.", faults)
    role = fields.text("role")
    message = chat_pb2.Message(
        role=role, name=fields.text("name"), tool_call_id=fields.text("tool_call_id")
    )
    content = fields.any("content")
    if isinstance(content, list):
        message.parts.extend(
            _part(item, f"{path}.content[{i}]", faults) for i, item in enumerate(content)
        )
    elif isinstance(content, str):
        message.content = content
    elif content is not None:
        fields.wrong("content", "a text or a list of parts", content)
    message.tool_calls.extend(
        _tool_call(item, f"{path}.tool_calls[{i}]", faults)
        for i, item in enumerate(fields.items("tool_calls"))
    )
    if role == "assistant":
        for name, nothing in _OF_ANSWERS.items():
            fields.only(name, nothing)
        for name in _THOUGHTS:
            fields.any(name)
    fields.end()
    return message


def _part(value: Any, path: str, faults: Faults) -> chat_pb2.ContentPart:
    match value:
        case {"type": "text", "text": str(text)} if len(value) == 2:
            return chat_pb2.ContentPart(text=text)
        case {"type": "image_url", "image_url": {"url": str(url)} as image} if len(value) == 2:
            fields = _Fields(image, f"{path}.image_url.", faults)
            fields.any("url")
            fields.only("detail", "auto", remedy="backends choose it; leave it out, or say auto")
            fields.end()
            return chat_pb2.ContentPart(image=chat_pb2.Image(url=url))
    faults.add(path, f"must be {PARTS}, and hold nothing else")
    return chat_pb2.ContentPart()


def _tool_call(value: Any, path: str, faults: Faults) -> chat_pb2.ToolCall:
    match value:
        case {
            "id": str(call_id),
            "type": "function",
            "function": {"name": str(name), "arguments": str(arguments)},
        }:
            return chat_pb2.ToolCall(id=call_id, name=name, arguments_json=arguments)
    faults.add(
        path,
        'must be {"id": …, "type": "function", "function": {"name": …, "arguments": "…"}}, with '
        "texts",
    )
    return chat_pb2.ToolCall()


def _sampling(fields: _Fields) -> chat_pb2.SamplingOptions:
    newer, older = fields.whole("max_completion_tokens"), fields.whole("max_tokens")
    if newer is not None and older is not None and newer != older:
        fields.faults.add("max_tokens", "says another than max_completion_tokens; give one of them")
    return chat_pb2.SamplingOptions(
        temperature=fields.number("temperature"),
        top_p=fields.number("top_p"),
        presence_penalty=fields.number("presence_penalty"),
        frequency_penalty=fields.number("frequency_penalty"),
        max_tokens=older if newer is None else newer,
        top_k=fields.whole("top_k"),
        seed=fields.whole("seed", MAX_INT64),
        stop=fields.texts("stop"),
        logprobs=fields.truth("logprobs"),
        top_logprobs=fields.whole("top_logprobs"),
    )


def _tool(value: Any, path: str, faults: Faults) -> chat_pb2.Tool:
    match value:
        case {"type": "function", "function": dict(function)} if len(value) == 2:
            fields = _Fields(function, f"{path}.function.", faults)
            parameters = fields.object("parameters")
            tool = chat_pb2.Tool(
                name=fields.text("name"),
                description=fields.text("description"),
                parameters_json=_json(parameters) if parameters is not None else "",
                strict=fields.truth("strict"),
            )
            fields.end()
            return tool
    faults.add(path, 'must be {"type": "function", "function": {"name": …, …}}')
    return chat_pb2.Tool()


def _tool_choice(fields: _Fields) -> chat_pb2.ToolChoice | None:
    match fields.any("tool_choice"):
        case None:
            return None
        case str(mode) if mode in _MODES:
            return chat_pb2.ToolChoice(mode=_MODES[mode])
        case {"type": "function", "function": {"name": str(name)}}:
            return chat_pb2.ToolChoice(name=name)
    fields.faults.add(
        "tool_choice",
        f'must be {", ".join(_MODES)} or {{"type": "function", "function": {{"name": …}}}}',
    )
    return None


def _response_format(fields: _Fields) -> chat_pb2.ResponseFormat | None:
    match fields.any("response_format"):
        case None:
            return None
        case {"type": "text"}:
            return chat_pb2.ResponseFormat(text=chat_pb2.ResponseFormat.Text())
        case {"type": "json_object"}:
            return chat_pb2.ResponseFormat(json_object=chat_pb2.ResponseFormat.JsonObject())
        case {"type": "json_schema", "json_schema": dict(described)}:
            path = "response_format.json_schema."
            inner = _Fields(described, path, fields.faults)
            schema = chat_pb2.ResponseFormat.JsonSchema(
                name=inner.text("name"),
                schema_json=_json(inner.object("schema") or {}),
                strict=inner.truth("strict"),
            )
            inner.end()
            return chat_pb2.ResponseFormat(json_schema=schema)
    fields.faults.add(
        "response_format",
        'must be {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", '
        '"json_schema": {"name": …, "schema": …}}',
    )
    return None


def _include_usage(fields: _Fields, *, stream: bool) -> bool:
    options = fields.object("stream_options")
    if options is None:
        return False
    if not stream:
        fields.faults.add("stream_options", "is for streams only; leave it out, or set stream")
    inner = _Fields(options, "stream_options.", fields.faults)
    wanted = bool(inner.truth("include_usage"))
    inner.only("include_obfuscation", False)
    inner.end()
    return wanted


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
