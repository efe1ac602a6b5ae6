"""The only place that speaks HTTP: time-outs, bounded bodies, raw-byte events, HTTP → Failure."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from urllib.parse import quote, urlsplit

import certifi

from atmosphere_grpc.backends import connected, joining
from atmosphere_grpc.backends.events import Event, EventTooLarge, Parser
from atmosphere_grpc.backends.http1 import EARLY_S, Broken, Connection, Hangup, HttpError
from atmosphere_grpc.backends.pool import ConnectTimeout, Pool
from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.record import current, trace_headers

MAX_EVENT_BYTES = 4 * 1024 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
#: How much of what a server said when it failed is logged, in bytes.
MAX_WORDS = 2000
#: How long the words of a server that failed are waited for, once its status has come.
WORDS_S = 1.0
#: How long the end of a finished stream is waited for, so that its connection can be used again.
DRAIN_S = 0.05
#: Where text is joined for longer, it is looked so often whether the answer has ended, in seconds:
#: some servers keep a finished stream open.
LOOK_S = 0.1
#: What `Content-Encoding` calls it; some servers write the character set there.
COMPRESSED = frozenset({"gzip", "x-gzip", "deflate", "compress", "br", "zstd"})
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_JSON = {"content-type": "application/json"}
#: What a path may hold as it is (RFC 3986), `%` of what was quoted before included.
_PATH_SAFE = "/%:@!$&'()*+,;=~"


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

    def unreachable(self, error: OSError | ConnectTimeout) -> Failure:
        """Why there is no connection."""
        detail = f"{type(error).__name__}: {error}"
        match error:
            case ConnectTimeout():
                return Failure.out_of_time(
                    Phase.CONNECT,
                    f'integration "{self._settings.integration_id}": no connection to '
                    f"{self.address} in time – is the address right?",
                )
            case socket.gaierror():
                return self.unavailable("the host name cannot be resolved", detail=detail)
            case ssl.SSLError():
                remedy = "is its certificate one that tls.ca_file trusts?"
                return self.unavailable("the TLS handshake failed", detail=detail, remedy=remedy)
            case ConnectionRefusedError():
                return self.unavailable("connection refused", detail=detail)
            case _:
                return self.unavailable("no connection", detail=detail)

    def failure(self, error: HttpError) -> Failure:
        """Why an exchange failed."""
        detail = f"{type(error).__name__}: {error}"
        match error:
            case Broken():
                return self.truncated("the connection broke", detail=detail)
            case Hangup():
                return self.unavailable("the connection was closed before an answer", detail=detail)
            case _:
                return self.contract("its answer is not HTTP", detail=detail)


class Stream:
    """An answer that is read as it comes."""

    def __init__(self, endpoint: Endpoint, connection: Connection) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._join_s = joining.get()
        self._due = 0.0
        self._held = False  # whether something was read and not sent on
        self._parser: Parser | None = None
        header = connection.headers.get("content-type", "")
        #: The media type, in lower case, without parameters.
        self.content_type = header.partition(";")[0].strip().lower()

    async def body(self) -> bytes:
        """All of it, where it turns out to be no stream."""
        return await _read(self._endpoint, self._connection, MAX_BODY_BYTES)

    @property
    def due(self) -> bool:
        """Whether what was read is to be sent on now, and not to be joined with what follows."""
        return not self._due or time.monotonic() >= self._due - EARLY_S

    def sent(self, *, last: bool) -> None:
        """Notes that text was sent on: unless it was the last, what follows may be joined."""
        self._held = False
        join_s = 0.0 if last else self._join_s()
        self._due = time.monotonic() + join_s if join_s > 0 else 0.0

    async def batch(self, kind: Callable[[int], Parser]) -> list[Event] | None:
        """The events that come together next; None at the end, before which one may be broken off.

        While text is joined, what comes is collected until it is due, so that it comes together. No
        event at all says that it is time to send on what was.

        Args:
            kind: What reads the events, the same each time.
        """
        parser = self._parser = self._parser or kind(MAX_EVENT_BYTES)
        connection = self._connection
        try:
            while True:
                due = min(self._due, time.monotonic() + LOOK_S) if self._due else 0.0
                if chunk := await connection.read(due, held=self._held):
                    if events := parser.feed(chunk):
                        self._held = True
                        return events
                elif connection.complete:
                    return parser.flush() or None
                elif self.due:
                    self._held = False
                    return []
        except EventTooLarge:
            raise self._endpoint.contract(
                f"an event of its stream is larger than {MAX_EVENT_BYTES} bytes"
            ) from None
        except HttpError as error:
            raise self._endpoint.failure(error) from error

    async def drain(self) -> None:
        """Waits briefly for the end of a finished stream, so that its connection is kept."""
        if self._connection.complete:
            return
        with contextlib.suppress(TimeoutError, HttpError):
            async with asyncio.timeout(DRAIN_S):
                while await self._connection.read():
                    pass


class Exchange:
    """A request that is sent when this is entered, and whose answer is closed when it is left."""

    __slots__ = ("_connect_s", "_connection", "_data", "_pool", "_wire")

    def __init__(self, wire: Wire, pool: Pool, data: bytes, connect_s: float) -> None:
        self._wire = wire
        self._pool = pool
        self._data = data
        self._connect_s = connect_s
        self._connection: Connection | None = None

    async def __aenter__(self) -> Stream:
        if self._pool.full:
            await _queue(self._pool)
        else:
            await self._pool.enter()
        try:
            connection = await self._answered()
            if not 200 <= connection.status < 300:
                text = await _words(connection)
                raise HttpStatus(connection.status, text, _retry_after_s(connection.headers))
            if (coding := connection.headers.get("content-encoding", "").lower()) in COMPRESSED:
                raise self._wire.endpoint.contract(
                    f"its answer is compressed ({coding}), which was not asked for"
                )
        except BaseException:
            self._pool.leave(self._connection)
            raise
        return Stream(self._wire.endpoint, connection)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.leave(self._connection)

    async def _answered(self) -> Connection:
        """Sends the request; a second time when the connection had been closed by the server.

        llama.cpp closes one after each stream, without saying so beforehand: a request that
        follows at once may still be given it.
        """
        endpoint = self._wire.endpoint
        if (kept := self._pool.kept()) is not None:
            try:
                return await self._ask(kept)
            except Hangup as error:
                if not error.silent:
                    raise endpoint.failure(error) from error
                self._pool.forget(kept)
                self._connection = None
            except HttpError as error:
                raise endpoint.failure(error) from error
        try:
            new = await self._pool.connect(self._connect_s)
        except (OSError, ConnectTimeout) as error:
            raise endpoint.unreachable(error) from error
        try:
            return await self._ask(new)
        except HttpError as error:
            raise endpoint.failure(error) from error

    async def _ask(self, connection: Connection) -> Connection:
        self._connection = connection
        if (wanted := connected.get()) is not None:
            wanted()
        connection.send(self._data)
        await connection.answered()
        return connection


class Wire:
    """A pool of connections to one endpoint.

    Every method raises `HttpStatus` for an answer other than 2xx and `Failure`
    for whatever else goes wrong. Cancelling it closes the connection, which stops
    the backend. `connect_s` lowers the settings' own bound on connecting.
    """

    def __init__(self, settings: WireSettings) -> None:
        self.endpoint = Endpoint(settings)
        self._settings = settings
        url = urlsplit(settings.base_url)
        secure = url.scheme == "https"
        tls = (settings.tls or _public_authorities()) if secure else None
        port = url.port or (443 if secure else 80)
        self._pool = Pool(url.hostname or "", port, tls, settings.max_connections)
        self._base = quote(url.path.rstrip("/") + "/", safe=_PATH_SAFE)
        headers = {
            "host": url.netloc.rpartition("@")[2],
            "accept": "*/*",
            "user-agent": "atmosphere-grpc",
            # Compressed answers would have to be bounded twice, and delay tokens.
            "accept-encoding": "identity",
            **{name.lower(): value for name, value in settings.headers.items()},
        }
        self._head = _lines(headers)
        # An endpoint's paths are few; with the common headers, so that they are joined once.
        self._begun = functools.lru_cache(maxsize=256)(self._begin)

    async def aclose(self) -> None:
        """Closes every connection."""
        self._pool.close()

    async def get(self, path: str) -> bytes:
        """The body of a GET."""
        data = self._request("GET", path, trace_headers(), b"")
        async with Exchange(self, self._pool, data, self._settings.connect_s) as answer:
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
        own = {**_JSON, "content-length": str(len(body)), **trace_headers(), **headers}
        data = self._request("POST", path, own, body)
        return Exchange(self, self._pool, data, min(self._settings.connect_s, connect_s))

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        return b"".join((self._begun(method, path), _lines(headers), b"\r\n", body))

    def _begin(self, method: str, path: str) -> bytes:
        """What a request begins with."""
        line = f"{method} {self._base}{quote(path, safe=_PATH_SAFE)} HTTP/1.1\r\n"
        return line.encode() + self._head


async def _queue(pool: Pool) -> None:
    """Waits for a place in a pool; the attempt's record is told."""
    attempt = current().last
    if attempt is not None:
        attempt.wait_for_connection()
    await pool.enter()
    if attempt is not None:
        attempt.got_connection()


