"""LlamaFarm's server.

What an `old` one says, `/info` and the error of a project that is not there are as observed on a
server of August 2025; all else is derived from its source (`server/api/routers`), not observed.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.fakes import chunks
from tests.fakes.fitted import Fitted
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
#: What it says when the model was asked as often as it may be.
ENOUGH = "I've reached the maximum number of tool calls. Please try rephrasing your question."
#: How often it asks the model for one answer.
ROUNDS = 10
#: What a project's models hold beside their names, and nobody must be shown.
MODEL_KEY = "sk-of-a-project"


def apology(finish: str | None = "stop") -> Reply:
    """An error hidden in a stream that succeeds; without `finish` nothing was generated at all.

    Derived from source, not observed.
    """
    content = {"role": "assistant", "content": APOLOGY}
    return Reply.stream(chunks.event(chunks.chunk(content, finish=finish)), chunks.DONE)


def answer_events(tokens: Sequence[str], finish: str | None = "stop") -> Iterator[bytes]:
    """The events of an answer, one a token, without what is null. Derived from source."""
    for token in tokens:
        yield chunks.event(_without_nulls(chunks.text(token)))
    if finish is not None:
        yield chunks.event(_without_nulls(chunks.chunk(finish=finish)))


def cut_and_begun_anew(*tokens: str) -> Reply:
    """An answer that was cut by its length, after which it asks the model again and again.

    Derived from source, not observed.
    """
    rounds = [*answer_events(tokens, "length")] * ROUNDS
    return Reply.stream(*rounds, *answer_events([ENOUGH]), chunks.DONE)


def failed_midway(*tokens: str) -> Reply:
    """An error after some text: `[DONE]`, but no finish_reason. Derived from source."""
    return Reply.stream(*answer_events(tokens, None), chunks.DONE)


class LlamaFarm:
    """Answers chat, models, embeddings, what is fitted, disk cache, health, and its web app.

    Attributes:
        conversations: The messages of each session: a request without `X-No-Session` has one.
        projects: Those that there are now, each `namespace/name`.

    Args:
        tokens: What each chat is answered with.
        projects: Those that exist at first.
        models: The models of each project, and on disk.
        default: The one that a project calls its default; empty for none.
        status: What `/health` says, always with HTTP 200.
        root_chat: Whether there is a chat outside projects, as older clients expect.
        runtime_up: Whether the runtime that makes the vectors is there.
        old: Whether it is as in August 2025: with neither `/health`, models, embeddings nor
            streams, and with whatever model its project has.
        ill: The components that are unhealthy.
        thinking: What the model thinks: within the text of a stream, beside a whole answer.
        retrieved: What is found, told in an event of its own to who asks for it. How that is
            called and what it holds is not known.
        classifiers: The labels of each classifier of the runtime's.
        detectors: How each anomaly detector of the runtime's detects.
        loaded: Which of the latter two are in memory; None: all.
    """

    def __init__(
        self,
        tokens: Sequence[str] = ("Hello", " world"),
        *,
        projects: Sequence[str] = ("default/fake",),
        models: Sequence[str] = (chunks.MODEL,),
        default: str = chunks.MODEL,
        status: str = "healthy",
        root_chat: bool = False,
        runtime_up: bool = True,
        old: bool = False,
        ill: Sequence[str] = (),
        thinking: str = "",
        retrieved: Sequence[Mapping[str, Any]] = (),
        classifiers: Mapping[str, Sequence[str]] | None = None,
        detectors: Mapping[str, str] | None = None,
        loaded: Sequence[str] | None = None,
    ) -> None:
        self.conversations: dict[str, list[Any]] = {}
        self.status = status
        self.projects = list(projects)
        self._old = old
        self._ill = tuple(ill)
        self._models = tuple(models)
        self._default = default
        self._root_chat = root_chat
        self._runtime_up = runtime_up
        self._thinking = thinking
        self._retrieved = list(retrieved)
        self._openai = OpenAI(tokens, reports_usage=False)
        self.fitted = Fitted("/v1/ml", classifiers=classifiers, detectors=detectors, loaded=loaded)

    def __call__(self, request: Request) -> Reply:
        """The answer to a request."""
        post, path = request.method == "POST", request.path
        if found := PROJECT.fullmatch(path):
            namespace, name, what = found.groups()
            if what == "models" and self._old:
                return NOT_FOUND
            if post is not what.startswith("chat"):
                return NOT_ALLOWED
            if f"{namespace}/{name}" not in self.projects:
                return self._no_project(namespace, name)
            return self.chat(request) if post else self._project_models()
        if path == "/v1/chat/completions" and self._root_chat:
            return self.chat(request) if post else NOT_ALLOWED
        if path == "/v1/nlp/embeddings" and not self._old:
            return self._embed(request) if post else NOT_ALLOWED
        if path.startswith("/v1/ml/") and not self._old:
            if not self._runtime_up:  # as in the first version; later ones list what is on disk
                return Reply.json({"detail": RUNTIME_DOWN}, 503)
            return self.fitted(request) or NOT_FOUND
        if post:
            return NOT_FOUND
        if found := NAMESPACE.fullmatch(path):
            return self._list_projects(found[1])
        match path:
            case "/info":
                return Reply.json({"version": "0.1.0", "data_directory": "/srv/llamafarm"})
            case "/v1/models" | "/health" if self._old:
                return NOT_FOUND
            case "/v1/models":
                return self._list_files()
            case "/health":
                return self._health()
            case "/health/liveness":
                return Reply.json({"status": "alive"})
        return NOT_FOUND if path.startswith("/v1/") else Reply.html()

    def chat(self, request: Request) -> Reply:
        """The answer to a project's chat."""
        body = request.json
        if not any(message.get("role") == "user" for message in body.get("messages", ())):
            return Reply.json({"detail": "No user message provided"}, 400)
        if body.get("model", self._default) not in (*self._models, "") and not self._old:
            error = {"error": "InternalServerError", "message": "An unexpected error occurred"}
            return Reply.json({**error, "details": None}, 500)
        headers: dict[str, str] = {}
        if "x-no-session" not in request.headers:  # whatever it says
            key = request.headers.get("x-session-id") or str(uuid.uuid4())
            self.conversations.setdefault(key, []).extend(body["messages"])
            headers["X-Session-ID"] = key
        tokens = self._openai.tokens
        if body.get("stream") and not self._old:
            thought = [f"<think>{self._thinking}</think>"] if self._thinking else []
            found = self._retrieved if body.get("include_sources") else []
            told = [chunks.event({"sources": found}, name="sources")] if found else []
            events = [*told, *answer_events([*thought, *tokens]), chunks.DONE]
            return Reply.stream(*events, headers=headers)
        beside: dict[str, Any] = {}
        if self._thinking:
            beside["thinking"] = {"content": self._thinking}
        answer = chunks.completion({"content": "".join(tokens)}, usage=None, **beside)
        return Reply.json(answer if self._old else _without_nulls(answer), headers=headers)

    def _no_project(self, namespace: str, name: str) -> Reply:
        error, message = "ProjectNotFound", f"Project {namespace}/{name} not found"
        if self._old:
            error, message = "ProjectConfigError", f"Directory does not exist: /srv/{name}"
        body = {"error": error, "message": message, "details": None}
        return Reply.json(body, 422 if self._old else 404)

    def _embed(self, request: Request) -> Reply:
        if not self._runtime_up:
            return Reply.json({"detail": RUNTIME_DOWN}, 503)
        return self._openai.embed(request.json)

    def _list_files(self) -> Reply:
        cards = [
            {"id": name, "name": name, "size": 97_000_000, "path": f"/srv/{name}"}
            for name in self._models
        ]
        return Reply.json({"data": cards})

    def _health(self) -> Reply:
        components = [
            {
                "name": name,
                "status": "unhealthy" if name in self._ill else "healthy",
                "message": "as it is",
                "latency_ms": 1,
            }
            for name in ("server", "storage", "ollama", "rag-service")
        ]
        told = {"status": self.status, "summary": self.status, "components": components}
        return Reply.json({**told, "seeds": [], "timestamp": 1_795_448_748})

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
                "provider": "universal",
                "model": f"org/{name}",
                "api_key": MODEL_KEY,
                "default": name == self._default,
            }
            for name in self._models
        ]
        return Reply.json({"total": len(rows), "models": rows})


RUNTIME_DOWN = "Universal Runtime not available at http://127.0.0.1:11540."
NOT_FOUND = Reply.json({"detail": "Not Found"}, 404)
NOT_ALLOWED = Reply.json({"detail": "Method Not Allowed"}, 405)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
