"""The only place that speaks HTTP: time-outs, bounded bodies, raw-byte events, HTTP → Failure.

aiohttp's client, since it hands out all that a read of the socket brought. httpx
hands out one HTTP chunk at a time, so that tokens that arrived together could not
be joined; over aiohttp's engine its own layers cost some 300 µs of CPU a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import certifi

from atmosphere_grpc.backends import connected
from atmosphere_grpc.backends.events import Event, EventTooLarge, Parser
from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.record import current, trace_headers

MAX_EVENT_BYTES = 4 * 1024 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
#: How much of what a server said when it failed is logged, in bytes.
MAX_WORDS = 2000
#: How long the end of a finished stream is waited for, so that its connection can be used again.
DRAIN_S = 0.05
#: How long a connection that is not used is kept: less than llama.cpp, which closes one after 5 s,
#: so that a request is not sent into a connection that is being closed.
KEEP_ALIVE_S = 4.0
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_JSON = {"content-type": "application/json"}
#: What the HTTP client raises of its own.
_ERRORS: Final = (aiohttp.ClientError, OSError)

#: Whether the request that this task sends got a connection that was used before.
_reused: ContextVar[bool] = ContextVar("reused", default=False)


class HttpStatus(Exception):
    """An answer other than 2xx, for the dialect to interpret."""

    def __init__(self, status: int, body: bytes, retry_after_s: float | None) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class WireSettings:
    """How an integration's endpoint is spoken to.

    Attributes:
        integration_id: Whose endpoint it is, for messages.
        base_url: What paths are appended to.
        headers: Sent with each request; secrets may be among them.
        connect_s: The most seconds a connection may take.
        max_connections: The most connections at a time.
        tls: What an `https` server is checked against; None: the public authorities.
        hint: What to do when nothing listens there, in a few words.
    """

    integration_id: str
    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_s: float = 5.0
    max_connections: int = 1024
    tls: ssl.SSLContext | None = None
    hint: str = ""


class Endpoint:
    """One server, and how its failures are told.

    Attributes:
        address: Host and port: what may be shown of its URL.
    """

    def __init__(self, settings: WireSettings) -> None:
        url = urlsplit(settings.base_url)
        port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
        name = url.hostname or ""
        host = f"[{name}]" if ":" in name else name
        self.address = f"{host}:{port}"
        self._settings = settings

    def words(self, said: bytes) -> str:
        """What the server said, for the log: cut, and without the key that it was sent."""
        text = said[:MAX_WORDS].decode(errors="replace")
        for value in self._settings.headers.values():
            for secret in value.split():
                text = text.replace(secret, "***") if len(secret) > len("Bearer") else text
        return text

    def fail(self, reason: Reason, what: str, *, detail: str = "", words: str = "") -> Failure:
        """A failure that names the integration."""
        message = f'integration "{self._settings.integration_id}": {what}'
        return Failure(reason, message, detail=detail, words=words)

    def contract(self, what: str, *, detail: str = "", words: str = "") -> Failure:
        """The server broke its interface's promise."""
        text = f"{what} ({self.address}) – does base_urls point at the right server?"
        return self.fail(Reason.BACKEND_CONTRACT, text, detail=detail, words=words)

    def unavailable(self, what: str, *, detail: str = "", remedy: str | None = None) -> Failure:
        """The server cannot be used now; None for the remedy where it may not be running."""
        remedy = self._settings.hint if remedy is None else remedy
        text = f"{what} at {self.address}" + (f" – {remedy}" if remedy else "")
        return self.fail(Reason.BACKEND_UNAVAILABLE, text, detail=detail)

    def truncated(self, what: str, *, detail: str = "", words: str = "") -> Failure:
        """An answer broke off."""
        text = f"{what} ({self.address}) before the answer was whole"
        return self.fail(Reason.STREAM_TRUNCATED, text, detail=detail, words=words)

    def failure(self, error: Exception) -> Failure:
        """What the HTTP client raised, as a Failure."""
        detail = f"{type(error).__name__}: {error}"
        match error:
            case aiohttp.ConnectionTimeoutError():
                return Failure.out_of_time(
                    Phase.CONNECT,
                    f'integration "{self._settings.integration_id}": no connection to '
                    f"{self.address} in time – is the address right?",
                )
            case aiohttp.ClientConnectorDNSError():
                return self.unavailable("the host name cannot be resolved", detail=detail)
            case aiohttp.ClientSSLError():
                remedy = "is its certificate one that tls.ca_file trusts?"
                return self.unavailable("the TLS handshake failed", detail=detail, remedy=remedy)
            case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
                return self.unavailable("connection refused", detail=detail)
            case aiohttp.ClientConnectorError():
                return self.unavailable("no connection", detail=detail)
            case aiohttp.ClientPayloadError():
                return self.truncated("the connection broke", detail=detail)
            case aiohttp.ClientResponseError():
                return self.contract("its answer is not HTTP", detail=detail)
            case _:
                return self.unavailable("the connection was closed before an answer", detail=detail)


