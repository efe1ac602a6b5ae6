"""Traffic for a long time, of which much is cancelled: does memory grow, is a permit lost?"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import httpx

from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionStub
from benchmarks.checking import check
from benchmarks.figures import growth
from benchmarks.machine import facts
from benchmarks.scale import alone
from benchmarks.servers import PROMPT, Server
from benchmarks.tools import Tools
from benchmarks.usage import rss_bytes

if TYPE_CHECKING:
    from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionAsyncStub

CALLERS = 16
CANCELLED = 0.3
#: Within which a call that is to be cancelled is: while a paced answer takes 320 ms.
PATIENCE_S = 0.3
SAMPLE_S = 0.5
#: What must be 0 when nobody calls any more.
HELD = ("atmosphere_integration_running", "atmosphere_queue_length", "atmosphere_calls_in_flight")


@dataclass
class Tally:
    """What came of the calls."""

    whole: int = 0
    cancelled: int = 0
    failed: int = 0
    reasons: list[str] = field(default_factory=list)


def soak(tools: Tools, seconds: float) -> Mapping[str, Any]:
    """The traffic, and what was left of it."""
    machine = facts()
    with alone(tools, CALLERS * 2) as server:
        tally, samples = asyncio.run(_traffic(server, seconds))
        time.sleep(1.0)
        left = held(_metrics(server))
        wrong = check(server)
    return {
        "date": machine["date"],
        "commit": machine["commit"],
        "seconds": seconds,
        "whole": tally.whole,
        "cancelled": tally.cancelled,
        "failed": tally.failed,
        "reasons": tally.reasons,
        "first_mb": samples[0] / 1e6,
        "last_mb": samples[-1] / 1e6,
        "growth": growth(samples),
        "left": left,
        "after": wrong,
    }


def held(metrics: str) -> Mapping[str, float]:
    """What is still held, by the text of the metrics' endpoint."""
    found: dict[str, float] = {}
    for line in metrics.splitlines():
        name, _, value = line.rpartition(" ")
        family = name.partition("{")[0]
        if family in HELD:
            found[family] = found.get(family, 0.0) + float(value)
    if missing := set(HELD) - set(found):
        raise AssertionError(f"the metrics do not say: {missing}")
    return found


def _metrics(server: Server) -> str:
    return httpx.get(_address(server.metrics), timeout=10).raise_for_status().text


def _address(told: str) -> str:
    address = told if told.startswith("http") else f"http://{told}"
    return address if address.endswith("/metrics") else f"{address}/metrics"


async def _traffic(server: Server, seconds: float) -> tuple[Tally, list[float]]:
    tally, samples = Tally(), list[float]()
    until = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = ExecutionStub(channel)

        async def watch() -> None:
            while time.monotonic() < until:
                samples.append(float(rss_bytes(server.pid)))
                await asyncio.sleep(SAMPLE_S)

        callers = (_caller(stub, server, until, seed, tally) for seed in range(CALLERS))
        await asyncio.gather(watch(), *callers)
    return tally, samples


async def _caller(
    stub: ExecutionAsyncStub, server: Server, until: float, seed: int, tally: Tally
) -> None:
    draw = random.Random(seed)  # noqa: S311 - the same each time
    metadata = (("authorization", server.headers["authorization"]),)
    while time.monotonic() < until:
        patience = draw.uniform(0, PATIENCE_S) if draw.random() < CANCELLED else None
        call: Any
        if draw.random() < 0.3:
            unary = execution_pb2.ExecuteRequest(intent=PROMPT, model="paced")
            call = stub.Execute(unary, metadata=metadata)
            reading = asyncio.ensure_future(_whole(call))
        else:
            chat = chat_pb2.ChatRequest(model=draw.choice(["paced", "burst64"]))
            chat.messages.add(role="user", content=PROMPT)
            call = stub.Chat(chat, metadata=metadata)
            reading = asyncio.ensure_future(_streamed(call))
        await asyncio.wait({reading}, timeout=patience)
        call.cancel()  # does nothing to one that is over
        (outcome,) = await asyncio.gather(reading, return_exceptions=True)
        code = await call.code()
        if code is grpc.StatusCode.CANCELLED and patience is not None:
            tally.cancelled += 1
        elif code is grpc.StatusCode.OK and outcome == 64:
            tally.whole += 1
        else:
            tally.failed += 1
            if len(tally.reasons) < 3:
                tally.reasons.append(f"{code}, {outcome!r}"[:200])


async def _whole(call: Any) -> int:
    content: str = (await call).data.message.content
    return content.count("token ")


async def _streamed(call: Any) -> int:
    count = 0
    async for event in call:
        count += event.delta.content.count("token ")
    return count
