"""A failure as the status that a caller gets: google.rpc.Status, bounded."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from atmosphere_grpc.errors import DOMAIN, Failure, code_number

#: Bytes. Trailers stay under 4 KB (contract), since gRPC peers accept 8 KB: there a status grows by
#: a third (base64), and its message comes once more, up to three times as long (percent-encoded).
MAX_STATUS = 2000
MAX_MESSAGE = 400
MAX_METADATA = 800
MAX_VALUE = 256
MAX_FIELD = 128
MAX_REQUEST_ID = 128
#: What packing the violations adds to them.
PACKING = 64


def encode_failure(failure: Failure, request_id: str) -> status_pb2.Status:
    """The status: ErrorInfo, RequestInfo, and BadRequest and RetryInfo where they apply."""
    message = cut(failure.message, MAX_MESSAGE)
    status = status_pb2.Status(code=code_number(failure.reason), message=message)
    status.details.add().Pack(_error_info(failure))
    status.details.add().Pack(
        error_details_pb2.RequestInfo(request_id=cut(request_id, MAX_REQUEST_ID))
    )
    if (delay_s := failure.retry_delay_s) is not None:
        delay = Duration()
        delay.FromMilliseconds(int(delay_s * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if failure.violations:
        room = MAX_STATUS - PACKING - status.ByteSize()
        status.details.add().Pack(_bad_request(failure, room))
    return status


def _error_info(failure: Failure) -> error_details_pb2.ErrorInfo:
    """The reason, and as many of its facts as there is room for."""
    info = error_details_pb2.ErrorInfo(reason=failure.reason.value, domain=DOMAIN)
    for name, value in failure.metadata.items():
        key = cut(name, MAX_FIELD)
        info.metadata[key] = cut(value, MAX_VALUE)
        if info.ByteSize() > MAX_METADATA:
            del info.metadata[key]
            break
    return info


def _bad_request(failure: Failure, room: int) -> error_details_pb2.BadRequest:
    """The violations, as many as there is room for."""
    bad = error_details_pb2.BadRequest()
    for violation in failure.violations:
        bad.field_violations.add(
            field=cut(violation.field, MAX_FIELD),
            description=cut(violation.description, MAX_VALUE),
        )
        if bad.ByteSize() > room:
            bad.field_violations.pop()
            break
    return bad


def cut(text: str, most: int) -> str:
    """A text of at most `most` bytes of UTF-8, in which control characters are blanks."""
    # A character has at least one byte: what lies beyond would be cut off anyway.
    begun = text[: most + 1]
    clean = "".join(character if character.isprintable() else " " for character in begun)
    encoded = clean.encode()
    if len(encoded) <= most:
        return clean
    return encoded[: most - len("…".encode())].decode(errors="ignore") + "…"
