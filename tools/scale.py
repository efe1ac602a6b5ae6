"""What many streams need, by what the committed run of `make bench` measured of one core.

The tables of docs/scale.md, which therefore change with `benchmarks/results.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results.json"
SERVICE = "atmosphere-grpc"

#: Tokens a second that a caller reads, those of an answer, and how much of a core is used before
#: latency grows.
TOKENS_PER_S = 30
ANSWER_TOKENS = 500
CALLS_PER_S = TOKENS_PER_S / ANSWER_TOKENS
LOAD = 0.6
STREAMS = (1_000, 100_000, 1_000_000)
MILLION = STREAMS[-1]

#: Rules of thumb: tokens a second of an accelerator; which part of the cores Envoy takes, and how
#: many it has each; ports of an address to another; series of a process; bytes of a log line.
ACCELERATOR = 10_000
ENVOY_SHARE, ENVOY_CORES = 0.1, 8
PORTS = 28_000
SERIES = 300
LINE_BYTES = 500


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one process.

    Attributes:
        call_us: CPU of a unary call.
        token_us: CPU of a token of a stream, a message of its own.
        joined_us: The same where three or four share a message.
        process_mb: Memory of a process that does nothing.
        stream_kb: Memory of a stream that is open.
    """

    call_us: float
    token_us: float
    joined_us: float
    process_mb: float
    stream_kb: float

    def streams_each(self, token_us: float) -> float:
        """How many streams a process carries."""
        return LOAD * 1e6 / self.stream_us(token_us)

    def stream_us(self, token_us: float) -> float:
        """CPU of a stream, a second."""
        return TOKENS_PER_S * token_us + CALLS_PER_S * self.call_us


def measured(path: Path = RESULTS) -> Figures:
    """The figures of a run.

    Raises:
        SystemExit: The run did not measure all of them.
    """
    run = json.loads(path.read_text())
    figures = run["servers"][SERVICE]["figures"]
    slow = max(run["streams"], key=lambda item: item["at_once"], default=None)
    if not slow or slow["token_us"] is None or not {"u32_us", "b32_joined_us"} <= figures.keys():
        raise SystemExit(f"{path.name} lacks figures of docs/scale.md: run make bench as a whole")
    return Figures(
        call_us=figures["u32_us"],
        token_us=slow["token_us"],
        joined_us=figures["b32_joined_us"],
        process_mb=slow["base_mb"],
        stream_kb=(slow["peak_mb"] - slow["base_mb"]) * 1e3 / slow["at_once"],
    )


def one(figures: Figures) -> Iterator[tuple[str, str]]:
    """What was measured of a process."""
    yield "CPU of a unary call", f"{figures.call_us:,.0f} µs"
    yield "CPU of a token, a message of its own", f"{figures.token_us:,.0f} µs"
    yield "CPU of a token, three or four in a message", f"{figures.joined_us:,.0f} µs"
    yield "memory at rest", f"{figures.process_mb:,.0f} MB"
    yield "memory of an open stream", f"{figures.stream_kb:,.0f} kB"


def many(figures: Figures) -> Iterator[tuple[str, ...]]:
    """What so many streams need."""
    for streams in STREAMS:
        for held, token_us in (("one", figures.token_us), ("3 or 4", figures.joined_us)):
            each = figures.streams_each(token_us)
            processes = math.ceil(streams / each)
            memory_gb = processes * figures.process_mb / 1e3 + streams * figures.stream_kb / 1e6
            yield (
                f"{streams:,}",
                held,
                f"{streams * figures.stream_us(token_us) / 1e6:,.0f}",
                f"{processes:,}",
                f"{each:,.0f}",
                f"{memory_gb:,.1f} GB",
                f"{streams * TOKENS_PER_S:,}",
            )


def beside(figures: Figures) -> Iterator[tuple[str, str]]:
    """What a million streams, of a token a message, need beside it, by rules of thumb."""
    each = figures.streams_each(figures.token_us)
    processes = math.ceil(MILLION / each)
    accelerators = MILLION * TOKENS_PER_S // ACCELERATOR
    envoy_cores = ENVOY_SHARE * processes
    envoys = math.ceil(envoy_cores / ENVOY_CORES)
    yield (
        "models",
        f"{_round(accelerators)} accelerators that give {ACCELERATOR:,} tokens a second each; "
        f"{_round(processes / accelerators)} cores of this for each of them.",
    )
    yield (
        "Envoy",
        f"A message costs it some µs: a tenth of the cores, here {_round(envoy_cores)}, in "
        f"{_round(envoys)} instances of {ENVOY_CORES}.",
    )
    yield (
        "connections to Envoy",
        f"One a caller at worst: {MILLION:,} sockets, {_round(MILLION / envoys)} an Envoy, of "
        "which each takes some 10 kB. An L4 balancer, or DNS, spreads them.",
    )
    yield (
        "Envoy to replicas",
        f"Each of its {ENVOY_CORES} threads has a connection to each replica that it has asked: up "
        f"to {_round(envoys * ENVOY_CORES)} a replica. Subsets of replicas (an Envoy a cell) keep "
        "that down.",
    )
    yield (
        "replicas to backends",
        f"A socket a stream: {_round(each)} a process. Ephemeral ports, {PORTS:,} to an address "
        f"and port, bind where {_round(PORTS / each)} processes share an address; pods have their "
        "own.",
    )
    yield (
        "open files",
        f"These together: up to {_round(envoys * ENVOY_CORES + each)} a process. It takes as many "
        "as the hard limit allows.",
    )
    yield (
        "health checks",
        f"{_round(envoys)} Envoys × {_round(processes)} replicas, each second: "
        f"{_round(envoys)} a replica, some per cent of its core. Longer intervals, or cells.",
    )
    yield (
        "metrics",
        f"Some {SERIES} series a process: {_round(SERIES * processes)}. A Prometheus a cell, and "
        "recording rules.",
    )
    lines_per_s = MILLION * CALLS_PER_S
    yield (
        "logs",
        f"A line a call. A stream of {ANSWER_TOKENS} tokens lasts {1 / CALLS_PER_S:.0f} s: "
        f"{_round(lines_per_s)} lines a second, {_round(lines_per_s * LINE_BYTES / 1e6)} MB/s. "
        "Sample or drop them.",
    )


def _round(value: float) -> str:
    """With two digits: no rule of thumb knows more."""
    digits = max(0, math.floor(math.log10(value)) - 1)
    return f"{round(value, -digits):,.0f}"
