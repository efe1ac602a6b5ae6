"""How things are, read when Prometheus asks: queues, breakers, probes, calls in flight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from atmosphere_grpc.domain import IntegrationState, IntegrationStatus
from atmosphere_grpc.integrations.breaker import BreakerState
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.telemetry import catalogue
from atmosphere_grpc.telemetry.catalogue import METRICS, Kind, Metric

#: A gauge's name, the values of its labels, and its own value.
Gauge = tuple[str, tuple[str, ...], float]


class State(Collector):
    """What was read last.

    It is read in the event loop, where all that it reads is changed, and written out elsewhere.

    Args:
        registry: The integrations.
        in_flight: The calls in flight, by method.
    """

    def __init__(self, registry: Registry, in_flight: Mapping[str, int]) -> None:
        self._registry = registry
        self._in_flight = in_flight
        self._families: dict[str, GaugeMetricFamily] = {}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """What was read last."""
        return list(self._families.values())

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The names, so that no other metric takes one."""
        return list(_empty().values())

    def read(self) -> None:
        """Reads how things are now."""
        self._families = _empty()
        for method, count in self._in_flight.items():
            self._add(catalogue.IN_FLIGHT, (method,), count)
        for status in self._registry.unfound:
            self._add_status(status)
        for item in self._registry:
            self._add_status(item.status)
            self._add_load(item)

    def gauges(self) -> list[Gauge]:
        """How things are now."""
        self.read()
        return [
            (sample.name, tuple(sample.labels.values()), float(sample.value))
            for family in self._families.values()
            for sample in family.samples
        ]

    def _add_status(self, status: IntegrationStatus) -> None:
        for state in IntegrationState:
            labels = (status.id, state.value)
            self._add(catalogue.INTEGRATION_STATE, labels, state is status.state)
        if status.last_probe:
            self._add(catalogue.PROBE_LATENCY, (status.id,), status.latency_ms / 1000)
            self._add(catalogue.PROBE_TIME, (status.id,), status.last_probe)

    def _add_load(self, item: Integration) -> None:
        name = item.spec.id
        self._add(catalogue.RUNNING, (name,), item.limiter.active)
        self._add(catalogue.QUEUE_LENGTH, (name,), item.limiter.waiting)
        # Two of no address, of which only one is shown, are possible: a series is given once.
        for address, breaker in {e.address: e.breaker for e in item.endpoints}.items():
            for state in BreakerState:
                labels = (name, address, state.value)
                self._add(catalogue.BREAKER_STATE, labels, state is breaker.state)

    def _add(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        self._families[metric.name].add_metric(labels, value)


def _empty() -> dict[str, GaugeMetricFamily]:
    return {
        metric.name: GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        for metric in METRICS
        if metric.kind is Kind.STATE
    }
