"""What a server is asked for while its CPU is counted, each answer checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from benchmarks.backend import PACED, TOKENS, WHOLE

if TYPE_CHECKING:
    from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionAsyncStub

CONCURRENCY = 32
TEXT = "token " * TOKENS
EXECUTE = execution_pb2.ExecuteRequest(intent="What is 2+2?", model=WHOLE)

#: Asks; gives the seconds that each call took, and how many units the CPU is divided by.
Load: TypeAlias = "Callable[[ExecutionAsyncStub], Awaitable[tuple[list[float], int]]]"


async def _at_a_time(
    concurrency: int, times: int, ask: Callable[[], Awaitable[str]]
) -> list[float]:
    """Asks so often, so many at a time; gives the seconds of each."""
    seconds: list[float] = []

    async def caller() -> None:
        for _ in range(times // concurrency):
            began = time.perf_counter()
            text = await ask()
            seconds.append(time.perf_counter() - began)
            if text != TEXT:
                raise AssertionError("a wrong answer")

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return seconds


def unary(calls: int, concurrency: int) -> Load:
    """Whole answers; the unit is a call."""

    async def load(stub: ExecutionAsyncStub) -> tuple[list[float], int]:
        async def ask() -> str:
            return (await stub.Execute(EXECUTE)).data.message.content

        seconds = await _at_a_time(concurrency, calls, ask)
        return seconds, len(seconds)

    return load


def streams(count: int, model: str, max_delay_ms: int = 0) -> Load:
    """Streams of 64 tokens; the unit is a token."""
    request = chat_pb2.ChatRequest(
        model=model,
        messages=[chat_pb2.Message(role="user", content="What is 2+2?")],
        stream=chat_pb2.StreamOptions(max_delay_ms=max_delay_ms),
    )

    async def load(stub: ExecutionAsyncStub) -> tuple[list[float], int]:
        async def ask() -> str:
            return "".join([event.delta.content async for event in stub.Chat(request)])

        seconds = await _at_a_time(CONCURRENCY, count, ask)
        return seconds, len(seconds) * TOKENS

    return load


#: By name; what is measured is CPU of the server a unit, in microseconds.
LOADS: dict[str, Load] = {
    "u1": unary(1000, 1),
    "u32": unary(1600, CONCURRENCY),
    "a32": streams(320, WHOLE),
    "b32": streams(192, PACED),
    "b32_20ms": streams(192, PACED, 20),
}
#: The same in words.
MEANING = {
    "u1": "a call, one at a time",
    "u32": "a call, 32 at a time",
    "a32": "a token, 32 streams at once",
    "b32": "a token, 32 streams of 5 ms a token",
    "b32_20ms": "the same with max_delay_ms 20",
}
WARM = unary(320, CONCURRENCY)
