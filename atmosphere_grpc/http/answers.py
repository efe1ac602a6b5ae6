"""Answers as HTTP sends them: JSON, and events one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.types import Send

from atmosphere_grpc.errors import Failure
from atmosphere_grpc.http.refusals import status_of

#: Of every answer that is no page: it is of this moment, for its caller, and nothing but data.
DATA_HEADERS: Mapping[str, str] = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}
JSON = "application/json"


def encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI has them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


async def send_json(
    send: Send, status: int, document: Any, headers: Mapping[str, str] | None = None
) -> None:
    """Sends a JSON document as the whole answer."""
    body = msgspec.json.encode(document)
    told = {
        "content-type": JSON,
        "content-length": str(len(body)),
        **DATA_HEADERS,
        **(headers or {}),
    }
    await send({"type": "http.response.start", "status": status, "headers": encoded(told.items())})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def failure_headers(failure: Failure) -> dict[str, str]:
    """What the headers say of a failure: when a retry makes sense, and how to prove who calls."""
    headers: dict[str, str] = {}
    if (delay_s := failure.retry_delay_s) is not None:
        headers["retry-after"] = str(math.ceil(delay_s))
        headers["retry-after-ms"] = str(math.ceil(delay_s * 1000))
    # OpenAI's clients retry by the status, also what cannot succeed.
    headers["x-should-retry"] = "false" if delay_s is None else "true"
    if status_of(failure) == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


class Events:
    """Server-sent events; whatever is sent first brings the status.

    Args:
        send: Sends the parts of the answer.
        headers: What the answer's headers say beside.
    """

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = headers
        self.begun = False

    async def send(self, documents: Iterable[Any]) -> None:
        """Sends an event each, in one write."""
        body = b"".join(b"data: " + msgspec.json.encode(item) + b"\n\n" for item in documents)
        if body:
            await self._write(body, more=True)

    async def alive(self, doing: str) -> None:
        """Sends a comment, which keeps the connection and is no event."""
        await self._write(f": {doing}\n\n".encode(), more=True)

    async def end(self, last: bytes = b"") -> None:
        """Ends the answer."""
        await self._write(last, more=False)

    async def _write(self, body: bytes, *, more: bool) -> None:
        if not self.begun:
            self.begun = True
            told = {
                "content-type": "text/event-stream; charset=utf-8",
                "x-accel-buffering": "no",  # a proxy that collects them would be no stream
                **DATA_HEADERS,
                **self._headers,
            }
            start = {"type": "http.response.start", "status": 200}
            await self._send({**start, "headers": encoded(told.items())})
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
