"""A request of HTTP as a call: what gRPC's context is elsewhere."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope

from atmosphere_grpc.calls.arrival import REQUEST_ID_KEY, request_id_of
from atmosphere_grpc.codec.messages_json import invalid
from atmosphere_grpc.config.section import seconds
from atmosphere_grpc.errors import Failure
from atmosphere_grpc.http.refusals import BadBody
from atmosphere_grpc.record import HttpRecord

T = TypeVar("T")

TIMEOUT_HEADER = "x-request-timeout"
#: Seconds; `deadlines.maximum` bounds it before. What is longer is a slip of who wrote it.
MAX_TIMEOUT_S = 1e10
MAX_BODY_BYTES = 16 * 1024 * 1024
#: How long a body may take to arrive, in seconds.
BODY_S = 30.0
#: How long what is left of a refused request's body is read, so that its sender hears why.
LEFT_S = 2.0


class HttpCall:
    """A request that is a call.

    Args:
        scope: ASGI's.
        receive: Gives the body, and the news that whoever sent it has gone.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._scope = scope
        self._receive = receive
        self._headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        # One that is made is the same for whoever asks.
        self.request_id = request_id_of(self)
        self._headers.append((REQUEST_ID_KEY, self.request_id))
        self._callbacks: list[Callable[[Any], None]] = []
        self._read = asyncio.Event()
        self._deadline, self._fault = self._deadline_of()

    @functools.cached_property
    def http(self) -> HttpRecord:
        """What its record has of HTTP."""
        scope = self._scope
        path = route = scope["path"]
        for name, value in self.path_parameters.items():
            route = f"{route.removesuffix(value)}{{{name}}}"
        host, port = scope.get("server") or ("", None)
        server = f"{host}:{port or 0}"
        version = scope.get("http_version", "1.1")
        return HttpRecord(scope["method"], path, route, scope["scheme"], version, server)

    # --- what the stages of a call ask ---------------------------------------------------------

    def peer(self) -> str:
        """Where it comes from, written as gRPC does."""
        host, port = self._scope.get("client") or ("", 0)
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def peer_identities(self) -> Iterable[bytes] | None:
        """The names in its caller's certificate."""
        identities: Iterable[bytes] | None = self._scope.get("state", {}).get("identities")
        return identities

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """Its headers."""
        return tuple(self._headers)

    def time_remaining(self) -> float | None:
        """Seconds until the deadline that it sets; None: it sets none."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Has something called once its answer is sent, or nobody waits for it."""
        self._callbacks.append(callback)

    # --- what HTTP has of it -------------------------------------------------------------------

    def check(self) -> None:
        """That its headers make sense.

        Raises:
            Failure: INVALID_FIELD.
        """
        if self._fault is not None:
            raise self._fault

    def header(self, name: str) -> str:
        """The first header of a name; empty for none."""
        return next((value for key, value in self._headers if key == name), "")

    @property
    def query(self) -> list[tuple[str, str]]:
        """The parameters of its query."""
        text = self._scope["query_string"].decode("latin-1")
        return parse_qsl(text, keep_blank_values=True)

    @property
    def path_parameters(self) -> dict[str, str]:
        """The variable parts of its path."""
        parameters: dict[str, str] = self._scope.get("path_params", {})
        return parameters

    async def json_body(self) -> bytes:
        """The body, which must say that it is JSON.

        Raises:
            Failure: It is of another type, too large or too slow.
        """
        kind = self.header("content-type").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also so that no form of a web page can make a call.
            raise BadBody(
                415,
                f"Content-Type must be application/json, not {kind[:80] or 'unset'} – with curl: "
                "-H 'Content-Type: application/json'",
            )
        coding = self.header("content-encoding").strip().lower()
        if coding not in ("", "identity"):
            raise BadBody(415, f"Content-Encoding {coding[:80]} is not read – send the body plain")
        declared = self.header("content-length")
        if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
            raise _too_large()
        return await self._body()

    async def no_body(self) -> None:
        """Reads over a body that means nothing, so that it can be noticed when its sender goes."""
        await self._body()

    async def leave_body(self) -> None:
        """Reads what is left of the body of a refused request, as far as that takes no time.

        Closing the connection in the middle of it could keep the refusal from arriving.
        """
        if self._read.is_set() or self.header("expect"):  # one that waits for leave has sent none
            return
        size = 0
        try:
            async with asyncio.timeout(LEFT_S):
                while size <= MAX_BODY_BYTES:
                    message = await self._receive()
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    async def unless_gone(self, work: asyncio.Task[None]) -> None:
        """Waits for a task; cancels it when whoever sent the request goes."""
        gone = asyncio.create_task(self._gone())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    def done(self) -> None:
        """Its answer is sent, or nobody waits for it."""
        for callback in self._callbacks:
            callback(self)

    async def _body(self) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise asyncio.CancelledError
                    body += message.get("body", b"")
                    if not message.get("more_body", False):
                        self._read.set()
                    if len(body) > MAX_BODY_BYTES:
                        raise _too_large()
                    if self._read.is_set():
                        return bytes(body)
        except TimeoutError:
            raise BadBody(408, f"the body did not arrive within {BODY_S:g} s") from None

    async def _gone(self) -> None:
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _deadline_of(self) -> tuple[float | None, Failure | None]:
        value = self.header(TIMEOUT_HEADER)
        if not value:
            return None, None
        try:
            left_s = seconds(value)
        except ValueError as error:
            return None, invalid("X-Request-Timeout", f"{value[:40]!r} is {error}")
        if not isinstance(left_s, float) or not 0 < left_s < MAX_TIMEOUT_S:
            said = f"must be more than 0 and less than {MAX_TIMEOUT_S:.0f} s, not {value[:40]!r}"
            return None, invalid("X-Request-Timeout", said)
        return time.monotonic() + left_s, None


def _too_large() -> BadBody:
    return BadBody(413, f"the body has more than {MAX_BODY_BYTES} bytes – send less at a time")
