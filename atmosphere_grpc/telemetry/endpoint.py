"""`GET /metrics` over HTTP, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import cast

#: How long a request may take to arrive and its answer to be read, in seconds.
LIMIT_S = 10.0
#: The most bytes of a request.
MAX_REQUEST_BYTES = 16 * 1024
#: The most requests at a time.
MAX_REQUESTS = 32

Render = Callable[[str], Awaitable[tuple[bytes, str]]]


class MetricsEndpoint:
    """Answers `GET /metrics`.

    Args:
        render: Gives the metrics and their media type, for what the header `Accept` says.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._requests: set[asyncio.Task[None]] = set()

    def bind(self, listen: str) -> str:
        """Takes an address; gives the one that it got, with the real port.

        Raises:
            OSError: It cannot be had.
        """
        host, _, port = listen.rpartition(":")
        plain = host.strip("[]")
        family = socket.AF_INET6 if ":" in plain else socket.AF_INET
        self._socket = socket.create_server((plain, int(port)), family=family)
        return f"{host}:{self._socket.getsockname()[1]}"

    async def start(self) -> None:
        """Answers from now on, where an address was taken."""
        if self._socket is not None:
            self._server = await asyncio.start_server(
                self._accept, sock=self._socket, limit=MAX_REQUEST_BYTES
            )

    async def stop(self) -> None:
        """Gives the address back; requests under way are cut off."""
        if self._server is not None:
            self._server.close()
        elif self._socket is not None:
            self._socket.close()
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._requests.add(task)
        try:
            if len(self._requests) <= MAX_REQUESTS:
                async with asyncio.timeout(LIMIT_S):
                    await self._answer(reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked has gone, or asked nothing that could be answered
        finally:
            self._requests.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if path != "/metrics":
            status, kind, body = "404 Not Found", "text/plain", b"only /metrics is here\n"
        elif method != "GET":
            status, kind, body = "405 Method Not Allowed", "text/plain", b"only GET is allowed\n"
        else:
            accept = next((v for n, _, v in _headers(lines) if n.lower() == "accept"), "")
            body, kind = await self._render(accept.strip())
            status = "200 OK"
        allow = "allow: GET\r\n" if status.startswith("405") else ""
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
            f"{allow}connection: close\r\n\r\n".encode()
        )
        writer.write(body)
        await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()


def _headers(lines: list[str]) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in lines]
