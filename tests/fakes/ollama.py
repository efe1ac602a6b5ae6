"""Ollama, native and OpenAI-compatible.

Derived from its documentation (`docs/api.md`) and source (`server/routes.go`, `server/sched.go`),
not observed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
#: The context that a model is loaded with where a request does not say, in tokens.
DEFAULT_CONTEXT = 4096
#: How many characters make a token.
CHARACTERS = 4
EVERYTHING = ("completion", "tools", "vision", "thinking", "embedding")
OVERFLOW = "the input length exceeds the context length"
OVERFLOW_OF_OLD = "input length exceeds maximum context length"
BUSY = "server busy, please try again.  maximum pending requests exceeded"
#: llama.cpp's words, and those of the runner that older servers have.
NO_VISION = "image input is not supported - hint: if this is unexpected, you may need to provide"
NO_VISION_OF_OLD = "this model is missing data required for image input"


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


def tool_call_message(
    name: str, arguments: Mapping[str, Any], *, call_id: str = "", index: int | None = None
) -> dict[str, Any]:
    """A native message with a tool call: its arguments are an object.

    Args:
        name: The tool's.
        arguments: What it is called with.
        call_id: Empty for none, as older servers have it.
        index: Likewise.
    """
    function: dict[str, Any] = {"name": name, "arguments": dict(arguments)}
    if index is not None:
        function["index"] = index
    call = {"id": call_id, "function": function} if call_id else {"function": function}
    return {"tool_calls": [call]}


def lines(*parts: bytes | Step) -> Reply:
    """A native stream."""
    return Reply.stream(*parts, content_type=NDJSON)


@dataclass(frozen=True, slots=True)
class Stored:
    """A model on disk.

    Attributes:
        name: With its tag.
        capabilities: What it can do, in Ollama's words.
        context: The tokens that it was trained for; a greater context is never given.
        digest: Of its manifest; empty for one made of the name.
    """

    name: str
    capabilities: tuple[str, ...] = EVERYTHING
    context: int = 131_072
    digest: str = ""

    @property
    def card(self) -> dict[str, Any]:
        """What listings say of it."""
        details = {
            "format": "gguf",
            "family": "llama",
            "parameter_size": "135M",
            "quantization_level": "Q4_K_M",
        }
        digest = self.digest or hashlib.sha256(self.name.encode()).hexdigest()
        common = {"name": self.name, "model": self.name, "size": 97_000_000, "details": details}
        return {**common, "digest": digest}


class Ollama:
    """Answers the native API and `/v1`. Derived from documentation and source, not observed.

    Attributes:
        models: Those on disk, by name.
        resident: The context of those in memory, by name.
        reloads: How often a model that was in memory was loaded anew, since a request wanted
            another context.
        busy: Whether it has too much to do for chats and embeddings.

    Args:
        tokens: What each chat is answered with.
        models: Those on disk; what a request names must be among them. The first is in memory.
        dimensions: The length of its vectors, unless a request wants another.
        cold: The model's load, which chats and embeddings wait for, without headers.
        thoughts: What a model that can think thinks first, unless told not to.
        calls: Names and arguments of the tools called where a chat has tools.
        old: Whether it is of before 0.12.4: it cuts whatever is too long, tells neither
            capabilities nor contexts, and knows of neither log probabilities nor thinking.
    """

    def __init__(
        self,
        tokens: Sequence[str] = ("Hello", " world"),
        *,
        models: Iterable[str | Stored] = (chunks.MODEL,),
        dimensions: int = 4,
        cold: ColdModel | None = None,
        thoughts: Sequence[str] = (),
        calls: Sequence[tuple[str, Mapping[str, Any]]] = (),
        old: bool = False,
    ) -> None:
        stored = [model if isinstance(model, Stored) else Stored(model) for model in models]
        self.models = {model.name: model for model in stored}
        self.resident = {} if cold else {model.name: DEFAULT_CONTEXT for model in stored[:1]}
        self.reloads = 0
        self.busy = False
        self._cold = cold
        self._thoughts = thoughts
        self._calls = calls
        self._old = old
        self._openai = OpenAI(tokens, dimensions=dimensions, role_repeated=True)

    def __call__(self, request: Request) -> Reply:
        """The answer to a request."""
        match request.method, request.path:
            case "GET" | "HEAD", "/":
                return Reply.body("" if request.method == "HEAD" else "Ollama is running")
            case "GET", "/api/version":
                return Reply.json({"version": "0.12.3" if self._old else "0.20.4"})
            case "GET", "/api/tags":
                return Reply.json({"models": [model.card for model in self.models.values()]})
            case "GET", "/api/ps":
                return Reply.json({"models": [self._running(name) for name in self._in_memory()]})
            case "GET", "/v1/models":
                cards = [
                    {"id": name, "object": "model", "owned_by": "library"} for name in self.models
                ]
                return Reply.json({"object": "list", "data": cards or None})
            case "POST", "/api/show":
                model = self._find(request.json)
                return self._show(model) if model else _not_found(request)
            case "POST", "/api/chat" | "/api/embed" | "/v1/chat/completions" | "/v1/embeddings":
                model = self._find(request.json)
                return self._run(model, request) if model else _not_found(request)
        return Reply.body("404 page not found", 404)

    def _find(self, body: Any) -> Stored | None:
        name = body.get("model", "")
        return self.models.get(name) or self.models.get(f"{name}:latest")

    def _in_memory(self) -> dict[str, int]:
        return self.resident if self._cold is None or self._cold.loaded else {}

    def _running(self, name: str) -> dict[str, Any]:
        told = {"expires_at": CREATED, "size_vram": 0}
        if not self._old:
            told["context_length"] = self._in_memory()[name]
        return {**self.models[name].card, **told}

    def _show(self, model: Stored) -> Reply:
        told: dict[str, Any] = {
            "details": model.card["details"],
            "model_info": {"general.architecture": "llama", "llama.context_length": model.context},
        }
        if not self._old:
            told["capabilities"] = model.capabilities
        return Reply.json(told)

    def _run(self, model: Stored, request: Request) -> Reply:
        """Carries out what needs the model in memory."""
        body = request.json
        if request.path == "/api/chat" and (lacks := self._lacks(model, body)):
            return _error(400, lacks)
        if self.busy:
            return _error(503, BUSY)
        context = self._load(model, body.get("options", {}).get("num_ctx"))
        match request.path:
            case "/api/chat":
                reply = self._chat(model, body, context)
            case "/api/embed":
                reply = self._embed(model, body, context)
            case "/v1/chat/completions":
                reply = self._openai.chat(body)
            case _:
                reply = self._openai.embed(body)
        return reply if self._cold is None else reply.after(Load(self._cold))

    def _lacks(self, model: Stored, body: Any) -> str:
        """What a chat needs and the model cannot; empty for nothing."""
        name = body["model"]
        if "completion" not in model.capabilities:
            return f'"{name}" does not support chat'
        if body.get("tools") and "tools" not in model.capabilities:
            return f"registry.ollama.ai/library/{model.name} does not support tools"
        if body.get("think") and not self._old and "thinking" not in model.capabilities:
            return f'"{name}" does not support thinking'
        return ""

    def _load(self, model: Stored, num_ctx: int | None) -> int:
        """The context that a request gets; the model is loaded anew where it has another."""
        context = min(num_ctx or DEFAULT_CONTEXT, model.context)
        if self._in_memory().get(model.name, context) != context:
            self.reloads += 1
        self.resident[model.name] = context
        return context

    def _chat(self, model: Stored, body: Any, context: int) -> Reply:
        seen = body["messages"]
        if any(message.get("images") for message in seen) and "vision" not in model.capabilities:
            return _error(500, NO_VISION_OF_OLD if self._old else NO_VISION)
        if self._old or body.get("truncate", True):
            while _size(seen) > context and (kept := _without_the_first(seen)):
                seen = kept
        elif _size(seen) > context:
            return _error(400, OVERFLOW)
        parts = list(self._parts(model, body))
        limit = body.get("options", {}).get("num_predict", len(parts))
        counts = {
            "prompt_eval_count": min(_size(seen), context),
            "eval_count": min(len(parts), limit),
        }
        end = {"done": "length" if limit < len(parts) else "stop", "model": body["model"], **counts}
        if body.get("stream", True):  # unlike OpenAI's, a stream unless told otherwise
            told = (line(**part, model=body["model"]) for part in parts[:limit])
            return lines(*told, line(**end))
        whole: dict[str, Any] = {}
        for part in parts[:limit]:
            for name, value in part["message"].items():
                whole[name] = whole[name] + value if name in whole else value
        return Reply.body(line(whole, **end), content_type="application/json; charset=utf-8")

    def _parts(self, model: Stored, body: Any) -> Iterator[dict[str, Any]]:
        """Messages of an answer, one a token, each with its log probabilities where asked for."""
        if "thinking" in model.capabilities and body.get("think", True) and not self._old:
            yield from ({"message": {"thinking": thought}} for thought in self._thoughts)
        if body.get("tools") and self._calls:
            for i, (name, arguments) in enumerate(self._calls):
                call_id, index = ("", None) if self._old else (f"call_{i:08x}", i)
                message = tool_call_message(name, arguments, call_id=call_id, index=index)
                yield {"message": message}
            return
        for token in self._openai.tokens:
            part: dict[str, Any] = {"message": {"content": token}}
            if body.get("logprobs") and not self._old:
                others = [token, *(f"{token}{i}" for i in range(20))][: body.get("top_logprobs", 0)]
                top = [_logprob(other, -0.25 - i) for i, other in enumerate(others)]
                part["logprobs"] = [{**_logprob(token, -0.25), "top_logprobs": top}]
            yield part

    def _embed(self, model: Stored, body: Any, context: int) -> Reply:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        if not body.get("truncate", True) and max(map(_tokens, texts), default=0) > context:
            return _error(400, OVERFLOW_OF_OLD if self._old else OVERFLOW)
        dimensions = body.get("dimensions") or self._openai.dimensions
        vectors = [chunks.vector(text, dimensions) for text in texts]
        read = sum(min(_tokens(text), context) for text in texts)
        numbers = {"total_duration": 1, "load_duration": 1, "prompt_eval_count": read}
        return Reply.json({"model": body["model"], "embeddings": vectors, **numbers})


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS)


def _size(messages: Sequence[Any]) -> int:
    """The tokens of a prompt."""
    return sum(_tokens(message.get("content") or "") for message in messages)


def _without_the_first(messages: Sequence[Any]) -> list[Any]:
    """A conversation without its first message that can be left out; empty for none.

    The system's words and the last message always stay.
    """
    for i, message in enumerate(messages[:-1]):
        if message["role"] != "system":
            return [*messages[:i], *messages[i + 1 :]]
    return []


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _error(status: int, text: str) -> Reply:
    return Reply.json({"error": text}, status)


def _not_found(request: Request) -> Reply:
    text = f"model '{request.json.get('model', '')}' not found"
    if request.path.startswith("/api/"):
        return _error(404, text)
    error = {"message": text, "type": "not_found_error", "param": None, "code": None}
    return Reply.json({"error": error}, 404)
