"""The JSON and the events that servers of the OpenAI dialect answer with, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: The event that ends a stream.
DONE = b"data: [DONE]\n\n"
#: What a whole answer reports.
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
ID = "chatcmpl-fake"
MODEL = "fake-model"


def chunk(
    delta: Mapping[str, Any] | None = None, finish: str | None = None, **fields: Any
) -> dict[str, Any]:
    """A `chat.completion.chunk`; `fields` are set at its top, also in place of what is there.

    Args:
        delta: `choices[0].delta`; None for an empty one.
        finish: `choices[0].finish_reason`.
        fields: Such as `usage`, `choices` or `model`.
    """
    choice = {"index": 0, "delta": dict(delta or {}), "finish_reason": finish}
    top = {"id": ID, "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return {**top, "choices": [choice], **fields}


def text(content: str, **fields: Any) -> dict[str, Any]:
    """A chunk with a piece of the answer."""
    return chunk({"content": content}, **fields)


def tool_call(
    arguments: str | None = None,
    *,
    index: int | None = None,
    call_id: str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """A chunk with a piece of a tool call; what is None is left out."""
    function = {"name": name, "arguments": arguments}
    call: dict[str, Any] = {"index": index, "id": call_id, "type": "function" if call_id else None}
    call["function"] = {key: value for key, value in function.items() if value is not None}
    return chunk({"tool_calls": [{k: v for k, v in call.items() if v is not None}]})


def usage(numbers: Mapping[str, Any] | None = USAGE) -> dict[str, Any]:
    """The chunk without choices that reports the tokens used."""
    return chunk(choices=[], usage=numbers)


def event(data: Any, *, name: str = "", eol: str = "\n", space: bool = True) -> bytes:
    """A server-sent event: of a string as it is (one `data` line each), else of its JSON.

    Args:
        data: What it holds.
        name: Its type; none by default.
        eol: How its lines end.
        space: Whether a space follows the colons.
    """
    content = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    colon = ": " if space else ":"
    lines = [f"event{colon}{name}"] if name else []
    lines += [f"data{colon}{line}" for line in content.split("\n")]
    return (eol.join([*lines, "", ""])).encode()


def answer_events(
    tokens: Sequence[str] = ("Hello", " world"),
    *,
    finish: str | None = "stop",
    usage: Mapping[str, Any] | None = USAGE,
    done: bool = True,
    role_repeated: bool = False,
) -> Iterator[bytes]:
    """The events of a whole answer, one a token; what is None or False is left out."""
    role = {"role": "assistant"}
    yield event(chunk({**role, "content": None}))
    for token in tokens:
        yield event(chunk({**(role if role_repeated else {}), "content": token}))
    if finish is not None:
        yield event(chunk(finish=finish))
    if usage is not None:
        yield event(chunk(choices=[], usage=usage))
    if done:
        yield DONE


def completion(
    message: Mapping[str, Any], finish: str | None = "stop", **fields: Any
) -> dict[str, Any]:
    """A complete `chat.completion`; `fields` as of `chunk`."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    top = {"id": ID, "object": "chat.completion", "created": 1, "model": MODEL}
    return {**top, "choices": [choice], "usage": USAGE, **fields}


def vector(text: str, dimensions: int) -> list[float]:
    """A vector that differs with the text, of length 1."""
    raw = [float(len(text)), *(float(text.count(chr(97 + i))) for i in range(dimensions - 1))]
    norm = sum(x * x for x in raw) ** 0.5 or 1.0
    return [x / norm for x in raw]


def embeddings(vectors: Sequence[Sequence[float]], **fields: Any) -> dict[str, Any]:
    """The answer to `/embeddings`; `fields` as of `chunk`."""
    data = [
        {"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)
    ]
    tokens = {"prompt_tokens": len(vectors), "total_tokens": len(vectors)}
    return {"object": "list", "data": data, "model": MODEL, "usage": tokens, **fields}
