"""How the async chat stream ends, on a call that is a fake."""

from __future__ import annotations

import asyncio
import threading

import pytest

from atmosphere_client import AsyncChatStream, CallCancelledError

PATIENCE = 10  # seconds after which a test that waits in vain fails


class Call:
    """A call that never has an event; its reader is freed as grpc.aio frees it.

    Attributes:
        reading: Set when somebody reads.
        cancelled: Set when the call was cancelled.
        thread: The thread that cancelled it.
    """

    def __init__(self) -> None:
        self.reading = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.thread = 0

    async def read(self) -> object:
        self.reading.set()
        await self.cancelled.wait()
        raise asyncio.CancelledError

    def cancel(self) -> None:
        self.thread = threading.get_ident()
        self.cancelled.set()


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE):
        await event.wait()


async def test_a_stream_that_is_dropped_on_another_thread_is_cancelled_on_its_own() -> None:
    call = Call()
    streams = [AsyncChatStream(call)]
    await asyncio.to_thread(streams.clear)
    await soon(call.cancelled)
    assert call.thread == threading.get_ident()


def test_a_stream_that_outlives_its_loop_is_dropped_quietly() -> None:
    async def make() -> AsyncChatStream:
        return AsyncChatStream(Call())

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(make())
    loop.close()
    del stream


async def test_a_reader_learns_that_another_task_cancelled_the_stream() -> None:
    call = Call()
    stream = AsyncChatStream(call)
    task = asyncio.ensure_future(stream.result())
    await soon(call.reading)
    stream.cancel()
    with pytest.raises(CallCancelledError, match="closed before its end"):
        await task


async def test_a_reader_that_is_cancelled_is_not_kept_and_cancels_the_call() -> None:
    call = Call()
    stream = AsyncChatStream(call)
    task = asyncio.ensure_future(stream.result())
    await soon(call.reading)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.cancelled.is_set()
    with pytest.raises(CallCancelledError, match="the task that read the stream"):
        await stream.result()
