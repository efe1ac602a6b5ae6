"""The package's own web pages: files of one folder, which may load nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atmosphere_grpc.http.answers import encoded

#: Where the files are; those that are no page are at `/static/…`, `index.html` is at `/`.
FOLDER = Path(__file__).with_name("static")
#: What a page may do: use its own files and call this server. No inline script, no frame.
PAGE_HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}


def pages(folder: Path = FOLDER) -> list[BaseRoute]:
    """The routes of a folder's files; none for a page that is not there."""
    routes: list[BaseRoute] = []
    if (folder / "index.html").is_file():
        routes.append(Route("/", PageHeaders(_File(folder, "index.html")), methods=["GET"]))
    if folder.is_dir():
        files = StaticFiles(directory=folder, follow_symlink=False)
        routes.append(Mount("/static", PageHeaders(files)))
    return routes


class PageHeaders:
    """Has whatever an application answers say what a page of it may do.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers as the application does, with these headers."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = [
                    (name, value)
                    for name, value in message["headers"]
                    if name.decode("latin-1").lower() not in PAGE_HEADERS
                ]
                message = {**message, "headers": [*said, *encoded(PAGE_HEADERS.items())]}
            await send(message)

        await self._app(scope, receive, sending)


class _File:
    """One file of a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._files = StaticFiles(directory=folder)
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._files.get_response(self._name, scope)
        await response(scope, receive, send)
