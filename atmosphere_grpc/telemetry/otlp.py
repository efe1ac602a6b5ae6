"""Sends traces and metrics to a collector: OTLP over gRPC. Imported only where that is switched on.

What the settings leave open, the standard `OTEL_…` environment variables say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from atmosphere_grpc.config import Telemetry
from atmosphere_grpc.record import Sink
from atmosphere_grpc.telemetry.content import Redaction
from atmosphere_grpc.telemetry.genai import GenAiMetrics
from atmosphere_grpc.telemetry.labels import Labels
from atmosphere_grpc.telemetry.spans import Spans

log = logging.getLogger(__name__)

NAME = "atmosphere-grpc"
#: How long a server that stops waits for what was not sent yet, in seconds.
FLUSH_S = 5.0


class Otlp:
    """What sends, and the sinks that give it something to send.

    Args:
        settings: What is sent where.
        service: The full name of the service.
        listen: The address that it listens on.
        node_id: The node's id.
        labels: Which models metrics tell apart.
    """

    def __init__(
        self, settings: Telemetry, service: str, listen: str, node_id: str, labels: Labels
    ) -> None:
        endpoint = str(settings.endpoint) if settings.endpoint else None
        release = version(NAME)
        resource = Resource(
            {
                "service.name": NAME,
                "service.version": release,
                "service.instance.id": node_id,
                "telemetry.sdk.language": "python",
                "telemetry.sdk.name": "opentelemetry",
                "telemetry.sdk.version": version("opentelemetry-sdk"),
            }
        ).merge(OTELResourceDetector().detect())
        self.sinks: list[Sink] = []
        self._shutdowns: list[Callable[[], object]] = []
        # Not at the exit of the process: that would wait for a collector that is not there.
        if settings.traces:
            tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
            tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
            redaction = Redaction(settings.redact) if settings.content else None
            self.sinks.append(Spans(tracers.get_tracer(NAME, release), service, listen, redaction))
            self._shutdowns.append(tracers.shutdown)
        if settings.metrics:
            reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint))
            meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
            self.sinks.append(GenAiMetrics(meters.get_meter(NAME, release), labels))
            self._shutdowns.append(meters.shutdown)

    async def stop(self) -> None:
        """Sends what was not sent yet, as far as that is possible at once."""
        loop = asyncio.get_running_loop()
        done = [loop.create_future() for _ in self._shutdowns]
        for shutdown, future in zip(self._shutdowns, done, strict=True):
            # Threads that the end of the process does not wait for.
            threading.Thread(
                target=_run, args=(shutdown, loop, future), name="telemetry", daemon=True
            ).start()
        if done and (await asyncio.wait(done, timeout=FLUSH_S))[1]:
            log.warning("some telemetry was not sent: the collector did not answer")


def _run(
    work: Callable[[], object], loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]
) -> None:
    try:
        work()
    except Exception:
        log.exception("fault while telemetry was sent")
    with contextlib.suppress(RuntimeError):  # the loop may be gone by then
        loop.call_soon_threadsafe(_note, done)


def _note(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