class Stream:
    """An answer that is read as it comes."""

    def __init__(self, endpoint: Endpoint, response: aiohttp.ClientResponse) -> None:
        self._endpoint = endpoint
        self._response = response
        self._content = response.content
        header: str = response.headers.get("content-type", "")
        #: The media type, in lower case, without parameters.
        self.content_type = header.partition(";")[0].strip().lower()

    async def body(self) -> bytes:
        """All of it, where it turns out to be no stream."""
        return await _read(self._endpoint, self._response, MAX_BODY_BYTES)

    async def batches(self, kind: Callable[[int], Parser]) -> AsyncGenerator[list[Event], None]:
        """The events of each read of the socket; the last one may be a broken-off event."""
        parser = kind(MAX_EVENT_BYTES)
        read = self._content.readany
        try:
            while chunk := await read():
                if events := parser.feed(chunk):
                    yield events
            if events := parser.flush():
                yield events
        except EventTooLarge:
            raise self._endpoint.contract(
                f"an event of its stream is larger than {MAX_EVENT_BYTES} bytes"
            ) from None
        except _ERRORS as error:
            raise self._endpoint.failure(error) from error

    async def drain(self) -> None:
        """Waits briefly for the end of a finished stream, so that its connection is kept."""
        if self._content.is_eof():
            return
        with contextlib.suppress(TimeoutError, *_ERRORS):
            async with asyncio.timeout(DRAIN_S):
                while await self._content.readany():
                    pass


class Exchange:
    """A request that is sent when this is entered, and whose answer is closed when it is left."""

    __slots__ = ("_response", "_sending", "_wire")

    def __init__(self, wire: Wire, sending: _Sending) -> None:
        self._wire = wire
        self._sending = sending
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> Stream:
        endpoint = self._wire.endpoint
        try:
            self._response = response = await self._wire.send(self._sending)
        except _ERRORS as error:
            raise endpoint.failure(error) from error
        if not 200 <= response.status < 300:
            try:
                text = await _read(endpoint, response, MAX_ERROR_BYTES, cut=True)
                raise HttpStatus(response.status, text, _retry_after_s(response.headers))
            finally:
                await self._close(response)
        return Stream(endpoint, response)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._response is not None:
            await self._close(self._response)

    async def _close(self, response: aiohttp.ClientResponse) -> None:
        """Keeps the connection of an answer that was read to its end; closes that of another."""
        response.release()
        with contextlib.suppress(aiohttp.ClientError):
            await response.wait_for_close()


@dataclass(frozen=True, slots=True)
class _Sending:
    """A request."""

    method: str
    path: str
    body: bytes | None
    headers: Mapping[str, str]
    connect_s: float


