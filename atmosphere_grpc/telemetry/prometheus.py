"""Counts calls for Prometheus, as they end."""

from __future__ import annotations

from itertools import pairwise
from typing import Generic, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram

from atmosphere_grpc.record import AttemptRecord, CallRecord
from atmosphere_grpc.telemetry import catalogue
from atmosphere_grpc.telemetry.catalogue import Metric
from atmosphere_grpc.telemetry.labels import Labels

T = TypeVar("T", Counter, Histogram)

# When a series began is of use to OpenMetrics alone, and would be as many series again.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class _Labelled(Generic[T]):
    """A metric with labels, whose series are found without the checks that making one takes.

    Looking one up in the library took 4 µs, and a call has nine.
    """

    __slots__ = ("_metric", "_series")

    def __init__(self, metric: T) -> None:
        self._metric: T = metric
        self._series: dict[tuple[str, ...], T] = {}

    def __call__(self, *values: str) -> T:
        """The series of some labels; they are few, here as there."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._metric.labels(*values)
        return series


class Prometheus:
    """The sink that counts.

    Nothing is read back from what is counted, so that several processes may each count for
    themselves (`PROMETHEUS_MULTIPROC_DIR`) and be added up by whoever exports them.

    Args:
        labels: Which models are told apart.
        registry: Where the metrics are exported from.
    """

    def __init__(self, labels: Labels, registry: CollectorRegistry) -> None:
        def counter(metric: Metric) -> _Labelled[Counter]:
            made = Counter(metric.name, metric.help, metric.labels, registry=registry)
            return _Labelled(made)

        def histogram(metric: Metric) -> _Labelled[Histogram]:
            made = Histogram(
                metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets
            )
            return _Labelled(made)

        self._labels = labels
        self._calls = counter(catalogue.CALLS)
        self._duration = histogram(catalogue.CALL_DURATION)
        self._first_token = histogram(catalogue.FIRST_TOKEN)
        self._tokens = counter(catalogue.TOKENS)
        self._queue_wait = histogram(catalogue.QUEUE_WAIT)
        self._attempts = counter(catalogue.ATTEMPTS)
        self._attempt_duration = histogram(catalogue.ATTEMPT_DURATION)
        self._fallbacks = counter(catalogue.FALLBACKS)
        self._pool_wait = histogram(catalogue.POOL_WAIT)
        self._routes = counter(catalogue.ROUTES)

    def opened(self, record: CallRecord) -> None:
        """Does nothing: a call is counted when it is over."""

    def closed(self, record: CallRecord) -> None:
        """Counts a call."""
        reason = record.reason.value if record.reason else ""
        self._calls(record.method, record.code, reason).inc()
        self._duration(record.method).observe(record.duration_s)
        if (route := record.route) is not None:
            name, capability = record.route_name, route.capability.value
            self._routes(route.method.value, name, capability).inc()
        for attempt in record.attempts:
            self._count(record, attempt)
        for before, after in pairwise(record.attempts):
            if before.integration_id != after.integration_id:
                self._fallbacks(before.integration_id, after.integration_id).inc()

    def _count(self, record: CallRecord, attempt: AttemptRecord) -> None:
        integration = attempt.integration_id
        self._attempts(integration, attempt.outcome).inc()
        self._queue_wait(integration).observe(attempt.queue_s)
        if attempt.began:
            self._attempt_duration(integration).observe(attempt.duration_s)
        if attempt.pool_s:
            self._pool_wait(integration).observe(attempt.pool_s)
        usage = attempt.usage
        if usage is None and not attempt.first_token:
            return
        model = self._labels.model(integration, attempt.model)
        if attempt.first_token:
            first_s = attempt.first_token - record.began
            self._first_token(integration, model).observe(first_s)
        if usage is not None:
            self._tokens(integration, model, "prompt").inc(usage.prompt_tokens)
            self._tokens(integration, model, "completion").inc(usage.completion_tokens)
