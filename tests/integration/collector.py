"""An OpenTelemetry collector in this process: takes in what is sent, and keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2


@dataclass
class Collector:
    """What has come.

    Attributes:
        endpoint: Its address, as the setting has it.
        spans: Every span, and the attributes of its resource.
        metrics: Every metric.
    """

    endpoint: str
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)

    def span(self, name: str) -> Any:
        """The one span of a name."""
        (found,) = (span for span in self.spans if span.name == name)
        return found


def attributes(item: Any) -> dict[str, Any]:
    """The attributes of a span, a resource or a data point."""
    return {pair.key: _value(pair.value) for pair in item.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Runs a collector on a free port."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    made = Collector(f"http://127.0.0.1:{port}")

    async def take_spans(request: Any, _: object) -> Any:
        for group in request.resource_spans:
            made.resources.append(attributes(group.resource))
            made.spans += [span for scope in group.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    async def take_metrics(request: Any, _: object) -> Any:
        for group in request.resource_metrics:
            made.metrics += [item for scope in group.scope_metrics for item in scope.metrics]
        return metrics_service_pb2.ExportMetricsServiceResponse()

    for proto, name, take in (
        (trace_service_pb2, "Trace", take_spans),
        (metrics_service_pb2, "Metrics", take_metrics),
    ):
        service = proto.DESCRIPTOR.services_by_name[f"{name}Service"].full_name
        handler = grpc.unary_unary_rpc_method_handler(
            take,
            getattr(proto, f"Export{name}ServiceRequest").FromString,
            getattr(proto, f"Export{name}ServiceResponse").SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
        )
    await server.start()
    try:
        yield made
    finally:
        await server.stop(None)
        await asyncio.sleep(0)
