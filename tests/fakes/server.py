"""A scriptable HTTP server on loopback that has every byte under control."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import defaultdict, deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.fakes.openai import OpenAI
from tests.fakes.reply import Reply
from tests.fakes.request import Request, read_request
from tests.fakes.steps import play

#: How long whatever a test waits for may take, in seconds.
PATIENCE_S = 5.0
#: The path that stands for each one.
ANY = "*"

#: What answers a request that no script is there for.
Dialect = Callable[[Request], Reply]


class FakeServer:
    """A server that answers as scripted, else as its dialect does, and keeps what it saw.

    Attributes:
        requests: All requests, in the order they came.
        connections: How many connections were accepted.

    Args:
        dialect: How to answer where no script does; OpenAI's by default.
        port: 0 for any free one.
    """

    def __init__(
        self,
        dialect: Dialect | None = None,
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._dialect = dialect or OpenAI()
        self._port = port
        self._tls = tls
        self._scripts: defaultdict[str, deque[Reply]] = defaultdict(deque)
        self._always: dict[str, Reply] = {}
        self._changed = asyncio.Event()
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._errors: list[BaseException] = []

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """Its address as the OpenAI ecosystem writes it."""
        return f"{self.url}/v1"

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return len(self._open)

    def script(self, path: str, *replies: Reply) -> None:
        """Queues answers for a path (or `ANY`), one a request; then the dialect's follow."""
        self._scripts[path].extend(replies)

    def always(self, path: str, reply: Reply) -> None:
        """Gives each request for a path (or `ANY`) that no queued answer is left for this one."""
        self._always[path] = reply

    def forget(self) -> None:
        """Forgets all scripts: the dialect answers again."""
        self._scripts.clear()
        self._always.clear()

    async def arrived(self, count: int = 1) -> Request:
        """Waits until `count` requests have come in all; the last of these."""
        await self._until(lambda: len(self.requests) >= count, f"request {count}")
        return self.requests[count - 1]

    async def arrived_at(self, path: str) -> Request:
        """Waits until a request for a path has come; the first such."""

        def found() -> Request | None:
            return next((item for item in self.requests if item.path == path), None)

        await self._until(lambda: found() is not None, f"a request for {path}")
        request = found()
        assert request is not None
        return request

    async def client_gone(self, index: int = -1) -> float:
        """Waits until the client of a request has gone away before its answer ended; loop time."""
        request = self.requests[index]
        await self._until(request.gone.is_set, f"the client of request {index} to go away")
        assert request.gone_at is not None
        return request.gone_at

    async def settled(self, open_connections: int = 0) -> None:
        """Waits until so many connections are open."""
        what = f"{open_connections} open connections"
        await self._until(lambda: self.open_connections == open_connections, what)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self._port, ssl=self._tls
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        left = dict(self._open)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for writer in left.values():  # a task may have been cancelled before it closed its own
            await _abort(writer)
        await self._server.wait_closed()
        if error is None and self._errors:
            raise self._errors[0]  # a script that fails must not pass for an answer

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer, self.connections))
        self._open[task] = writer
        self._changed.set()
        task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        del self._open[task]
        self._changed.set()
        if not task.cancelled() and (error := task.exception()):
            self._errors.append(error)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        answer: asyncio.Task[bool] | None = None
        upcoming = asyncio.create_task(read_request(reader, number))
        try:
            while (request := await upcoming) is not None:
                self.requests.append(request)
                self._changed.set()
                # Reading on is how a client that goes away is noticed.
                upcoming = asyncio.create_task(read_request(reader, number))
                answer = asyncio.create_task(self._answer(request, writer))
                await asyncio.wait({answer, upcoming}, return_when=asyncio.FIRST_COMPLETED)
                if upcoming.done() and upcoming.result() is None and not answer.done():
                    request.leave()
                    break
                if not await answer:
                    writer.close()
                    break
        finally:
            tasks = [task for task in (answer, upcoming) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if writer.is_closing():  # what was written may still be on its way
                await _closed(writer)
            await _abort(writer)

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answers; whether the connection can be used again."""
        try:
            again = await play(self._reply(request).steps, writer)
        except ConnectionError:
            request.leave()
            return False
        request.answered.set()
        return again and request.headers.get("connection", "").lower() != "close"

    def _reply(self, request: Request) -> Reply:
        for path in (request.path, ANY):
            if self._scripts[path]:
                return self._scripts[path].popleft()
        for path in (request.path, ANY):
            if path in self._always:
                return self._always[path]
        return self._dialect(request)

    async def _until(self, true: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not true():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            seen = [f"{request.method} {request.path}" for request in self.requests]
            raise AssertionError(
                f"waited {PATIENCE_S} s in vain for {what}; {self.open_connections} connections "
                f"are open, requests seen: {seen}"
            ) from None


async def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Waits until a connection is closed; cancelling this leaves others who wait alone."""
    with contextlib.suppress(OSError):
        await asyncio.shield(writer.wait_closed())
