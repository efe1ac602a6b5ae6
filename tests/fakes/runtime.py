"""LlamaFarm's Universal Runtime.

Derived from its source (`runtimes/universal/routers`), not observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.fakes import chunks
from tests.fakes.openai import OpenAI
from tests.fakes.reply import Reply
from tests.fakes.request import Request

#: It never counts what it generated, and reports on whole answers only.
USAGE = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}


class Runtime:
    """Answers chat, embeddings, the loaded models and health. Derived from source, not observed.

    Args:
        tokens: What each chat is answered with.
        loaded: The models in memory: what it lists, though it serves others too. Its own names
            for them, such as `language:org/model:ctxauto:quantdefault`.
        context: How many characters a prompt may have.
        thinking: What a whole answer says it thought, in a field at its top.
    """

    def __init__(
        self,
        tokens: Sequence[str] = ("Hello", " world"),
        *,
        loaded: Sequence[str] = (),
        context: int = 10_000,
        thinking: str = "",
    ) -> None:
        self.loaded = tuple(loaded)
        self._context = context
        self._thinking = thinking
        self._openai = OpenAI(tokens, role_repeated=True, reports_usage=False)

    def __call__(self, request: Request) -> Reply:
        """The answer to a request."""
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                return self.chat(request.json)
            case "POST", "/v1/embeddings":
                return self._openai.embed(request.json)
            case "GET", "/v1/models":
                owner = "transformers-runtime"
                cards = [
                    {
                        "id": name,
                        "object": "model",
                        "created": 1,
                        "owned_by": owner,
                        "type": "language",
                    }
                    for name in self.loaded
                ]
                return Reply.json({"object": "list", "data": cards})
            case "GET", "/health":
                device = {"platform": "Linux", "device": "cpu"}
                return Reply.json(
                    {"status": "healthy", "device": device, "loaded_models": list(self.loaded)}
                )
        return Reply.json({"detail": "Not Found"}, 404)

    def chat(self, body: Any) -> Reply:
        """The answer to `/chat/completions`; `model` is required, as a framework's 422 says."""
        if "model" not in body:
            missing = {"type": "missing", "loc": ["body", "model"], "msg": "Field required"}
            return Reply.json({"detail": [missing]}, 422)
        prompt = sum(len(message.get("content") or "") for message in body["messages"])
        if prompt > self._context and body.get("auto_truncate") is False:
            detail = {"error": "context_length_exceeded", "message": "Prompt exceeds context limit"}
            return Reply.json({"detail": detail}, 400)
        if body.get("stream"):
            return self._openai.chat(body)
        answer = chunks.completion({"content": "".join(self._openai.tokens)}, usage=USAGE)
        if self._thinking:
            answer["thinking"] = {"content": self._thinking, "tokens": None}
        return Reply.json(answer)
