"""A span a call, and one an attempt below it."""

from __future__ import annotations

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from atmosphere_grpc.record import OK, AttemptRecord, CallRecord, HttpRecord
from atmosphere_grpc.telemetry import genai
from atmosphere_grpc.telemetry.content import Redaction

#: The statuses that are the server's own doing, by the conventions for gRPC.
SERVER_FAULTS = frozenset(
    "UNKNOWN DEADLINE_EXCEEDED UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS".split()
)
HTTP_STATUS = "http.response.status_code"
_W3C = TraceContextTextMapPropagator()


class Spans:
    """The sink that traces.

    Args:
        tracer: Makes the spans.
        service: The full name of the service.
        listen: The address that it listens on.
        redaction: How what was said is written; None: it is left out.
    """

    def __init__(
        self, tracer: Tracer, service: str, listen: str, redaction: Redaction | None
    ) -> None:
        self._tracer = tracer
        self._service = service
        self._address = genai.address(listen)
        self._redaction = redaction

    def opened(self, record: CallRecord) -> None:
        """Begins a call's span, below its caller's where it sent one."""
        if record.http is not None:
            name, attributes = f"{record.http.verb} {record.http.route}", _by_http(record.http)
        else:
            name = f"{self._service}/{record.method}"
            attributes = {genai.RPC_SYSTEM: "grpc", genai.RPC_METHOD: name, **self._address}
        span = self._tracer.start_span(
            name,
            _W3C.extract(record.headers),
            SpanKind.SERVER,
            attributes,
            start_time=record.began_ns,
        )
        keeps = self._redaction is not None and span.is_recording()
        record.tracer = _CallSpan(self._tracer, record, span, keeps_content=keeps)
        record.headers = _headers(span)

    def closed(self, record: CallRecord) -> None:
        """Ends a call's spans, with all that is known of it."""
        call = record.tracer
        if not isinstance(call, _CallSpan):
            return
        for attempt in record.attempts:
            span = attempt.span if isinstance(attempt.span, Span) else call.start(attempt)
            if span.is_recording():
                span.set_attributes(self._of_attempt(attempt))
                if attempt.outcome != OK:
                    span.set_status(Status(StatusCode.ERROR))
            span.end(_ns(record, attempt.ended))
        if call.span.is_recording():
            attributes = _of_call(record)
            call.span.set_attributes(attributes)
            if genai.ERROR_TYPE in attributes:
                call.span.set_status(Status(StatusCode.ERROR))
        call.span.end(_ns(record, record.ended))

    def _of_attempt(self, attempt: AttemptRecord) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {
            "atmosphere.integration.id": attempt.integration_id,
            "atmosphere.queue.duration": attempt.queue_s,
        }
        if attempt.answered_by:
            attributes[genai.RESPONSE_MODEL] = attempt.answered_by
        if attempt.finish_reason is not None:
            attributes[genai.FINISH_REASONS] = [attempt.finish_reason.value]
        if (usage := attempt.usage) is not None:
            attributes[genai.INPUT_TOKENS] = usage.prompt_tokens
            attributes[genai.OUTPUT_TOKENS] = usage.completion_tokens
        if attempt.outcome != OK:
            attributes[genai.ERROR_TYPE] = attempt.outcome
        if self._redaction is not None and attempt.heard is not None:
            finish = attempt.finish_reason.value if attempt.finish_reason else "error"
            attributes[genai.INPUT_MESSAGES] = self._redaction.messages(attempt.said)
            attributes[genai.OUTPUT_MESSAGES] = self._redaction.answer(attempt.heard, finish)
        return attributes


class _CallSpan:
    """A call's span, and what begins those of its attempts."""

    def __init__(
        self, tracer: Tracer, record: CallRecord, span: Span, *, keeps_content: bool
    ) -> None:
        self.span = span
        self.keeps_content = keeps_content
        self._tracer = tracer
        self._record = record

    def begin(self, attempt: AttemptRecord) -> None:
        """Begins an attempt's span, below which the backend may put its own."""
        attempt.span = span = self.start(attempt)
        attempt.headers = _headers(span)

    def start(self, attempt: AttemptRecord) -> Span:
        """An attempt's span; of one whose turn never came, since it asked for it."""
        return self._tracer.start_span(
            f"{genai.operation(self._record)} {attempt.model[: genai.SHOWN]}",
            set_span_in_context(self.span),
            SpanKind.CLIENT,
            genai.asked(self._record, attempt, attempt.model[: genai.SHOWN]),
            start_time=_ns(self._record, attempt.began or attempt.asked),
        )


def _by_http(asked: HttpRecord) -> dict[str, AttributeValue]:
    return {
        "http.request.method": asked.verb,
        "http.route": asked.route,
        "url.path": asked.path,
        "url.scheme": asked.scheme,
        "network.protocol.version": asked.version,
        **genai.address(asked.server),
    }


def _outcome(record: CallRecord) -> dict[str, AttributeValue]:
    """How a call ended, by the conventions of what it came by; with a type where it is an error."""
    if record.http is None:
        faulty = {genai.ERROR_TYPE: record.code} if record.code in SERVER_FAULTS else {}
        return {genai.RPC_STATUS: record.code, **faulty}
    status = record.http_status
    told: dict[str, AttributeValue] = {HTTP_STATUS: status} if status else {}
    if status >= 500:
        told[genai.ERROR_TYPE] = str(status)
    elif status == 200 and record.reason is not None:  # a stream that broke off
        told[genai.ERROR_TYPE] = record.reason.value
    return told


def _of_call(record: CallRecord) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        **_outcome(record),
        "atmosphere.request.id": record.request_id,
        "atmosphere.attempts": len(record.attempts),
    }
    if record.reason is not None:
        attributes["atmosphere.reason"] = record.reason.value
    if (route := record.route) is not None:
        attributes["atmosphere.capability"] = route.capability.value
        attributes["atmosphere.route.method"] = route.method.value
        if record.route_name:
            attributes["atmosphere.route.name"] = record.route_name
    return attributes


def _headers(span: Span) -> dict[str, str]:
    """What a request carries that goes on below a span, as W3C has it.

    By hand: the library's propagator makes a context first, and costs more than the span's ids.
    """
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    state = context.trace_state
    return {"traceparent": parent, **({"tracestate": state.to_header()} if state else {})}


def _ns(record: CallRecord, at: float) -> int:
    """A time as OpenTelemetry has it: nanoseconds of Unix time."""
    return record.began_ns + int((at - record.began) * 1e9)
