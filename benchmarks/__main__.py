"""Measures this service beside the floor, in turn, in one run: ratios hold on a noisy machine.

CPU is that of the server's process, latency that of one caller at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import psutil
from rich.console import Console
from rich.table import Table

from atmosphere_grpc.v1 import chat_pb2, execution_pb2
from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionStub
from benchmarks.backend import TOKENS

if TYPE_CHECKING:
    from atmosphere_grpc.v1.execution_pb2_grpc import ExecutionAsyncStub

ROUNDS = 3
CALLS = 1500
STREAMS = 400
CONCURRENCY = 32
REQUEST = execution_pb2.ExecuteRequest(intent="What is 2+2?")
CHAT = chat_pb2.ChatRequest(messages=[chat_pb2.Message(role="user", content="What is 2+2?")])


@dataclass
class Figures:
    """What was measured of a server, a figure a round."""

    latency_ms: list[float] = field(default_factory=list)
    cpu_1_us: list[float] = field(default_factory=list)
    cpu_32_us: list[float] = field(default_factory=list)
    token_us: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


@contextlib.contextmanager
def process(*command: str, **environment: str) -> Iterator[tuple[psutil.Process, str]]:
    """Runs a server; gives it and its first line."""
    running = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert running.stdout is not None
        yield psutil.Process(running.pid), running.stdout.readline().strip()
    finally:
        running.kill()
        running.wait()


def cpu_s(server: psutil.Process) -> float:
    """CPU seconds that a process has used."""
    times = server.cpu_times()
    return times.user + times.system


async def unary(stub: ExecutionAsyncStub, calls: int, concurrency: int) -> list[float]:
    """Makes calls, so many at a time; gives the seconds of each. Checks each answer."""
    seconds: list[float] = []

    async def caller() -> None:
        for _ in range(calls // concurrency):
            began = time.perf_counter()
            answer = await stub.Execute(REQUEST)
            seconds.append(time.perf_counter() - began)
            if len(answer.data.message.content) != len("token ") * TOKENS:
                raise AssertionError("a wrong answer")

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return seconds


async def streams(stub: ExecutionAsyncStub) -> None:
    """Reads streams to their end, so many at a time. Checks each answer."""

    async def caller() -> None:
        for _ in range(STREAMS // CONCURRENCY):
            text = ""
            async for event in stub.Chat(CHAT):
                text += event.delta.content
            if text != "token " * TOKENS:
                raise AssertionError("a wrong answer")

    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))


async def measure(line: str, server: psutil.Process, figures: Figures, *, chats: bool) -> None:
    """One round of one server."""
    address = line.partition("grpc=")[2].split()[0]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ExecutionStub(channel)
        await unary(stub, CALLS // 5, CONCURRENCY)  # warm
        before = cpu_s(server)
        seconds = await unary(stub, CALLS, 1)
        figures.latency_ms.append(statistics.median(seconds) * 1e3)
        figures.cpu_1_us.append((cpu_s(server) - before) / len(seconds) * 1e6)
        before = cpu_s(server)
        seconds = await unary(stub, CALLS, CONCURRENCY)
        figures.cpu_32_us.append((cpu_s(server) - before) / len(seconds) * 1e6)
        if chats:
            before = cpu_s(server)
            await streams(stub)
            tokens = STREAMS // CONCURRENCY * CONCURRENCY * TOKENS
            figures.token_us.append((cpu_s(server) - before) / tokens * 1e6)
        figures.rss_mb.append(server.memory_info().rss / 1e6)


async def run() -> dict[str, Figures]:
    """Every round: the floor, then this service, each alone."""
    results = {"grpc.aio from memory (the floor)": Figures(), "atmosphere-grpc": Figures()}
    floor, service = results.values()
    with tempfile.TemporaryDirectory() as folder, process("-m", "benchmarks.backend") as backend:
        config = Path(folder) / "atmosphere.yaml"
        config.write_text(
            f"integrations: [{{id: bench, base_urls: ['http://127.0.0.1:{backend[1]}/v1']}}]\n"
            f"state_dir: {folder}\nlisten: 127.0.0.1:0\n"
            "metrics: {listen: 127.0.0.1:0}\nhttp: {enabled: false}\n"
        )
        for _ in range(ROUNDS):
            with process("-m", "benchmarks.floor") as (server, line):
                await measure(line, server, floor, chats=False)
            command = ("-m", "atmosphere_grpc", "serve", "--config", str(config))
            with process(*command) as (server, line):
                await measure(line, server, service, chats=True)
    return results


def main() -> None:
    """Measures, and prints a table of medians."""
    results = asyncio.run(run())
    table = Table(
        title=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, grpcio {grpc.__version__}; medians of {ROUNDS} rounds"
    )
    for heading in ("", "p50 ms", "µs CPU/call c=1", "c=32", "µs CPU/token", "RSS MB"):
        table.add_column(heading)
    for name, figures in results.items():
        cells = [
            f"{statistics.median(values):.2f}" if values else "–"
            for values in vars(figures).values()
        ]
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
