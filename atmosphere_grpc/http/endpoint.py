"""A call at a path: let in, decoded, answered, told – in the envelope of every call."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

from starlette.types import Receive, Scope, Send

from atmosphere_grpc.calls.arrival import REQUEST_ID_KEY
from atmosphere_grpc.codec.failures_json import failure_document
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.http.answers import failure_headers, send_json
from atmosphere_grpc.http.call import HttpCall
from atmosphere_grpc.http.refusals import BadBody, status_of
from atmosphere_grpc.http.surface import Surface


class Asked(Protocol):
    """What was asked: by the contract, and whatever HTTP says beside it."""

    @property
    def request(self) -> Any:
        """The contract's request."""
        ...


A = TypeVar("A", bound=Asked)
Response = TypeVar("Response")

#: Reads what was sent, and gives what decodes it.
Read = Callable[[HttpCall], Awaitable[Callable[[], A]]]
#: Notes an answer, for what it costs.
Note = Callable[[Any], None]
#: Makes what a caller is told of a failure, with the request's id.
Tell = Callable[[Failure, str], dict[str, Any]]


class Endpoint(ABC, Generic[A]):
    """An ASGI application that is one path; a caller that goes has its call cancelled.

    Args:
        surface: What is served.
        rpc: The RPC that it stands for.
        read: Reads what was sent, and gives what decodes it.
        tell: How failures are told.
    """

    def __init__(
        self, surface: Surface, rpc: str, read: Read[A], tell: Tell = failure_document
    ) -> None:
        self._surface = surface
        self._rpc = rpc
        self._read = read
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        call = HttpCall(scope, receive)
        work = asyncio.create_task(self._run(call, send), name=f"http {self._rpc}")
        running = self._surface.running
        running.add(work)
        try:
            await call.unless_gone(work)
        finally:
            running.discard(work)
            call.done()

    @abstractmethod
    async def _run(self, call: HttpCall, send: Send) -> None:
        """Answers a call."""

    @asynccontextmanager
    async def _let_in(self, call: HttpCall) -> AsyncIterator[tuple[A, Note]]:
        """What a caller asks who may ask it, and what notes the answer's cost.

        Raises:
            Failure: The caller is not let in, or the request is wrong.
        """
        entrance = self._surface.entrance
        caller = await entrance.admit(self._rpc, call)
        try:
            decode = await self._read(call)
        except BadBody as failure:
            call.http.status = failure.status
            raise
        decoded: list[A] = []

        def checked() -> Any:
            call.check()
            decoded.append(decode())
            return decoded[0].request

        async with entrance.charged(caller, checked) as (_, note):
            yield decoded[0], note

    async def _fail(self, call: HttpCall, send: Send, failure: Failure) -> None:
        await call.leave_body()
        headers = {REQUEST_ID_KEY: call.request_id, **failure_headers(failure)}
        if failure.reason is Reason.DRAINING:
            headers["connection"] = "close"
        await send_json(send, status_of(failure), self._tell(failure, call.request_id), headers)


def stopped() -> Failure:
    """What a caller is told who is still there when this server stops; nobody else hears it."""
    return Failure(Reason.DRAINING, "this server has stopped – retry, another will answer")


class Unary(Endpoint[A], Generic[A, Response]):
    """A call with one answer.

    Args:
        surface: What is served.
        rpc: The RPC that it stands for.
        read: Reads what was sent, and gives what decodes it.
        handle: Answers the contract's request.
        encode: Makes the answer's JSON.
        tell: How failures are told.
    """

    def __init__(
        self,
        surface: Surface,
        rpc: str,
        read: Read[A],
        handle: Callable[[Any, HttpCall], Awaitable[Response]],
        encode: Callable[[A, Response], Any],
        tell: Tell = failure_document,
    ) -> None:
        super().__init__(surface, rpc, read, tell)
        self._handle = handle
        self._encode = encode

    async def _run(self, call: HttpCall, send: Send) -> None:
        async def answer() -> Any:
            async with self._let_in(call) as (asked, note):
                response = await self._handle(asked.request, call)
                note(response)
                return self._encode(asked, response)

        try:
            outcome = await self._surface.envelope.run(self._rpc, call, answer, call.http)
        except asyncio.CancelledError:
            await self._fail(call, send, stopped())
            raise
        if outcome.failure is not None:
            await self._fail(call, send, outcome.failure)
        else:
            await send_json(send, 200, outcome.response, {REQUEST_ID_KEY: call.request_id})
