"""A connection: uvicorn's HTTP/1.1, which here also has bounds in time and number."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from atmosphere_grpc.http.answers import DATA_HEADERS, JSON, encoded
from atmosphere_grpc.http.refusals import HttpReason, refusal_document

#: How long the head of a request may take to arrive, in seconds.
HEAD_S = 10.0
#: How long a caller may read nothing while there is something to read, in seconds.
STALL_S = 60.0
#: The most connections at a time.
MAX_CONNECTIONS = 1000


class Connection(H11Protocol):
    """A connection whose other end must not dawdle."""

    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins; a connection too many is cut."""
        super().connection_made(transport)
        #: Done once it has ended.
        self.closed: asyncio.Future[None] = self.loop.create_future()
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        # asyncio overlooks sockets that were made without naming TCP; head and body are two writes,
        # and the second would wait 40 ms for the first to be acknowledged.
        with contextlib.suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if (secured := transport.get_extra_info("ssl_object")) is not None:
            self.app_state = {**self.app_state, "identities": identities(secured)}
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Takes in what has come."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # a part of a head
            self._expect_head()
        else:
            _ended(self._head_timer)
            self._head_timer = None

    def on_response_complete(self) -> None:
        """Ends a request; the next may have begun to arrive meanwhile."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._expect_head()

    def pause_writing(self) -> None:
        """Stops writing: the caller does not read."""
        super().pause_writing()
        self._stall_timer = self._later(STALL_S)

    def resume_writing(self) -> None:
        """Goes on: the caller reads."""
        super().resume_writing()
        _ended(self._stall_timer)
        self._stall_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""
        _ended(self._head_timer)
        self._head_timer = None
        _ended(self._stall_timer)
        self._stall_timer = None
        super().connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)

    def send_400_response(self, msg: str) -> None:
        """Tells whoever speaks no HTTP, or too much of it, and hangs up."""
        if self.cycle is not None and not self.cycle.response_complete:
            # The body of a request that is being answered: nobody waits for that answer now.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            message = "the request is no HTTP/1.1, or its head is too large"
            body = msgspec.json.encode(refusal_document(HttpReason.MALFORMED, message, ""))
            headers = {
                "content-type": JSON,
                "content-length": str(len(body)),
                "connection": "close",
                **DATA_HEADERS,
            }
            events: tuple[Any, ...] = (
                h11.Response(status_code=400, headers=encoded(headers.items()), reason=b""),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self._later(HEAD_S)

    def _later(self, after_s: float) -> asyncio.TimerHandle:
        return self.loop.call_later(after_s, self.transport.abort)


def identities(secured: Any) -> tuple[bytes, ...]:
    """The names in the certificate at the other end, as gRPC tells them."""
    certificate: dict[str, Any] = secured.getpeercert() or {}
    names = [value for _, value in certificate.get("subjectAltName", ())]
    if not names:
        subject = (pair for part in certificate.get("subject", ()) for pair in part)
        names = [value for name, value in subject if name == "commonName"]
    return tuple(str(name).encode() for name in names)


def _ended(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
