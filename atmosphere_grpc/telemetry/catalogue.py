"""Every metric for Prometheus: its name, its labels, what it says.

docs/observability.md is generated from this file. The state ones are read when somebody asks; the
others are counted up as calls end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a metric is."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    STATE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: Its name, with its unit; a counter's is shown with `_total`.
        kind: What it is.
        labels: Its labels.
        help: What it says, in a sentence.
        buckets: The upper bounds of a histogram's buckets, but the last, which is infinite.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def shown(self) -> str:
        """The name that a query has for it, without what a histogram's series end in."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


#: From a local queue to the slowest answer of a large model, in seconds.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

CALLS = Metric(
    "atmosphere_calls",
    Kind.COUNTER,
    ("method", "code", "reason"),
    "Calls that are over, by gRPC status; `reason` as in errors, empty for none.",
)
CALL_DURATION = Metric(
    "atmosphere_call_duration_seconds",
    Kind.HISTOGRAM,
    ("method",),
    "How long calls took in all.",
    SECONDS,
)
FIRST_TOKEN = Metric(
    "atmosphere_time_to_first_token_seconds",
    Kind.HISTOGRAM,
    ("integration", "model"),
    "From the arrival of a chat to the first piece of its answer.",
    SECONDS,
)
TOKENS = Metric(
    "atmosphere_tokens",
    Kind.COUNTER,
    ("integration", "model", "type"),
    "Tokens of answers that became whole; `type` is `prompt` or `completion`.",
)
QUEUE_WAIT = Metric(
    "atmosphere_queue_wait_seconds",
    Kind.HISTOGRAM,
    ("integration",),
    "How long attempts waited for their turn, also those that got none.",
    SECONDS,
)
ATTEMPTS = Metric(
    "atmosphere_attempts",
    Kind.COUNTER,
    ("integration", "reason"),
    "Attempts that are over; `reason` is `OK`, `CANCELLED` or why they failed.",
)
ATTEMPT_DURATION = Metric(
    "atmosphere_attempt_duration_seconds",
    Kind.HISTOGRAM,
    ("integration",),
    "How long attempts took since their turn came.",
    SECONDS,
)
FALLBACKS = Metric(
    "atmosphere_fallbacks",
    Kind.COUNTER,
    ("integration", "to"),
    "Attempts at another integration, `to`, after one at `integration` had failed.",
)
POOL_WAIT = Metric(
    "atmosphere_pool_wait_seconds",
    Kind.HISTOGRAM,
    ("integration",),
    "How long attempts waited for a connection since all were taken; others are not counted.",
    SECONDS,
)
ROUTES = Metric(
    "atmosphere_route_decisions",
    Kind.COUNTER,
    ("method", "route", "capability"),
    "Decisions where calls go: how they were made, by which configured route, for what.",
)
IN_FLIGHT = Metric("atmosphere_calls_in_flight", Kind.STATE, ("method",), "Calls in flight.")
RUNNING = Metric(
    "atmosphere_integration_running",
    Kind.STATE,
    ("integration",),
    "Attempts whose turn has come and that are not over.",
)
QUEUE_LENGTH = Metric(
    "atmosphere_queue_length", Kind.STATE, ("integration",), "Attempts that wait for their turn."
)
INTEGRATION_STATE = Metric(
    "atmosphere_integration_state",
    Kind.STATE,
    ("integration", "state"),
    "1 for the state by the last probe (`unknown`, `up`, `down`, `starting`), else 0.",
)
PROBE_LATENCY = Metric(
    "atmosphere_probe_latency_seconds",
    Kind.STATE,
    ("integration",),
    "How long the last probe took; absent before the first.",
)
PROBE_TIME = Metric(
    "atmosphere_probe_timestamp_seconds",
    Kind.STATE,
    ("integration",),
    "When the last probe was, in Unix time; absent before the first.",
)
BREAKER_STATE = Metric(
    "atmosphere_breaker_state",
    Kind.STATE,
    ("integration", "endpoint", "state"),
    "1 for the state of an endpoint's breaker (`closed`, `open`, `half_open`), else 0.",
)

RESTARTS = Metric(
    "atmosphere_worker_restarts",
    Kind.COUNTER,
    ("worker",),
    "With several workers: how often another took the place of one that died or did not answer.",
)

#: What every server has.
METRICS = (
    CALLS,
    CALL_DURATION,
    FIRST_TOKEN,
    TOKENS,
    QUEUE_WAIT,
    ATTEMPTS,
    ATTEMPT_DURATION,
    FALLBACKS,
    POOL_WAIT,
    ROUTES,
    IN_FLIGHT,
    RUNNING,
    QUEUE_LENGTH,
    INTEGRATION_STATE,
    PROBE_LATENCY,
    PROBE_TIME,
    BREAKER_STATE,
)
