"""The client of load.c in Python, for where that cannot be compiled: same arguments, same JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx

NEEDLE = b"token "
FRAME_PREFIX = 5

#: A call: the pieces of its answer.
Call = Callable[[], AsyncIterator[bytes]]


@dataclass
class Told:
    """What is printed."""

    calls: int = 0
    failed: int = 0
    seconds: float = 0.0
    reason: str = ""
    latency_us: list[float] = field(default_factory=list)
    first_us: list[float] = field(default_factory=list)
    gap_us: list[float] = field(default_factory=list)
    peak: int = 0


class Gate:
    """Lets so many calls wait for their first token at a time, and counts those that answer.

    Args:
        room: How many may.
    """

    def __init__(self, room: int) -> None:
        self._room = asyncio.Semaphore(room)
        self._answering = 0
        self.peak = 0

    async def enter(self) -> None:
        """Waits for a place."""
        await self._room.acquire()

    def first_token(self) -> None:
        """A call has its first token."""
        self._room.release()
        self._answering += 1
        self.peak = max(self.peak, self._answering)

    def over(self, *, answered: bool) -> None:
        """A call is over."""
        if answered:
            self._answering -= 1
        else:
            self._room.release()


async def _one(call: Call, wanted: int, told: Told, gate: Gate) -> None:
    await gate.enter()
    began, last, gap, count, tail = time.perf_counter(), 0.0, 0.0, 0, b""
    first = 0.0
    try:
        async for piece in call():
            data = tail + piece
            found = data.count(NEEDLE)
            tail = data[data.rfind(NEEDLE) + len(NEEDLE) if found else 0 :][-5:]
            if not found:
                continue
            now = time.perf_counter()
            if not first:
                gate.first_token()
            first, gap = first or now, max(gap, now - last if last else 0.0)
            last, count = now, count + found
        wrong = "" if count == wanted else f"{count} tokens instead of {wanted}"
    except (grpc.RpcError, httpx.HTTPError) as error:
        wrong = f"{type(error).__name__}: {error}"[:200]
    gate.over(answered=bool(first))
    if wrong:
        told.failed += 1
        told.reason = told.reason or wrong
        return
    told.calls += 1
    told.latency_us.append((time.perf_counter() - began) * 1e6)
    told.first_us.append((first - began) * 1e6)
    told.gap_us.append(gap * 1e6)


def _grpc_call(
    channel: grpc.aio.Channel, path: str, body: bytes, metadata: Sequence[tuple[str, str]]
) -> Call:
    method: Any = channel.unary_stream(path)  # one answer is a stream of one, on the wire

    async def call() -> AsyncIterator[bytes]:
        async for message in method(body[FRAME_PREFIX:], metadata=metadata):
            yield message

    return call


def _http_call(
    client: httpx.AsyncClient, url: str, body: bytes, headers: Sequence[tuple[str, str]]
) -> Call:
    async def call() -> AsyncIterator[bytes]:
        async with client.stream("POST", url, content=body, headers=dict(headers)) as answer:
            answer.raise_for_status()
            async for piece in answer.aiter_raw():
                yield piece

    return call


async def main(given: Sequence[str]) -> None:
    """Calls as it is told, and prints what came of it."""
    protocol, host, port, path = given[:4]
    lines = (await asyncio.to_thread(Path(given[4]).read_text)).splitlines()
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    body = await asyncio.to_thread(Path(given[5]).read_bytes)
    at_a_time, a_connection, limit, wanted = (int(given[i]) for i in (6, 7, 9, 10))
    gate = Gate(int(given[11]) or at_a_time)
    seconds, told, begun = float(given[8]), Told(), 0
    started = time.perf_counter()

    async def caller(call: Call) -> None:
        nonlocal begun
        while not (limit and begun >= limit) and (
            not seconds or time.perf_counter() - started < seconds
        ):
            begun += 1
            await _one(call, wanted, told, gate)

    async with AsyncExitStack() as stack:
        calls: list[Call] = []
        own = ("content-type", "te")
        metadata = [item for item in headers if item[0] not in own]
        for i in range(at_a_time):
            if protocol != "grpc":
                client = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
                calls.append(_http_call(client, f"http://{host}:{port}{path}", body, headers))
                continue
            if i % a_connection == 0:
                options = [("grpc.use_local_subchannel_pool", 1)]
                channel = await stack.enter_async_context(
                    grpc.aio.insecure_channel(f"{host}:{port}", options)
                )
            calls.append(_grpc_call(channel, path, body, metadata))
        await asyncio.gather(*map(caller, calls))
    told.peak = gate.peak
    told.seconds = time.perf_counter() - started
    print(json.dumps(vars(told)))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
