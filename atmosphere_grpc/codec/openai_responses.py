"""Answers of the contract as those of OpenAI's API.

Beside what OpenAI's have, each says in `atmosphere` where it came from.
"""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from atmosphere_grpc.codec.messages_json import encode_json
from atmosphere_grpc.v1 import chat_pb2, execution_pb2

#: OpenAI has no name for a reason of the backend's own.
_FINISH = {
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    chat_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
    chat_pb2.FINISH_REASON_OTHER: "stop",
}


class Chunks:
    """The pieces of a streamed answer, as `chat.completion.chunk`.

    Args:
        include_usage: Whether the last one is to say what it cost.
    """

    def __init__(self, *, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._started = chat_pb2.Started()

    def of(self, event: chat_pb2.ChatResponse) -> Iterator[dict[str, Any]]:
        """The pieces that an event is told by."""
        match event.WhichOneof("event"):
            case "started":
                self._started = event.started
                yield self._chunk([_choice({"role": "assistant", "content": ""})])
            case "delta":
                yield self._chunk([_choice(_delta(event.delta), _logprobs(event.delta.logprobs))])
            case "completed":
                completed = event.completed
                finish = _FINISH[completed.finish_reason]
                yield {
                    **self._chunk([{**_choice({}), "finish_reason": finish}]),
                    "atmosphere": _facts(self._started, completed),
                }
                if self._include_usage:
                    yield {**self._chunk([]), "usage": _usage(completed.usage)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        top = {**_top(self._started, "chat.completion.chunk"), "choices": choices}
        return {**top, "usage": None} if self._include_usage else top


def openai_completion(events: Sequence[chat_pb2.ChatResponse]) -> dict[str, Any]:
    """A whole answer, as `chat.completion`, of its events."""
    started = next(event.started for event in events if event.HasField("started"))
    completed = next(event.completed for event in events if event.HasField("completed"))
    deltas = [event.delta for event in events if event.HasField("delta")]
    content = "".join(delta.content for delta in deltas)
    reasoning = "".join(delta.reasoning for delta in deltas)
    calls = _tool_calls(deltas)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content if content or not calls else None,
        "refusal": None,
    }
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": _FINISH[completed.finish_reason],
        "logprobs": _logprobs([item for delta in deltas for item in delta.logprobs]),
    }
    return {
        **_top(started, "chat.completion"),
        "choices": [choice],
        "usage": _usage(completed.usage),
        "atmosphere": _facts(started, completed),
    }


def openai_embeddings(response: execution_pb2.EmbedResponse, *, as_base64: bool) -> dict[str, Any]:
    """Vectors, as a `list` of `embedding`; as base64 they are little-endian floats of 32 bits."""
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": _base64(item.values) if as_base64 else list(item.values),
        }
        for i, item in enumerate(response.embeddings)
    ]
    usage = response.usage
    return {
        "object": "list",
        "data": data,
        "model": response.model,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "total_tokens": usage.total_tokens or usage.prompt_tokens,
        },
        "atmosphere": {
            "integration_id": response.integration_id,
            "attempts": [encode_json(item) for item in response.attempts],
            "usage_source": _source(usage),
        },
    }


def openai_models(response: execution_pb2.ListModelsResponse) -> dict[str, Any]:
    """Models as OpenAI's `list` and as the contract's, in one; of several of a name, the first."""
    by_id: dict[str, execution_pb2.Model] = {}
    for model in response.models:
        by_id.setdefault(model.id, model)
    return {
        "object": "list",
        "data": [openai_model(model) for model in by_id.values()],
        **encode_json(response),
    }


def openai_model(model: execution_pb2.Model) -> dict[str, Any]:
    """A model, as OpenAI's `model`; nobody says when it was made."""
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": model.owned_by or model.integration_id,
    }


def _top(started: chat_pb2.Started, kind: str) -> dict[str, Any]:
    return {
        "id": started.id,
        "object": kind,
        "created": started.created.seconds,
        "model": started.model,
    }


def _choice(delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _delta(delta: chat_pb2.Delta) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if delta.content:
        told["content"] = delta.content
    if delta.reasoning:
        told["reasoning_content"] = delta.reasoning
    if delta.tool_calls:
        told["tool_calls"] = [_piece(piece) for piece in delta.tool_calls]
    return told


def _piece(piece: chat_pb2.ToolCallDelta) -> dict[str, Any]:
    function = {"arguments": piece.arguments_json_fragment}
    if not piece.id:
        return {"index": piece.index, "function": function}
    named = {"name": piece.name, **function}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": named}


def _tool_calls(deltas: Iterable[chat_pb2.Delta]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        first = {
            "id": piece.id,
            "type": "function",
            "function": {"name": piece.name, "arguments": ""},
        }
        call = calls.setdefault(piece.index, first)
        call["function"]["arguments"] += piece.arguments_json_fragment
    return [call for _, call in sorted(calls.items())]


def _logprobs(tokens: Sequence[chat_pb2.TokenLogprob]) -> dict[str, Any] | None:
    if not tokens:
        return None
    content = [
        {**_token(token), "top_logprobs": [_token(other) for other in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(token: chat_pb2.TokenLogprob | chat_pb2.TokenLogprob.Alternative) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": list(token.token_bytes) or None,
    }


def _usage(usage: chat_pb2.Usage) -> dict[str, Any] | None:
    if usage.source == chat_pb2.USAGE_SOURCE_MISSING:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _facts(started: chat_pb2.Started, completed: chat_pb2.Completed) -> dict[str, Any]:
    """What OpenAI's API has no place for."""
    whole = encode_json(completed)
    return {
        "integration_id": started.integration_id,
        "route": encode_json(started.route),
        **{
            name: whole[name]
            for name in ("attempts", "sources", "time_to_first_token_ms", "latency_ms")
        },
        "usage_source": _source(completed.usage),
    }


def _source(usage: chat_pb2.Usage) -> str:
    """Whether usage was counted or estimated: OpenAI's has numbers only."""
    return chat_pb2.UsageSource.Name(usage.source)


def _base64(values: Iterable[float]) -> str:
    floats = array.array("f", values)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()
