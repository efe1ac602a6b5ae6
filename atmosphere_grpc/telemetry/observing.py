"""All that a server lets be seen of itself, put together by its settings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from atmosphere_grpc.config import Settings
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.record import Sink
from atmosphere_grpc.telemetry.access import AccessLog
from atmosphere_grpc.telemetry.endpoint import MetricsEndpoint
from atmosphere_grpc.telemetry.labels import Labels
from atmosphere_grpc.telemetry.prometheus import Prometheus
from atmosphere_grpc.telemetry.state import Gauge, State

if TYPE_CHECKING:
    from atmosphere_grpc.telemetry.otlp import Otlp


class Observing:
    """The sinks of a server, and where its metrics are read.

    Args:
        settings: What is to be seen.
        service: The full name of the service.
        registry: Its integrations.
        in_flight: Its calls in flight, by method.
        node_id: The node's id.

    Raises:
        ConfigError: Something is to be sent, and what sends it is not installed.
    """

    def __init__(
        self,
        settings: Settings,
        service: str,
        registry: Registry,
        in_flight: Mapping[str, int],
        node_id: str,
    ) -> None:
        #: What is told of each call.
        self.sinks: list[Sink] = [AccessLog()]
        self._endpoint = MetricsEndpoint(self._rendered)
        self._state = State(registry, in_flight)
        self._metrics = CollectorRegistry()
        labels = Labels(registry)
        if settings.metrics.enabled:
            self._metrics.register(self._state)
            ProcessCollector(registry=self._metrics)
            self.sinks.append(Prometheus(labels, self._metrics))
        self._otlp: Otlp | None = None
        if settings.telemetry.enabled:
            settings.telemetry.check_installed()
            # Nothing of OpenTelemetry is loaded where nothing is sent.
            from atmosphere_grpc.telemetry.otlp import Otlp

            self._otlp = Otlp(settings.telemetry, service, settings.listen, node_id, labels)
            self.sinks += self._otlp.sinks

    def bind(self, listen: str) -> str:
        """Takes the address at which the metrics are read; gives the one that it got.

        Raises:
            OSError: It cannot be had.
        """
        return self._endpoint.bind(listen)

    def gauges(self) -> list[Gauge]:
        """How things are now."""
        return self._state.gauges()

    async def start(self) -> None:
        """Lets the metrics be read, where an address was taken."""
        await self._endpoint.start()

    async def stop(self) -> None:
        """Ends it, and sends what is to be sent."""
        await self._endpoint.stop()
        if self._otlp is not None:
            await self._otlp.stop()

    async def _rendered(self, accept: str) -> tuple[bytes, str]:
        encode, media_type = choose_encoder(accept)
        self._state.read()
        # Thousands of series take milliseconds, in which no token would be sent on.
        return await asyncio.to_thread(encode, self._metrics), media_type
