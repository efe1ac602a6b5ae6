"""Requests from Python arguments, the same for the sync and the async client."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from google.protobuf.struct_pb2 import Struct

from atmosphere_grpc.v1 import chat_pb2, execution_pb2

from . import _messages
from ._messages import MessageLike, Messages, ResponseFormatLike, ToolChoiceLike, ToolLike

__all__ = ["MessageLike", "Messages", "ResponseFormatLike", "ToolChoiceLike", "ToolLike"]

IntentRequest = TypeVar("IntentRequest", execution_pb2.ExecuteRequest, execution_pb2.RouteRequest)

# A Struct's numbers are doubles, which hold every integer up to here.
_LARGEST_INTEGER = 2**53


class Sampling(TypedDict, total=False):
    """How to sample. What is absent or None is not sent, so that the backend's default holds.

    Attributes:
        temperature: Randomness, 0 to 2; 0 is greedy.
        top_p: The probability mass kept, above 0 and at most 1.
        presence_penalty: Penalty on tokens that occurred at all, -2 to 2.
        frequency_penalty: Penalty on tokens by how often they occurred, -2 to 2.
        max_tokens: The most tokens to generate.
        top_k: Sample from the k likeliest tokens.
        seed: Makes sampling repeatable, where the backend can.
        stop: A text, or texts, that end the answer.
        logprobs: Whether to report the log probability of each token.
        top_logprobs: How many alternatives to report with each token. Needs `logprobs`.
    """

    temperature: float | None
    top_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    max_tokens: int | None
    top_k: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: bool | None
    top_logprobs: int | None


def chat(
    messages: Messages,
    *,
    model: str,
    integration: str,
    tools: Sequence[ToolLike],
    tool_choice: ToolChoiceLike | None,
    response_format: ResponseFormatLike | None,
    session_id: str,
    max_delay_ms: int,
    extra: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> chat_pb2.ChatRequest:
    """Returns the request of a chat; of `options`, it reads those of `Sampling`."""
    return chat_pb2.ChatRequest(
        model=model,
        messages=_messages.messages(messages),
        sampling=_sampling(options),
        tools=_messages.tools(tools),
        tool_choice=None if tool_choice is None else _messages.tool_choice(tool_choice),
        response_format=None
        if response_format is None
        else _messages.response_format(response_format),
        integration_id=integration,
        session_id=session_id,
        extra=_struct(extra, "extra"),
        stream=chat_pb2.StreamOptions(max_delay_ms=max_delay_ms) if max_delay_ms else None,
    )


def intent(
    kind: type[IntentRequest],
    intent: str,
    *,
    kwargs: Mapping[str, Any] | None,
    capability: str,
    integration: str,
    model: str,
    route: str,
    options: Mapping[str, Any],
) -> IntentRequest:
    """Returns the request for an intent; of `options`, it reads those of `Sampling`."""
    return kind(
        intent=intent,
        kwargs=_struct(kwargs, "kwargs"),
        capability=capability,
        integration_id=integration,
        model=model,
        sampling=_sampling(options),
        route=route,
    )


def embed(
    texts: str | Sequence[str], *, model: str, integration: str, dimensions: int | None
) -> execution_pb2.EmbedRequest:
    """Returns the request to embed one text or several."""
    return execution_pb2.EmbedRequest(
        model=model,
        input=[texts] if isinstance(texts, str) else texts,
        integration_id=integration,
        dimensions=dimensions,
    )


def _sampling(options: Mapping[str, Any]) -> chat_pb2.SamplingOptions | None:
    """Returns how to sample; None when nothing is set, since only chats may have it."""
    result = chat_pb2.SamplingOptions()
    for name in Sampling.__annotations__:
        value = options.get(name)
        if value is None:
            continue
        try:
            if name == "stop":
                result.stop.extend([value] if isinstance(value, str) else value)
            else:
                setattr(result, name, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    return result if result.ListFields() else None


def _struct(value: Mapping[str, Any] | None, path: str) -> Struct | None:
    if value is None:
        return None
    result = Struct()
    result.update(_plain(value, path))
    return result


def _plain(value: Any, path: str) -> Any:
    """Returns a value as a Struct takes it, or says why none can carry it."""
    match value:
        case None | bool() | str():
            return value
        case int():
            if abs(value) > _LARGEST_INTEGER:
                raise ValueError(f"{path}: {value} is too large to be sent exactly")
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{path}: {value} is not a JSON number")
            return value
        case Mapping():
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"{path}: the key {key!r} is not a string")
            return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
        case Sequence() if not isinstance(value, bytes):
            return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{path}: {type(value).__name__} is not a JSON value")
