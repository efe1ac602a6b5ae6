"""How the cost of this service grows: with open streams, with calls at a time, with the prompt."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.checking import check
from benchmarks.figures import exponent, percentile
from benchmarks.load import PATIENCE_S, Load, begun, output, run, sample
from benchmarks.servers import Server, backend, service
from benchmarks.tools import Tools
from benchmarks.usage import cpu_s, rss_bytes

SLOW_TOKENS, SLOW_PACE_MS = 30, 1000
#: How many streams wait for their first token at a time, while they are opened.
OPENING = 32
#: Callers share connections, as those of a few programs do.
A_CONNECTION = 100
CALLS_AT_A_TIME = (1, 10, 100, 1000)
PROMPT_BYTES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
SAMPLE_S = 0.25


@contextmanager
def alone(tools: Tools, concurrency: int) -> Iterator[Server]:
    """This service, fresh, with room for so many calls at a time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with (
            backend(tools.mock, path) as mock,
            service(path, mock.port, concurrency=concurrency) as server,
        ):
            if wrong := check(server):
                raise AssertionError(wrong)
            yield server


def streams(tools: Tools, count: int) -> Mapping[str, Any]:
    """Many slow streams at a time: memory, and whether one of them starves."""
    with alone(tools, count) as server:
        base = rss_bytes(server.pid)
        request = server.request("slow", stream=True)
        load = Load(SLOW_TOKENS, count, min(count, A_CONNECTION), calls=count, opening=OPENING)
        before = cpu_s(server.pid)
        peak, until, out = base, time.monotonic() + PATIENCE_S, None
        with begun(tools, server, request, load) as client:
            while out is None and time.monotonic() < until:
                peak = max(peak, rss_bytes(server.pid))
                out = output(client, SAMPLE_S)
        taken = sample(out, cpu_s(server.pid) - before)
        return {
            "streams": count,
            "whole": taken.calls,
            "at_once": taken.peak,
            "failed": taken.failed,
            "reason": taken.reason,
            "base_mb": base / 1e6,
            "peak_mb": peak / 1e6,
            "pace_ms": SLOW_PACE_MS,
            "max_gap_ms": max(taken.gap_us, default=0.0) / 1e3,
            "p99_gap_ms": percentile(taken.gap_us, 0.99) / 1e3 if taken.gap_us else None,
            "max_first_ms": max(taken.first_us, default=0.0) / 1e3,
            "token_us": taken.token_us(SLOW_TOKENS),
        }


def calls_at_a_time(tools: Tools, seconds: float) -> Mapping[str, Any]:
    """The cost of a call, by how many run at a time."""
    costs: dict[float, float] = {}
    trouble: list[str] = []
    with alone(tools, max(CALLS_AT_A_TIME)) as server:
        request = server.request("instant", stream=False)
        run(tools, server, request, Load(at_a_time=32, seconds=seconds))
        for count in CALLS_AT_A_TIME:
            load = Load(at_a_time=count, a_connection=min(count, A_CONNECTION), seconds=seconds)
            taken = run(tools, server, request, load)
            _keep(costs, trouble, count, taken.call_us, taken.reason)
    return _grown(costs, trouble)


def prompts(tools: Tools, seconds: float) -> Mapping[str, Any]:
    """The cost of a call, by the bytes of its prompt."""
    costs: dict[float, float] = {}
    trouble: list[str] = []
    with alone(tools, 32) as server:
        for size in PROMPT_BYTES:
            prompt = ("What is 2+2? " * (size // 13 + 1))[:size]
            request = server.request("instant", stream=False, prompt=prompt)
            run(tools, server, request, Load(calls=5))
            taken = run(tools, server, request, Load(seconds=seconds))
            _keep(costs, trouble, size, taken.call_us, taken.reason)
    return _grown(costs, trouble)


def _keep(
    costs: dict[float, float], trouble: list[str], size: int, cost: float | None, reason: str
) -> None:
    if cost is None:
        trouble.append(f"{size}: {reason}")
    else:
        costs[size] = cost


def _grown(costs: Mapping[float, float], trouble: Sequence[str]) -> Mapping[str, Any]:
    return {
        "us": {str(size): cost for size, cost in costs.items()},
        "exponent": exponent(costs),
        "trouble": list(trouble),
    }
