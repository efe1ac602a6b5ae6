"""The client's runs: one server, one kind of call, so many at a time, checked and timed."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.servers import Request, Server
from benchmarks.tools import Tools
from benchmarks.usage import cpu_s

PATIENCE_S = 180


@dataclass(frozen=True)
class Load:
    """What the client does.

    Attributes:
        tokens: How many an answer must hold.
        at_a_time: How many calls are open at any time.
        a_connection: How many of them share one; always 1 with HTTP/1.1.
        seconds: For how long new ones are begun; 0: as long as `calls` has it.
        calls: How many at most; 0: as many as `seconds` allows.
        opening: How many may wait for their first token at the beginning; 0: all.
    """

    tokens: int = 64
    at_a_time: int = 1
    a_connection: int = 1
    seconds: float = 0.0
    calls: int = 0
    opening: int = 0


@dataclass(frozen=True)
class Sample:
    """What a run gave; times in µs, of each call that was right.

    Attributes:
        calls: How many were right.
        failed: How many were not.
        reason: What was wrong with the first of these.
        seconds: How long it took.
        cpu_s: What the server used.
        latency_us: From the begin of a call to its end.
        first_us: To its first token.
        gap_us: The longest pause between two tokens.
        peak: How many had begun to answer at the same time, at most.
    """

    calls: int
    failed: int
    reason: str
    seconds: float
    cpu_s: float
    latency_us: Sequence[float] = field(repr=False)
    first_us: Sequence[float] = field(repr=False)
    gap_us: Sequence[float] = field(repr=False)
    peak: int = 0

    @property
    def call_us(self) -> float | None:
        """CPU a call; None where one failed, since its share is not known."""
        return None if self.failed or not self.calls else self.cpu_s / self.calls * 1e6

    def token_us(self, tokens: int) -> float | None:
        """CPU a token, of answers of so many."""
        return None if self.call_us is None else self.call_us / tokens


@contextmanager
def begun(
    tools: Tools, server: Server, request: Request, load: Load
) -> Iterator[subprocess.Popen[str]]:
    """A client that runs, for those who look at the server meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        headers, body = Path(folder) / "headers", Path(folder) / "body"
        headers.write_text("".join(f"{name}: {value}\n" for name, value in server.headers.items()))
        body.write_bytes(request.body)
        arguments: list[Any] = [server.protocol, "127.0.0.1", server.port, request.path]
        arguments += [headers, body, load.at_a_time, load.a_connection, load.seconds]
        arguments += [load.calls, load.tokens, load.opening]
        client = subprocess.Popen(  # noqa: S603 - our own program
            [*tools.load, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        try:
            yield client
        finally:
            client.kill()
            client.communicate()


def output(client: subprocess.Popen[str], within_s: float) -> str | None:
    """What a client printed; None while it is not done."""
    try:
        return client.communicate(timeout=within_s)[0]
    except subprocess.TimeoutExpired:
        return None


def run(tools: Tools, server: Server, request: Request, load: Load) -> Sample:
    """A run, and what it cost the server."""
    before = cpu_s(server.pid) if server.pid else 0.0
    with begun(tools, server, request, load) as client:
        out = output(client, PATIENCE_S)
    used = cpu_s(server.pid) - before if server.pid else 0.0
    return sample(out, used)


def sample(out: str | None, used_s: float) -> Sample:
    """What the client said of its run."""
    if out is None:
        return Sample(0, 1, f"not done after {PATIENCE_S} s", PATIENCE_S, used_s, (), (), ())
    if not out:
        return Sample(0, 1, "the client could not connect", 0, used_s, (), (), ())
    return Sample(cpu_s=used_s, **json.loads(out))
