"""Reads what a failed call says about itself: the google.rpc details in its trailers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from ._wire import message_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_DETAILS = "grpc-status-details-bin"
_REQUEST_ID = "x-request-id"


@dataclass(frozen=True, slots=True)
class Violation:
    """A field of the request that the server rejected.

    Attributes:
        field: The path of the field, such as ``messages[2].role``.
        description: What is wrong with it.
    """

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Details:
    """What the trailers of a failed call say.

    Attributes:
        reason: The reason in ErrorInfo, or empty.
        metadata: The metadata in ErrorInfo.
        retry_after: Seconds to wait, as RetryInfo says, or None.
        violations: The fields that BadRequest names.
        request_id: The id in RequestInfo, or else in ``x-request-id``, or empty.
    """

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    violations: tuple[Violation, ...] = ()
    request_id: str = ""


def _error_info(details: Details, info: Any) -> Details:
    metadata = {entry.key: entry.value for entry in info.metadata}
    return replace(details, reason=info.reason, metadata=metadata)


def _retry_info(details: Details, info: Any) -> Details:
    delay = info.retry_delay
    return replace(details, retry_after=max(0.0, delay.seconds + delay.nanos / 1e9))


def _bad_request(details: Details, info: Any) -> Details:
    found = tuple(Violation(v.field, v.description) for v in info.field_violations)
    return replace(details, violations=details.violations + found)


def _request_info(details: Details, info: Any) -> Details:
    return replace(details, request_id=info.request_id)


_STATUS = message_type("Status")
_READERS = {
    "google.rpc.ErrorInfo": (message_type("ErrorInfo"), _error_info),
    "google.rpc.RetryInfo": (message_type("RetryInfo"), _retry_info),
    "google.rpc.BadRequest": (message_type("BadRequest"), _bad_request),
    "google.rpc.RequestInfo": (message_type("RequestInfo"), _request_info),
}


def read_details(trailers: Iterable[tuple[str, str | bytes]] | None) -> Details:
    """Reads the trailing metadata of a failed call.

    Never raises: what cannot be read is left out, for the status itself says more
    than a complaint about its details would.
    """
    details = Details()
    fallback_id = ""
    for key, value in trailers or ():
        if key == _DETAILS and isinstance(value, bytes):
            details = _read_status(details, value)
        elif key == _REQUEST_ID and isinstance(value, str):
            fallback_id = value
    return details if details.request_id else replace(details, request_id=fallback_id)


def _read_status(details: Details, encoded: bytes) -> Details:
    try:
        status = _STATUS.FromString(encoded)
    except DecodeError:
        return details
    for packed in status.details:
        reader = _READERS.get(packed.type_url.rpartition("/")[2])
        if reader is None:
            continue
        cls, read = reader
        try:
            details = read(details, cls.FromString(packed.value))
        except DecodeError:
            continue
    return details