class Wire:
    """A pool of connections to one endpoint.

    Every method raises `HttpStatus` for an answer other than 2xx and `Failure`
    for whatever else goes wrong. Cancelling it closes the connection, which stops
    the backend. `connect_s` lowers the settings' own bound on connecting.
    """

    def __init__(self, settings: WireSettings) -> None:
        self.endpoint = Endpoint(settings)
        self._settings = settings
        self._base = settings.base_url.rstrip("/") + "/"
        self._tls = settings.tls or _public_authorities()
        self._made: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Closes every connection."""
        if self._made is not None:
            await self._made.close()

    async def get(self, path: str) -> bytes:
        """The body of a GET."""
        sending = _Sending("GET", path, None, trace_headers(), math.inf)
        async with Exchange(self, sending) as answer:
            return await answer.body()

    async def post(
        self,
        path: str,
        body: bytes,
        *,
        connect_s: float,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> bytes:
        """The body of the answer to a POST of JSON."""
        async with self.stream(path, body, connect_s=connect_s, headers=headers) as answer:
            return await answer.body()

    def stream(
        self,
        path: str,
        body: bytes,
        *,
        connect_s: float,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Exchange:
        """A POST of JSON whose answer is read as it comes; entered when its headers are there."""
        headers = {**_JSON, **trace_headers(), **headers}
        return Exchange(self, _Sending("POST", path, body, headers, connect_s))

    async def send(self, sending: _Sending) -> aiohttp.ClientResponse:
        """Sends a request; a second time when the connection had been closed by the server.

        llama.cpp closes one after each stream, without saying so beforehand: a request that
        follows at once may still be given it.
        """
        _reused.set(False)
        try:
            return await self._send(sending)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not _reused.get():
                raise
        return await self._send(sending)

    async def _send(self, sending: _Sending) -> aiohttp.ClientResponse:
        connect_s = min(self._settings.connect_s, sending.connect_s)
        return await self._session.request(
            sending.method,
            self._base + sending.path,
            data=sending.body,
            headers=sending.headers,
            allow_redirects=False,
            # Only connecting is bounded here; all that follows, by the call's budget.
            timeout=aiohttp.ClientTimeout(sock_connect=connect_s),
        )

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._made is None:  # made by the first request, since it needs a running loop
            self._made = _session(self._settings, self._tls)
        return self._made


def _session(settings: WireSettings, tls: ssl.SSLContext) -> aiohttp.ClientSession:
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_note_reuse)
    tracing.on_connection_create_end.append(_note_connection)
    tracing.on_connection_queued_start.append(_note_queued)
    tracing.on_connection_queued_end.append(_note_unqueued)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=settings.max_connections, keepalive_timeout=KEEP_ALIVE_S, ssl=tls
        ),
        # Compressed answers would have to be bounded twice, and delay tokens.
        headers={"accept-encoding": "identity", **settings.headers},
        auto_decompress=False,
        # What a server sets for one caller must not be sent for another.
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        trace_configs=[tracing],
    )


@functools.cache
def _public_authorities() -> ssl.SSLContext:
    """Made once: reading them takes some 20 ms."""
    return ssl.create_default_context(cafile=certifi.where())


async def _note_reuse(*_: object) -> None:
    _reused.set(True)
    await _note_connection()


async def _note_queued(*_: object) -> None:
    if (attempt := current().last) is not None:
        attempt.wait_for_connection()


async def _note_unqueued(*_: object) -> None:
    if (attempt := current().last) is not None:
        attempt.got_connection()


async def _note_connection(*_: object) -> None:
    if (wanted := connected.get()) is not None:
        wanted()


async def _read(
    endpoint: Endpoint, response: aiohttp.ClientResponse, limit: int, *, cut: bool = False
) -> bytes:
    """The body, bounded: what is over `limit` is an error, or cut off."""
    parts: list[bytes] = []
    size = 0
    try:
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > limit:
                if cut:
                    break
                raise endpoint.contract(f"its answer is larger than {limit} bytes")
            parts.append(chunk)
    except _ERRORS as error:
        raise endpoint.failure(error) from error
    return b"".join(parts)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds; None where it is missing, a date, or nonsense."""
    value = headers.get("retry-after", "")
    # A date (RFC 9110, 10.2.3) would need the two clocks to agree; backends send seconds.
    return min(float(value), 3600.0) if value.isdecimal() else None