def _lines(headers: Mapping[str, str]) -> bytes:
    text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if text.count("\r") != len(headers) or text.count("\n") != len(headers) or "\0" in text:
        raise ValueError("a header would be more than one")  # never of what callers may send
    return text.encode()


@functools.cache
def _public_authorities() -> ssl.SSLContext:
    """Made once: reading them takes some 20 ms."""
    return ssl.create_default_context(cafile=certifi.where())


async def _read(endpoint: Endpoint, connection: Connection, limit: int) -> bytes:
    """The body, bounded."""
    parts: list[bytes] = []
    size = 0
    try:
        while chunk := await connection.read():
            size += len(chunk)
            if size > limit:
                raise endpoint.contract(f"its answer is larger than {limit} bytes")
            parts.append(chunk)
    except HttpError as error:
        raise endpoint.failure(error) from error
    return b"".join(parts)


async def _words(connection: Connection) -> bytes:
    """What came of an error's body; its status counts, also where that breaks off or stalls."""
    said = b""
    with contextlib.suppress(HttpError, TimeoutError):
        async with asyncio.timeout(WORDS_S):
            while len(said) < MAX_ERROR_BYTES and (chunk := await connection.read()):
                said += chunk
    return said[:MAX_ERROR_BYTES]


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds; None where it is missing, a date, or nonsense."""
    value = headers.get("retry-after", "")
    # A date (RFC 9110, 10.2.3) would need the two clocks to agree; backends send seconds.
    return min(float(value), 3600.0) if value.isdecimal() else None
