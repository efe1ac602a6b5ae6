"""What a million streams need, by what was measured of one core: the table of docs/scale.md.

The figures are those of `benchmarks/RESULTS.json`, of its object `scale`, where that has them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "benchmarks" / "RESULTS.json"

#: Tokens a second that a caller reads, those of an answer, and how much of a core is used before
#: latency grows.
TOKENS_PER_S = 30
ANSWER_TOKENS = 500
LOAD = 0.6
#: Streams of one machine's cores that a process is given, at most: its connections to an endpoint.
CONNECTIONS = 1024


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one process.

    Attributes:
        call_us: CPU of a unary call.
        token_us: CPU of a token of a stream.
        process_mb: Memory of a process that does nothing.
        stream_kb: Memory of a stream that is open.
    """

    call_us: float = 1750
    token_us: float = 30
    process_mb: float = 84
    stream_kb: float = 68


def measured() -> Figures:
    """The figures, as far as they were measured; else those of the day this was written."""
    try:
        known = json.loads(RESULTS.read_text()).get("scale", {})
    except FileNotFoundError:
        known = {}
    names = {field.name for field in fields(Figures)}
    return Figures(**{name: value for name, value in known.items() if name in names})


def rows(figures: Figures) -> Iterator[tuple[str, ...]]:
    """What so many streams need."""
    calls_per_s = TOKENS_PER_S / ANSWER_TOKENS
    stream_us = TOKENS_PER_S * figures.token_us + calls_per_s * figures.call_us  # a second
    a_process = min(LOAD * 1e6 / stream_us, CONNECTIONS)
    for streams in (1_000, 100_000, 1_000_000):
        processes = math.ceil(streams / a_process)
        memory_gb = processes * figures.process_mb / 1e3 + streams * figures.stream_kb / 1e6
        yield (
            f"{streams:,}",
            f"{streams * stream_us / 1e6:,.0f}",
            f"{processes:,}",
            f"{a_process:,.0f}",
            f"{memory_gb:,.1f} GB",
            f"{streams * TOKENS_PER_S:,}",
        )
