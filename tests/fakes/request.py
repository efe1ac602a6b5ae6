"""A request as a fake server received it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False, slots=True)
class Request:
    """What a client sent, and whether it stayed for the answer.

    Attributes:
        method: In capitals, as sent.
        path: Without the query.
        query: What follows the `?`, as sent.
        headers: By lower-case name; of a repeated one, the last.
        body: As sent, without the framing.
        connection: Which of the server's connections it came over, counted from 1.
        arrived_at: Loop time at which it was whole.
        answered: Set when the answer was written to its end.
        gone: Set when the client went away before that.
        gone_at: Loop time of the latter.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    connection: int
    arrived_at: float
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    gone_at: float | None = None

    @property
    def json(self) -> Any:
        """The decoded body; None for an empty one."""
        return json.loads(self.body) if self.body else None

    def leave(self) -> None:
        """Notes that the client has gone away."""
        if not self.gone.is_set():
            self.gone_at = asyncio.get_running_loop().time()
            self.gone.set()


async def read_request(reader: asyncio.StreamReader, connection: int) -> Request | None:
    """The next request of a connection; None at its end, or for what is no HTTP."""
    try:
        first = await reader.readexactly(1)
        if not first.isalpha():  # a TLS handshake, for one, which would never send a blank line
            return None
        start, *lines = (first + await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = start.split(" ")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if headers.get("transfer-encoding") == "chunked":
            body = await _read_chunked(reader)
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
    except (ValueError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    path, _, query = target.partition("?")
    now = asyncio.get_running_loop().time()
    return Request(method, path, query, headers, body, connection, now)


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return body
