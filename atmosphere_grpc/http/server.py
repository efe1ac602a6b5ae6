"""Listens, and lets uvicorn speak HTTP: bind, start, stop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection

import uvicorn
from uvicorn.server import ServerState

from atmosphere_grpc.certificates import Certificates
from atmosphere_grpc.config.section import is_loopback
from atmosphere_grpc.http.app import application
from atmosphere_grpc.http.guard import MAX_HEAD_BYTES
from atmosphere_grpc.http.protocol import Connection
from atmosphere_grpc.http.sockets import listening
from atmosphere_grpc.http.surface import Surface
from atmosphere_grpc.http.tls import Secured

#: How long an idle connection is kept, in seconds: longer than clients keep theirs, so that none
#: is closed at the moment when it is used again.
IDLE_S = 75
#: How long a handshake of TLS may take, in seconds.
HANDSHAKE_S = 10.0
#: How long calls that are cancelled have to end, and what is written to be sent, in seconds.
END_S = 1.0


class HttpServer:
    """Serves a surface over HTTP, in the event loop that runs.

    Args:
        surface: What is served.
        listen: The address, `host:port`.
        origins: The pages of other addresses that may call.
        certificates: What it shows; None: it speaks plaintext.
        shares_port: Whether other processes of this server listen there as well.
    """

    def __init__(
        self,
        surface: Surface,
        listen: str,
        origins: Collection[str] = (),
        certificates: Certificates | None = None,
        *,
        shares_port: bool = False,
    ) -> None:
        self._shares_port = shares_port
        self._surface = surface
        self._host, _, port = listen.rpartition(":")
        self._port = int(port)
        loopback = is_loopback(self._host.strip("[]"))
        self._config = uvicorn.Config(
            application(surface, origins, loopback=loopback),
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        # What goes wrong in a call is logged by its envelope; this is about what callers send.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._secured = Secured(certificates) if certificates is not None else None
        self._state = ServerState()
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []

    def bind(self) -> str:
        """Takes the address; gives the one that it got, with the real port.

        Raises:
            OSError: It cannot be had.
        """
        self._sockets = listening(self._host.strip("[]"), self._port, shared=self._shares_port)
        return f"{self._host}:{self._sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        """Answers from now on."""
        self._config.load()
        loop = asyncio.get_running_loop()
        for one in self._sockets:
            self._servers.append(
                await loop.create_server(
                    lambda: Connection(self._config, self._state, {}),
                    sock=one,
                    ssl=self._secured.context if self._secured is not None else None,
                    ssl_handshake_timeout=HANDSHAKE_S if self._secured is not None else None,
                )
            )

    async def stop(self) -> None:
        """Ends: calls in flight are cancelled, connections closed."""
        for server in self._servers:
            server.close()
        for one in self._sockets:
            one.close()
        running = set(self._surface.running)
        for call in running:
            call.cancel()
        answering = set(self._state.tasks)
        if answering:
            await asyncio.wait(answering, timeout=END_S)
        open_ = [item for item in self._state.connections if isinstance(item, Connection)]
        for connection in open_:
            connection.shutdown()  # what is written is still sent
        if open_:
            await asyncio.wait([connection.closed for connection in open_], timeout=END_S)
        for connection in open_:
            connection.transport.abort()
