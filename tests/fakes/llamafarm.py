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
NAMESPACE = re.compile(r"/v1/projects/([^/]+)")
#: What it says instead of an error when nothing was generated yet.
APOLOGY = (
    "I notice my previous response wasn't very helpful. Let me try to provide a better answer. "
    "Could you provide more specific details about what you're looking for? For example, if you're "
    "asking about a particular feature or need help with something specific, please let me know "
    "and I'll do my best to assist you properly."
)
#: What a project's models hold beside their names, and nobody must be shown.
MODEL_KEY = "sk-of-a-project"


def apology(finish: str | None = "stop") -> Reply:
    """An error hidden in a stream that succeeds; without `finish` nothing was generated at all.

    Derived from source, not observed.
    """
    content = {"role": "assistant", "content": APOLOGY}
    return Reply.stream(chunks.event(chunks.chunk(content, finish=finish)), chunks.DONE)


def cut_and_begun_anew(*tokens: str) -> Reply:
    """An answer that was cut by its length, after which it asks the model once more.

    Derived from source, not observed.
    """
    events = [*chunks.answer_events(tokens, finish="length", usage=None, done=False)]
    return Reply.stream(*events, *events, *chunks.answer_events(["enough"], usage=None))


def failed_midway(*tokens: str) -> Reply:
    """An error after some text: `[DONE]`, but no finish_reason. Derived from source."""
    return Reply.stream(*chunks.answer_events(tokens, finish=None, usage=None))


class LlamaFarm:
    """Answers a project's chat and models, embeddings, disk cache, health, and its web app.

    Attributes:
        conversations: The messages of each session: a request without `X-No-Session` has one.

    Args:
        tokens: What each chat is answered with.
        projects: Those that exist, each `namespace/name`; to be changed as `projects`.
        models: The models of each project.
        default: The one that a project calls its default.
        status: What `/health` says, always with HTTP 200.
        streams: Whether `stream` is honoured; False as in August 2025.
        root_chat: Whether there is a chat outside projects, as older clients expect.
        runtime_up: Whether the runtime that makes the vectors is there.
        old: Whether it is as in August 2025: without `/health`.
        ill: The components that are unhealthy.
    """

    def __init__(
        self,
        tokens: Sequence[str] = ("Hello", " world"),
        *,
        projects: Sequence[str] = ("default/fake",),
        models: Sequence[str] = (chunks.MODEL,),
        default: str = chunks.MODEL,
        status: str = "healthy",
        streams: bool = True,
        root_chat: bool = False,
        runtime_up: bool = True,
        old: bool = False,
        ill: Sequence[str] = (),
    ) -> None:
        self.conversations: dict[str, list[Any]] = {}
        self.status = status
        self.projects = list(projects)
        self._old = old
        self._ill = tuple(ill)
        self._models = tuple(models)
        self._default = default
        self._streams = streams
        self._root_chat = root_chat
        self._runtime_up = runtime_up
        self._openai = OpenAI(tokens, reports_usage=False)

    def __call__(self, request: Request) -> Reply:
        """The answer to a request."""
        if project := PROJECT.fullmatch(request.path):
            namespace, name, what = project.groups()
            if f"{namespace}/{name}" not in self.projects:
                message = f"Project {namespace}/{name} not found"
                error = {"error": "ProjectNotFound", "message": message, "details": None}
                return Reply.json(error, 404)
            return self.chat(request) if what.startswith("chat") else self._project_models()
        if request.method == "GET" and (found := NAMESPACE.fullmatch(request.path)):
            return self._list_projects(found[1])
        match request.method, request.path:
            case "POST", "/v1/chat/completions" if self._root_chat:
                return self.chat(request)
            case "GET", "/v1/chat/completions" if self._root_chat:
                return Reply.json({"detail": "Method Not Allowed"}, 405)
            case "GET", "/info":
                return Reply.json({"version": "0.0.1", "data_directory": "/root/.llamafarm"})
            case "POST", "/v1/nlp/embeddings":
                if not self._runtime_up:
                    detail = "Universal Runtime not available at http://127.0.0.1:11540."
                    return Reply.json({"detail": detail}, 503)
                return self._openai.embed(request.json)
            case "GET", "/v1/models":
                cards = [{"id": name, "name": name, "size": 97_000_000} for name in self._models]
                return Reply.json({"data": cards})
            case "GET", "/health" if self._old:
                return Reply.json({"detail": "Not Found"}, 404)
            case "GET", "/health":
                names = ("server", "storage", "ollama", "rag-service")
                components = [
                    {"name": name, "status": "unhealthy" if name in self._ill else "healthy"}
                    for name in names
                ]
                return Reply.json({"status": self.status, "components": components, "seeds": []})
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

    def _list_projects(self, namespace: str) -> Reply:
        rows = [
            {"namespace": namespace, "name": name, "config": {"api_key": MODEL_KEY}}
            for space, _, name in (item.partition("/") for item in self.projects)
            if space == namespace
        ]
        return Reply.json({"total": len(rows), "projects": rows})

    def _project_models(self) -> Reply:
        rows = [
            {
                "name": name,
                "model": name,
                "provider": "universal",
                "base_url": None,
                "api_key": MODEL_KEY,
                "default": name == self._default,
            }
            for name in self._models
        ]
        return Reply.json({"total": len(rows), "models": rows})
