"""LlamaFarm's Universal Runtime.

Derived from its source (`runtimes/universal/routers`), not observed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.fakes import chunks
from tests.fakes.fitted import Fitted
from tests.fakes.openai import OpenAI
from tests.fakes.reply import Reply
from tests.fakes.request import Request

#: It never counts what it generated, and reports on whole answers only.
USAGE = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
#: How many tokens an answer may have where the request does not say.
MAX_TOKENS = 512


class Runtime:
    """Answers chat, embeddings, models, what is fitted, health. Derived from source, not observed.

    Args:
        tokens: What each chat is answered with.
        loaded: The models in memory: what it lists, though it serves others too. Its own names
            for them, such as `language:org/model:ctxauto:quantdefault`.
        context: How many characters a prompt may have.
        thinking: What a whole answer says it thought, in a field at its top.
        classifiers: The labels of each classifier.
        detectors: How each anomaly detector detects.
    """

    def __init__(
        self,
        tokens: Sequence[str] = ("Hello", " world"),
        *,
        loaded: Sequence[str] = (),
        context: int = 10_000,
        thinking: str = "",
        classifiers: Mapping[str, Sequence[str]] | None = None,
        detectors: Mapping[str, str] | None = None,
    ) -> None:
        self.fitted = Fitted("/v1", classifiers=classifiers, detectors=detectors, old=True)
        self.loaded = tuple(loaded)
        self._context = context
        self._thinking = thinking
        self._tokens = tuple(tokens)

    def __call__(self, request: Request) -> Reply:
        """The answer to a request."""
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                return self.chat(request.json)
            case "POST", "/v1/embeddings":
                return OpenAI().embed(request.json)
            case _, "/v1/chat/completions" | "/v1/embeddings":
                return Reply.json({"detail": "Method Not Allowed"}, 405)
            case "GET", "/v1/models":
                about = {"object": "model", "created": 1, "owned_by": "transformers-runtime"}
                cards = [{"id": name, **about, "type": "language"} for name in self.loaded]
                return Reply.json({"object": "list", "data": cards})
            case "GET", "/health":
                health = {"status": "healthy", "device": {"platform": "Linux", "device": "cpu"}}
                process = {"timestamp": "2026-01-01T00:00:00", "pid": 7}
                return Reply.json({**health, "loaded_models": list(self.loaded), **process})
        return self.fitted(request) or Reply.json({"detail": "Not Found"}, 404)

    def chat(self, body: Any) -> Reply:
        """The answer to `/chat/completions`; `model` is required, as a framework's 422 says."""
        if "model" not in body:
            missing = {"type": "missing", "loc": ["body", "model"], "msg": "Field required"}
            return Reply.json({"detail": [missing]}, 422)
        prompt = sum(len(message.get("content") or "") for message in body["messages"])
        room: dict[str, Any] = {"total_context": self._context, "prompt_tokens": prompt}
        if prompt > self._context and body.get("auto_truncate") is False:
            message = "Prompt exceeds context limit"
            error = {"error": "context_length_exceeded", "message": message, "context_usage": room}
            return Reply.json({"detail": error}, 400)
        tokens = self._tokens[: body.get("max_tokens") or MAX_TOKENS]
        if body.get("stream"):
            return Reply.stream(*_answer_events(tokens))
        room["truncated"] = prompt > self._context
        answer = chunks.completion({"content": "".join(tokens)}, usage=USAGE, x_context_usage=room)
        if self._thinking:
            answer["thinking"] = {"content": self._thinking, "tokens": None}
        return Reply.json(answer)


def _answer_events(tokens: Sequence[str]) -> Iterator[bytes]:
    """The events of an answer, each with the role; it calls a cut one stopped too."""
    for token in ("", *tokens):
        yield chunks.event(chunks.chunk({"role": "assistant", "content": token}))
    yield chunks.event(chunks.chunk(finish="stop"))
    yield chunks.DONE
