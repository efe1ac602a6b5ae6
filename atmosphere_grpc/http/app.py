"""The paths, and what is at them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from atmosphere_grpc.http import unary
from atmosphere_grpc.http.answers import send_json
from atmosphere_grpc.http.call import HttpCall
from atmosphere_grpc.http.chat import Chat
from atmosphere_grpc.http.guard import Guard
from atmosphere_grpc.http.openapi import openapi
from atmosphere_grpc.http.pages import pages
from atmosphere_grpc.http.refusals import HttpReason, refusal_document
from atmosphere_grpc.http.surface import Surface


def application(surface: Surface, origins: Collection[str], *, loopback: bool) -> ASGIApp:
    """The ASGI application.

    Args:
        surface: What is served.
        origins: The pages of other addresses that may call.
        loopback: Whether only this machine reaches it.
    """

    def post(path: str, endpoint: Any) -> BaseRoute:
        return Route(path, endpoint, methods=["POST"])

    def get(path: str, endpoint: Any) -> BaseRoute:
        return Route(path, endpoint, methods=["GET"])

    app = Starlette(
        routes=[
            post("/v1/execute", unary.execute(surface)),
            post("/v1/route", unary.route(surface)),
            post("/v1/integrations/test", unary.integration_test(surface)),
            get("/v1/integrations", unary.integrations(surface)),
            get("/v1/models", unary.models(surface)),
            get("/v1/models/{model:path}", unary.model(surface)),
            post("/v1/embeddings", unary.embeddings(surface)),
            post("/v1/chat/completions", Chat(surface)),
            get("/health", _Health(surface)),
            get("/openapi.json", _Document()),
            *pages(),
        ],
        exception_handlers={HTTPException: _no_such_call},
    )
    # A redirect would lose the body of a POST, and is a second request.
    app.router.redirect_slashes = False
    return Guard(app, origins, loopback=loopback)


class _Health:
    """`GET /health`: open to all, 200 while this server is of use, else 503."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._surface.serving():
            await send_json(send, 200, {"status": "SERVING"})
        else:
            await send_json(send, 503, {"status": "NOT_SERVING"}, {"retry-after": "1"})


class _Document:
    """`GET /openapi.json`: open to all; it says nothing that the sources do not."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, openapi())


async def _no_such_call(request: Request, error: Exception) -> Response:
    return _Refused(error)


class _Refused(Response):
    """What is told where there is no call."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._status = getattr(error, "status_code", 404)
        self._said = dict(getattr(error, "headers", None) or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = HttpCall(scope, receive)
        await call.leave_body()
        path = scope["path"][:80]
        if self._status == 405:
            allowed = self._said.get("Allow", "")
            reason = HttpReason.METHOD_NOT_ALLOWED
            message = f"{path!r} does not take {scope['method'][:20]}; it takes {allowed}"
        else:
            reason = HttpReason.PATH_NOT_FOUND
            message = f"there is nothing at {path!r} – /openapi.json lists what there is"
        headers = {"x-request-id": call.request_id}
        headers |= {name.lower(): value for name, value in self._said.items()}
        document = refusal_document(reason, message, call.request_id)
        await send_json(send, self._status, document, headers)
