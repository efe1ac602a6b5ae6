"""The connections to one server: so many at a time, kept for a while, made as they are needed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any

from aiohappyeyeballs import start_connection

from atmosphere_grpc.backends.http1 import Connection, HttpError

#: How long a connection that is not used is kept: less than llama.cpp, which closes one after 5 s,
#: so that a request is not sent into a connection that is being closed.
KEEP_ALIVE_S = 4.0
#: How long what a host's name means is remembered: llama.cpp closes a connection after each
#: stream, and asking takes a thread.
REMEMBER_S = 10.0
#: How long one address is tried alone (RFC 8305).
NEXT_ADDRESS_S = 0.25


class ConnectTimeout(HttpError):
    """No connection was made in time."""


class Pool:
    """Connections to a server.

    Args:
        host: Its name or address.
        port: Its port.
        tls: What it is checked against; None for a connection in the clear.
        limit: The most at a time.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, limit: int) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._resolved: tuple[float, Sequence[Any]] = (0.0, ())
        self._resolving: asyncio.Task[Sequence[Any]] | None = None

    @property
    def full(self) -> bool:
        """Whether a place has to be waited for."""
        return self._free <= 0

    async def enter(self) -> None:
        """Takes a place, first come, first served; `leave` gives it back."""
        if self._free > 0:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._pass_on()
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(place)
            raise

    def leave(self, connection: Connection | None) -> None:
        """Gives a place back, and the connection that was used, if there was one."""
        if connection is not None:
            self._busy.discard(connection)
            if connection.release():
                self._keep(connection)
        self._pass_on()

    def forget(self, connection: Connection) -> None:
        """Leaves a connection that turned out to be closed alone; its place stays taken."""
        self._busy.discard(connection)

    def kept(self) -> Connection | None:
        """A connection that was used before, the last one of them; None where there is none."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.closed:
                continue
            if now - connection.idle_since < KEEP_ALIVE_S:
                self._busy.add(connection)
                return connection
            connection.abort()
        return None

    async def connect(self, within_s: float) -> Connection:
        """A new connection.

        Raises:
            OSError: It cannot be made; `socket.gaierror` and `ssl.SSLError` are such.
            ConnectTimeout: It takes too long.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(within_s):
                addresses = await self._addresses(loop)
                try:
                    sock = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_S)
                except BaseException:
                    self._resolved = (0.0, ())  # the host may have moved
                    raise
                try:
                    _, connection = await loop.create_connection(
                        Connection,
                        sock=sock,
                        ssl=self._tls,
                        server_hostname=self._host if self._tls else None,
                    )
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError as error:
            raise ConnectTimeout(str(error)) from error
        self._busy.add(connection)
        return connection

    def close(self) -> None:
        """Closes every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()

    async def _addresses(self, loop: asyncio.AbstractEventLoop) -> Sequence[Any]:
        until, found = self._resolved
        if loop.time() < until:
            return found
        if self._resolving is None:
            # Once for all who wait: asking cannot be cancelled, and takes one of few threads, which
            # a name server that does not answer would hold for half a minute each.
            asking = loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._resolving = loop.create_task(asking, name=f"resolve {self._host}")
            self._resolving.add_done_callback(self._found)
        resolving = self._resolving
        await asyncio.wait((resolving,))
        return resolving.result()

    def _found(self, resolving: asyncio.Task[Sequence[Any]]) -> None:
        self._resolving = None
        # Looked at also where nobody waits any more, so that asyncio does not report it as lost.
        if not resolving.cancelled() and resolving.exception() is None:
            loop = resolving.get_loop()
            self._resolved = (loop.time() + REMEMBER_S, resolving.result())

    def _pass_on(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def _keep(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._sweeper is None:
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(KEEP_ALIVE_S, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Closes what was not used for a while, oldest first."""
        now = loop.time()
        while self._idle and (
            self._idle[0].closed or now - self._idle[0].idle_since >= KEEP_ALIVE_S
        ):
            self._idle.popleft().abort()
        self._sweeper = None
        if self._idle:
            left_s = KEEP_ALIVE_S - (now - self._idle[0].idle_since)
            self._sweeper = loop.call_later(max(left_s, 0.1), self._sweep, loop)
