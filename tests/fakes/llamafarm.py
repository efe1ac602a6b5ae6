"""LlamaFarm's server.

The error bodies, the 404s and the plain JSON that answers a request for a stream
are as observed on a server of August 2025; all else is derived from its source
(`server/api/routers`), not observed.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

from tests.fakes import chunks
from tests.fakes.openai import OpenAI
from tests.fakes.reply import Reply
from tests.fakes.request import Request

PROJECT = re.compile(r"/v1/projects/([^/]+)/([^/]+)/(chat/completions|models)")
#: What it says instead of an error when nothing was generated yet.
APOLOGY = "I'm sorry, I couldn't generate a response. Please try again."


def apology() -> Reply:
    """An error hidden in a stream that succeeds. Derived from source, not observed."""
    return Reply.stream(chunks.event(chunks.text(APOLOGY, finish="stop")), chunks.DONE)


def failed_midway(*tokens: str) -> Reply:
    """An error after some text: `[DONE]`, but no finish_reason. Derived from source."""
    return Reply.stream(*chunks.answer_events(tokens, finish=None, usage=None))


class LlamaFarm:
    """Answers a project's chat and models, embeddings, disk cache, health, and its web app.

    Attributes:
        conversations: The messages of each session: a request without `X-No-Session` has one.

    Args:
        tokens: What each chat is answered with.
        projects: Those that exist, each `namespace/name`.
        models: The models of each project; the first is the default.
        status: What `/health` says, always with HTTP 200.
        streams: Whether `stream` is honoured; False as in August 2025.
        root_chat: Whether there is a chat outside projects, as older clients expect.
        runtime_up: Whether the runtime that makes the vectors is there.
    """

    def __init__(
        self,
        tokens: Sequence[str] = ("Hello", " world"),
        *,
        projects: Sequence[str] = ("default/fake",),
        models: Sequence[str] = (chunks.MODEL,),
        status: str = "healthy",
        streams: bool = True,
        root_chat: bool = False,
        runtime_up: bool = True,
    ) -> None:
        self.conversations: dict[str, list[Any]] = {}
        self.status = status
        self._projects = tuple(projects)
        self._models = tuple(models)
        self._streams = streams
        self._root_chat = root_chat
        self._runtime_up = runtime_up
        self._openai = OpenAI(tokens, reports_usage=False)

    def __call__(self, request: Request) -> Reply:
        """The answer to a request."""
        if project := PROJECT.fullmatch(request.path):
            namespace, name, what = project.groups()
            if f"{namespace}/{name}" not in self._projects:
                message = f"Project {namespace}/{name} not found"
                error = {"error": "ProjectNotFound", "message": message, "details": None}
                return Reply.json(error, 404)
            return self.chat(request) if what.startswith("chat") else self._project_models()
        match request.method, request.path:
            case "POST", "/v1/chat/completions" if self._root_chat:
                return self.chat(request)
            case "POST", "/v1/nlp/embeddings":
                if not self._runtime_up:
                    detail = "Universal Runtime not available at http://127.0.0.1:11540."
                    return Reply.json({"detail": detail}, 503)
                return self._openai.embed(request.json)
            case "GET", "/v1/models":
                cards = [{"id": name, "name": name, "size": 97_000_000} for name in self._models]
                return Reply.json({"data": cards})
            case "GET", "/health":
                return Reply.json({"status": self.status, "components": [], "seeds": []})
            case "GET", "/health/liveness":
                return Reply.json({"status": "alive"})
            case "GET", path if not path.startswith("/v1/"):
                return Reply.html()
        return Reply.json({"detail": "Not Found"}, 404)

    def chat(self, request: Request) -> Reply:
        """The answer to a project's chat."""
        body = request.json
        if not any(message.get("role") == "user" for message in body.get("messages", ())):
            return Reply.json({"detail": "No user message provided"}, 400)
        headers: dict[str, str] = {}
        if request.headers.get("x-no-session", "").lower() != "true":
            key = request.headers.get("x-session-id") or str(uuid.uuid4())
            self.conversations.setdefault(key, []).extend(body["messages"])
            headers["X-Session-ID"] = key
        tokens = self._openai.tokens
        if body.get("stream") and self._streams:
            return Reply.stream(*chunks.answer_events(tokens, usage=None), headers=headers)
        answer = chunks.completion({"content": "".join(tokens)}, usage=None)
        return Reply.json(answer, headers=headers)

    def _project_models(self) -> Reply:
        rows = [
            {
                "name": name,
                "model": name,
                "provider": "universal",
                "base_url": None,
                "default": i == 0,
            }
            for i, name in enumerate(self._models)
        ]
        return Reply.json({"total": len(rows), "models": rows})
