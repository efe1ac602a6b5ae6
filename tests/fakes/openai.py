"""The OpenAI dialect as llama.cpp's server speaks it, with the shapes of its recorded answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.fakes import chunks
from tests.fakes.reply import Reply
from tests.fakes.request import Request


class OpenAI:
    """Answers chat, embeddings, models and health.

    Args:
        tokens: What each chat is answered with.
        models: The ids that it lists.
        dimensions: The length of its vectors.
        role_repeated: Whether each delta says the role again, as Ollama's do.
        reports_usage: Whether a stream ends with the tokens used when that is asked for.
    """

    def __init__(
        self,
        tokens: Sequence[str] = ("Hello", " world"),
        *,
        models: Sequence[str] = (chunks.MODEL,),
        dimensions: int = 4,
        role_repeated: bool = False,
        reports_usage: bool = True,
    ) -> None:
        self.tokens = tuple(tokens)
        self.models = tuple(models)
        self.dimensions = dimensions
        self._role_repeated = role_repeated
        self._reports_usage = reports_usage

    def __call__(self, request: Request) -> Reply:
        """The answer to a request."""
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                return self.chat(request.json)
            case "POST", "/v1/embeddings":
                return self.embed(request.json)
            case "GET", "/v1/models":
                return self.list_models()
            case "GET", "/health" | "/v1/health":
                return Reply.json({"status": "ok"})
        error = {"message": "File Not Found", "type": "not_found_error", "code": 404}
        return Reply.json({"error": error}, 404)

    def chat(self, body: Any) -> Reply:
        """The answer to `/chat/completions`."""
        if not body.get("stream"):
            return Reply.json(chunks.completion({"content": "".join(self.tokens)}))
        asked = (body.get("stream_options") or {}).get("include_usage", False)
        events = chunks.answer_events(
            self.tokens,
            usage=chunks.USAGE if asked and self._reports_usage else None,
            role_repeated=self._role_repeated,
        )
        return Reply.stream(*events)

    def embed(self, body: Any) -> Reply:
        """The answer to `/embeddings`; `dimensions` is ignored, as llama.cpp does."""
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = [chunks.vector(text, self.dimensions) for text in texts]
        return Reply.json(chunks.embeddings(vectors))

    def list_models(self) -> Reply:
        """The answer to `/models`."""
        meta = {"n_ctx": 4096, "size": 97_000_000}
        cards = [
            {"id": name, "object": "model", "owned_by": "llamacpp", "created": 1, "meta": meta}
            for name in self.models
        ]
        return Reply.json({"object": "list", "data": cards})
