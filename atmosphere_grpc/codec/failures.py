"""A failure as the status that a caller gets: google.rpc.Status, bounded."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from atmosphere_grpc.errors import DOMAIN, Failure, code_number

#: gRPC peers accept 8 KB of trailers; half of it stays for others' (contract).
MAX_DETAILS_BYTES = 3000
MAX_MESSAGE = 500
MAX_VIOLATIONS = 16
MAX_VALUE = 256


def encode_failure(failure: Failure, request_id: str) -> status_pb2.Status:
    """The status: ErrorInfo, RequestInfo, and BadRequest and RetryInfo where they apply."""
    message = _cut(failure.message, MAX_MESSAGE)
    status = status_pb2.Status(code=code_number(failure.reason), message=message)
    metadata = {name: _cut(value, MAX_VALUE) for name, value in failure.metadata.items()}
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=failure.reason.value, domain=DOMAIN, metadata=metadata)
    )
    status.details.add().Pack(error_details_pb2.RequestInfo(request_id=request_id))
    if (delay_s := failure.retry_delay_s) is not None:
        delay = Duration()
        delay.FromMilliseconds(int(delay_s * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if failure.violations:
        status.details.add().Pack(_bad_request(failure, MAX_DETAILS_BYTES - status.ByteSize()))
    return status


def _bad_request(failure: Failure, room: int) -> error_details_pb2.BadRequest:
    """The violations, as many as there is room for."""
    bad = error_details_pb2.BadRequest()
    for violation in failure.violations[:MAX_VIOLATIONS]:
        bad.field_violations.add(
            field=_cut(violation.field, 128), description=_cut(violation.description, MAX_VALUE)
        )
        if bad.ByteSize() > room:
            bad.field_violations.pop()
            break
    return bad


def _cut(text: str, most: int) -> str:
    """A text of at most `most` characters, in which control characters are blanks."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return clean if len(clean) <= most else clean[: most - 1] + "…"
