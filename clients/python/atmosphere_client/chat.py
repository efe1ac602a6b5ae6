"""A chat as it streams: iterate over it, or ask for its result."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, Self

from atmosphere_grpc.v1 import chat_pb2

from ._assembly import Assembly, ChatResult
from .errors import AtmosphereError, broken, cancelled, translated

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["AsyncChatStream", "ChatResult", "ChatStream"]


class _Call(Protocol):
    """What a stream needs of a sync call."""

    def __next__(self) -> chat_pb2.ChatResponse: ...
    def cancel(self) -> object: ...


class _AsyncCall(Protocol):
    """What a stream needs of an async call."""

    async def read(self) -> object: ...
    def cancel(self) -> object: ...


class ChatStream(Assembly):
    """An answer that streams in; yields ``(text so far, delta)`` for each delta.

    Use it as a context manager: leaving it before the end cancels the call, and with
    it the model's work. A stream that is dropped is cancelled as well.

        with client.chat("Why is the sky blue?") as stream:
            for text, delta in stream:
                print(delta.content, end="", flush=True)

    What it has put together so far is in `text`, `reasoning`, `tool_calls`, `message`,
    `started`, `progress` and `completed`.

    Raises:
        AtmosphereError: In iteration, the call failed. What came before stays, and
            iterating on raises it again: a broken answer never looks like a whole one.
    """

    def __init__(
        self, call: _Call, on_progress: Callable[[chat_pb2.Progress], None] | None = None
    ) -> None:
        super().__init__(on_progress)
        self._call = call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[str, chat_pb2.Delta]:
        while self._more():
            try:
                with translated():
                    event = next(self._call, None)
            except AtmosphereError as error:
                raise self._fail(error) from error.__cause__
            if event is None:
                self._end()
            elif (delta := self._apply(event)) is not None:
                return self.text, delta
        raise StopIteration

    def result(self) -> ChatResult:
        """Reads to the end and returns the whole answer.

        Raises:
            AtmosphereError: The call failed, or was closed before its end.
        """
        for _ in self:
            pass
        return self._result()

    def cancel(self) -> None:
        """Ends the call, from any thread. Does nothing when it has ended."""
        if self._abandon():
            self._call.cancel()

    def close(self) -> None:
        """Ends the call, as `cancel`."""
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncChatStream(Assembly):
    """An answer that streams in; yields ``(text so far, delta)`` for each delta.

    Use it as a context manager: leaving it before the end cancels the call, and with
    it the model's work. A stream that is dropped, or whose reading task is cancelled,
    is cancelled as well.

        async with client.chat("Why is the sky blue?") as stream:
            async for text, delta in stream:
                print(delta.content, end="", flush=True)

    What it has put together so far is in `text`, `reasoning`, `tool_calls`, `message`,
    `started`, `progress` and `completed`.

    Raises:
        AtmosphereError: In iteration, the call failed. What came before stays, and
            iterating on raises it again: a broken answer never looks like a whole one.
    """

    def __init__(
        self, call: _AsyncCall, on_progress: Callable[[chat_pb2.Progress], None] | None = None
    ) -> None:
        super().__init__(on_progress)
        self._call = call
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[str, chat_pb2.Delta]:
        while self._more():
            event = await self._read()
            if event is None:
                self._end()
            elif (delta := self._apply(event)) is not None:
                return self.text, delta
        raise StopAsyncIteration

    async def _read(self) -> chat_pb2.ChatResponse | None:
        """Returns the next event, or None at the end."""
        try:
            with translated():
                event = await self._call.read()
        except AtmosphereError as error:
            raise self._fail(error) from error.__cause__
        except asyncio.CancelledError:
            self._fail(cancelled("the task that read the stream was cancelled"))
            self._call.cancel()
            raise
        if event is None:  # grpc.aio's answer to a message that it cannot decode
            self._call.cancel()
            raise self._fail(broken("RESPONSE_UNREADABLE", "an event cannot be decoded"))
        return event if isinstance(event, chat_pb2.ChatResponse) else None

    async def result(self) -> ChatResult:
        """Reads to the end and returns the whole answer.

        Raises:
            AtmosphereError: The call failed, or was closed before its end.
        """
        async for _ in self:
            pass
        return self._result()

    def cancel(self) -> None:
        """Ends the call. Does nothing when it has ended."""
        if self._abandon():
            self._call.cancel()

    async def close(self) -> None:
        """Ends the call, as `cancel`."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # The collector may run in any thread, and grpc.aio belongs to the loop's.
        if self._abandon() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._call.cancel)
