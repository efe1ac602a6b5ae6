"""Ollama, native and OpenAI-compatible.

Derived from its documentation (`docs/api.md`) and issues, not observed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fakes import chunks
from tests.fakes.openai import OpenAI
from tests.fakes.reply import Reply
from tests.fakes.request import Request
from tests.fakes.steps import ColdModel, Load, Step

NDJSON = "application/x-ndjson"
CREATED = "2026-01-01T00:00:00.000000000Z"
#: What the last line of a native answer adds; durations are in nanoseconds.
FINAL = {
    "total_duration": 5_000_000,
    "load_duration": 1_000_000,
    "prompt_eval_count": 7,
    "prompt_eval_duration": 1_000_000,
    "eval_count": 3,
    "eval_duration": 3_000_000,
}


def line(
    message: Mapping[str, Any] | None = None, *, done: str | None = None, **fields: Any
) -> bytes:
    """A line of a native stream. Derived from documentation, not observed.

    Args:
        message: Such as `{"content": …}`, `{"thinking": …}` or `{"tool_calls": …}`.
        done: `done_reason` of the last line; None for any other.
        fields: Set at the top, also in place of what is there.
    """
    whole = {"role": "assistant", "content": "", **(message or {})}
    top: dict[str, Any] = {"model": chunks.MODEL, "created_at": CREATED, "message": whole}
    top["done"] = done is not None
    if done is not None:
        top |= {"done_reason": done, **FINAL}
    return json.dumps({**top, **fields}).encode() + b"\n"


def error_line(text: str) -> bytes:
    """An error inside a native stream. Derived from documentation, not observed."""
    return json.dumps({"error": text}).encode() + b"\n"


def tool_call_message(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A native message with a tool call: its arguments are an object, and it has no id."""
    return {"tool_calls": [{"function": {"name": name, "arguments": dict(arguments)}}]}


def lines(*parts: bytes | Step) -> Reply:
    """A native stream."""
    return Reply.stream(*parts, content_type=NDJSON)


class Ollama:
    """Answers the native API and `/v1`. Derived from documentation, not observed.

    Args:
        tokens: What each chat is answered with.
        models: Those on disk; what a request names must be among them.
        dimensions: The length of its vectors.
        cold: The model's load, which chats and embeddings wait for, without headers.
    """

    def __init__(
        self,
        tokens: Sequence[str] = ("Hello", " world"),
        *,
        models: Sequence[str] = (chunks.MODEL,),
        dimensions: int = 4,
        cold: ColdModel | None = None,
    ) -> None:
        self.models = tuple(models)
        self._cold = cold
        self._openai = OpenAI(tokens, dimensions=dimensions, role_repeated=True)

    def __call__(self, request: Request) -> Reply:
        """The answer to a request."""
        match request.method, request.path:
            case "GET" | "HEAD", "/":
                return Reply.body("" if request.method == "HEAD" else "Ollama is running")
            case "GET", "/api/version":
                return Reply.json({"version": "0.20.4"})
            case "GET", "/api/tags":
                return Reply.json({"models": [_card(name) for name in self.models]})
            case "GET", "/api/ps":
                resident = self.models[:1] if self._cold is None or self._cold.loaded else ()
                live = {"expires_at": CREATED, "size_vram": 0, "context_length": 4096}
                return Reply.json({"models": [{**_card(name), **live} for name in resident]})
            case "GET", "/v1/models":
                cards = [
                    {"id": name, "object": "model", "owned_by": "library"} for name in self.models
                ]
                return Reply.json({"object": "list", "data": cards or None})
            case "POST", "/api/chat" | "/api/embed" | "/v1/chat/completions" | "/v1/embeddings":
                return self._run(request.path, request.json)
        return Reply.body("404 page not found", 404)

    def _run(self, path: str, body: Any) -> Reply:
        model = body.get("model", "")
        if model not in self.models:
            text = f"model '{model}' not found"
            if path.startswith("/api/"):
                return Reply.json({"error": text}, 404)
            error = {"message": text, "type": "not_found_error", "param": None, "code": None}
            return Reply.json({"error": error}, 404)
        match path:
            case "/api/chat":
                reply = self._chat(body)
            case "/api/embed":
                texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
                vectors = [chunks.vector(text, self._openai.dimensions) for text in texts]
                numbers = {"total_duration": 1, "load_duration": 1, "prompt_eval_count": len(texts)}
                reply = Reply.json({"model": model, "embeddings": vectors, **numbers})
            case "/v1/chat/completions":
                reply = self._openai.chat(body)
            case _:
                reply = self._openai.embed(body)
        return reply if self._cold is None else reply.after(Load(self._cold))

    def _chat(self, body: Any) -> Reply:
        tokens = self._openai.tokens
        if body.get("stream", True):  # unlike OpenAI's, a stream unless told otherwise
            return lines(*(line({"content": token}) for token in tokens), line(done="stop"))
        whole = line({"content": "".join(tokens)}, done="stop")
        return Reply.body(whole, content_type="application/json; charset=utf-8")


def _card(name: str) -> dict[str, Any]:
    details = {"format": "gguf", "family": "llama", "parameter_size": "135M"}
    return {"name": name, "model": name, "size": 97_000_000, "digest": "0" * 64, "details": details}
