"""The JSON that Ollama's own API sends, as far as it is read (`api/types.go` in its sources)."""

from __future__ import annotations

from typing import Any

import msgspec

from atmosphere_grpc.backends.openai_schema import TokenInfo


class Function(msgspec.Struct):
    """`message.tool_calls[].function`; its arguments are an object, not text."""

    name: str
    arguments: dict[str, Any] | None = None


class Call(msgspec.Struct):
    """`message.tool_calls[]`; it is whole, and older servers give it no id."""

    function: Function
    id: str | None = None


class Message(msgspec.Struct):
    """`message`."""

    content: str | None = None
    thinking: str | None = None
    tool_calls: list[Call] | None = None


class Line(msgspec.Struct):
    """A line of the answer to `/api/chat`."""

    model: str | None = None
    message: Message | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    logprobs: list[TokenInfo] | None = None
    error: Any = None


class EmbedAnswer(msgspec.Struct):
    """The answer to `/api/embed`."""

    embeddings: list[list[float]]
    model: str | None = None
    prompt_eval_count: int | None = None


class Details(msgspec.Struct):
    """`models[].details` of `/api/tags`."""

    family: str | None = None
    parameter_size: str | None = None
    quantization_level: str | None = None


class Tag(msgspec.Struct):
    """`models[]` of `/api/tags`: a model on disk.

    Its capabilities come with 0.30; `remote_host` is set of one that is not on disk at all.
    """

    name: str
    remote_host: str | None = None
    capabilities: list[str] | None = None
    size: int | None = None
    digest: str | None = None
    details: Details | None = None


class Tags(msgspec.Struct):
    """The answer to `/api/tags`; null for none."""

    models: list[Tag] | None


class Resident(msgspec.Struct):
    """`models[]` of `/api/ps`: a model in memory. Older servers do not tell its context."""

    name: str
    context_length: int | None = None


class Residents(msgspec.Struct):
    """The answer to `/api/ps`; null for none."""

    models: list[Resident] | None


class Shown(msgspec.Struct):
    """The answer to `/api/show`; older servers do not tell what a model can do."""

    capabilities: list[str] | None = None


line_decoder = msgspec.json.Decoder(Line)
embed_decoder = msgspec.json.Decoder(EmbedAnswer)
tags_decoder = msgspec.json.Decoder(Tags)
residents_decoder = msgspec.json.Decoder(Residents)
shown_decoder = msgspec.json.Decoder(Shown)
