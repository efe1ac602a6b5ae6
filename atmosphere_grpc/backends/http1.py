"""HTTP/1.1 on one connection, an exchange at a time; what comes is handed out as it came.

A reader is not woken by what it does not wait for, which is the point of it: tokens that are to
leave together cost a read of the socket each, and no more. aiohttp's client took 200 µs of CPU
more an answer of 64 tokens, most of that for its account of each HTTP chunk.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

#: The most bytes that may come without any of a body among them: of headers, of trailers.
MAX_HEAD_BYTES = 64 * 1024
#: With so many bytes that were not taken, the sender is made to wait.
HIGH_WATER_BYTES = 256 * 1024
#: A request that may be refused before all of it was read.
LARGE_BYTES = 64 * 1024
#: By how much a timer may come too early, in seconds: uvloop's have whole milliseconds.
EARLY_S = 0.001
#: Answers that have no body, whatever their headers say.
NO_BODY = (204, 304)


class HttpError(Exception):
    """An exchange failed."""


class NotHttp(HttpError):
    """The answer is not HTTP, or its headers are too large."""


class Hangup(HttpError):
    """The connection was closed before the answer's headers were whole.

    Attributes:
        silent: Whether nothing at all had come.
    """

    def __init__(self, text: str, *, silent: bool) -> None:
        super().__init__(text)
        self.silent = silent


class Broken(HttpError):
    """The body broke off."""


class Connection(asyncio.Protocol):
    """A connection to a server.

    Attributes:
        status: The answer's; 0 before its headers have come.
        headers: The answer's, by their names in lower case; of several, the first.
        complete: Whether the answer is whole.
        closed: Whether the connection is.
        idle_since: When the last one ended, by the loop's clock.
    """

    __slots__ = (
        *("status", "headers", "complete", "closed", "idle_since"),
        *("_busy", "_dry", "_due", "_error", "_interim", "_keep_alive", "_large", "_loop"),
        *("_parser", "_parts", "_paused", "_silent", "_size", "_timer", "_transport"),
        *("_until_close", "_waiter"),
    )

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        # What many servers do that are older than the grammar, and every client understands:
        # folded headers (RFC 9112, 5.2), lines that end in LF, blanks after the size of a chunk.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._busy = self._large = self._paused = self.closed = False
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = self._interim = self._keep_alive = self._until_close = False
        self._silent = True
        self._error: HttpError | None = None
        self._parts: list[bytes] = []
        self._size = self._dry = 0

    # --- for who asks

    def send(self, data: bytes) -> None:
        """Sends a request."""
        self._begin()
        self._busy = True
        self._large = len(data) > LARGE_BYTES
        if self.closed:  # as it was made: of that nobody was told
            self._error = Hangup("the server closed it", silent=True)
            return
        self._transport.write(data)

    async def answered(self) -> None:
        """Waits for the answer's headers.

        Raises:
            HttpError: They do not come.
        """
        while not self.status:
            await self._more()

    async def read(self, due: float = 0.0, *, held: bool = False) -> bytes:
        """What has come of the body since the last time, or comes next.

        Empty when nothing more is to come, or has come by `due` for who holds something.

        Args:
            due: What comes before is collected until then, by `time.monotonic()`, unless it is the
                end; 0 for nothing.
            held: Whether the reader is woken then although nothing has come.

        Raises:
            HttpError: It broke off, after all that came before.
        """
        while True:
            left_s = due - time.monotonic() if due else 0.0
            if self._parts and (left_s <= EARLY_S or self._over):
                break
            if self.complete or (held and left_s <= EARLY_S):
                return b""
            await self._more(due, left_s if held or self._parts else None)
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def _over(self) -> bool:
        """Whether nothing more comes before what there is was taken."""
        return self.complete or self._paused or self._error is not None

    def release(self) -> bool:
        """Ends the exchange; whether there can be another one. Else the connection is closed."""
        self._busy = False
        # A server that refuses a large request may not have read it all, and would see the rest of
        # it before the next one.
        left = self._large and self.status >= 400
        if self.complete and self._keep_alive and not (left or self.closed):
            self.idle_since = self._loop.time()
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Closes the connection at once."""
        self.closed = True
        self._transport.abort()

    async def _more(self, due: float = 0.0, within_s: float | None = None) -> None:
        """Waits for what comes from `due` on, or for so long."""
        if self._error is not None:
            raise self._error
        self._waiter, self._due = self._loop.create_future(), due
        if within_s is not None:
            self._timer = self._loop.call_later(within_s, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    # --- for the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        # No assertion: those of uvloop are of no type of asyncio.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells whoever waits for an answer."""
        self.closed = True
        if not self._busy or self.complete or self._error is not None:
            return
        if self._until_close and exc is None:
            self.complete = True
            self._wake()
            return
        why = f"{type(exc).__name__}: {exc}" if exc else "the server closed it"
        self._fail(Broken(why) if self.status else Hangup(why, silent=self._silent))

    def data_received(self, data: bytes) -> None:
        """Takes in what has come."""
        if not self._busy:  # nobody asked for it
            self.abort()
            return
        self._silent = False
        self._dry += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            why = f"{type(error).__name__}: {error}"
            self._fail(Broken(why) if self.status else NotHttp(why))
            return
        if self._dry > MAX_HEAD_BYTES:
            self._fail(NotHttp(f"more than {MAX_HEAD_BYTES} bytes of headers"))
        elif self._size > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
            self._wake()
        elif self._waiter is not None and self._timer is None:
            left_s = self._due - time.monotonic() if self._due else 0.0
            if left_s <= EARLY_S:
                self._wake()
            else:
                self._timer = self._loop.call_later(left_s, self._wake)

    # --- for the parser

    def on_message_begin(self) -> None:
        """Refuses an answer that nobody asked for."""
        if self.complete:
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps a header; trailers are dropped."""
        if not self.status:
            self.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """Begins the answer, unless it is an interim one."""
        status = self._parser.get_status_code()
        if self.complete:
            return
        self._interim = status < 200
        if self._interim:
            self.headers.clear()
            return
        self.status = status
        chunked = self.headers.get("transfer-encoding", "").lower().endswith("chunked")
        sized = chunked or "content-length" in self.headers
        self._until_close = not sized and status not in NO_BODY

    def on_body(self, body: bytes) -> None:
        """Keeps a piece of the body."""
        if not self.complete:
            self._parts.append(body)
            self._size += len(body)
            self._dry = 0

    def on_message_complete(self) -> None:
        """Ends the answer, unless it is an interim one."""
        if self._interim or self.complete:
            return
        self.complete = True
        self._keep_alive = self._parser.should_keep_alive()
        self._wake()

    def _fail(self, error: HttpError) -> None:
        if not self.complete:
            self._error = error
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
