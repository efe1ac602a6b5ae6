"""A document at an address: bounded in time and size, by nobody who holds up the process's end."""

from __future__ import annotations

import asyncio
import contextlib
import http
import http.client
import io
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

MAX_BYTES = 1024 * 1024


async def in_a_thread(work: Callable[[], T]) -> T:
    """What blocking work gives, or raises; neither a cancelled caller nor the exit waits for it.

    `asyncio.to_thread` has threads that the end of the process waits for.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def told(result: T | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits any longer
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only beside an error

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop may be gone by then
            loop.call_soon_threadsafe(told, result, failed)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    return await future


def fetched(url: str, limit_s: float) -> bytes:
    """The document at an address; redirects are not followed, nor proxies used.

    Args:
        url: The address.
        limit_s: How long it may take in all, in seconds.

    Raises:
        OSError: It cannot be had, or not in time.
        ValueError: It is too large.
        http.client.HTTPException: The answer is no HTTP.
    """
    deadline = time.monotonic() + limit_s
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=limit_s)
    with contextlib.closing(connection):
        connection.connect()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "application/json"})
        # Time-outs of sockets are for each operation: bytes that come one by one would have no end.
        response = http.client.HTTPResponse(_Clocked(connection.sock, deadline), method="GET")  # type: ignore[arg-type]
        with contextlib.closing(response):
            response.begin()
            if response.status != http.HTTPStatus.OK:
                raise OSError(f"HTTP {response.status}")
            content = response.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    return content


class _Clocked(io.RawIOBase):
    """What a socket receives until a time; also the socket that such a file is made of."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket = sock
        self._deadline = deadline

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("took too long")
        self._socket.settimeout(left_s)
        return self._socket.recv_into(buffer)
