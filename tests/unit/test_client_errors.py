"""What a failed call says, as the Python client's exceptions."""

from __future__ import annotations

import pickle

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

# The real ones, from googleapis-common-protos and grpcio-health-checking: that they load
# beside the client's own in one process is part of what is tested.
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from atmosphere_client import (
    AtmosphereError,
    CallCancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    Violation,
)
from atmosphere_client._status import Details, read_details
from atmosphere_client._wire import HealthCheckResponse, serving_status
from atmosphere_client.errors import from_rpc_error

CLASSES = {
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
}


def trailers(*details: Message, request_id: str = "") -> tuple[tuple[str, str | bytes], ...]:
    status = status_pb2.Status(code=3, message="m")
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    pairs: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    if request_id:
        pairs.append(("x-request-id", request_id))
    return tuple(pairs)


def rpc_error(
    code: grpc.StatusCode, message: str, metadata: tuple[tuple[str, str | bytes], ...] = ()
) -> grpc.RpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata.from_tuple(metadata), details=message
    )


def test_every_kind_of_detail_is_read() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(2500)
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="messages[0].role", description="is empty", reason="X")
    info = error_details_pb2.ErrorInfo(
        reason="INVALID_FIELD", domain="atmosphere", metadata={"phase": "QUEUE", "a": "ü"}
    )
    request = error_details_pb2.RequestInfo(request_id="abc")

    details = read_details(trailers(info, retry, bad, request, request_id="other"))

    assert details == Details(
        reason="INVALID_FIELD",
        metadata={"phase": "QUEUE", "a": "ü"},
        retry_after=2.5,
        violations=(Violation("messages[0].role", "is empty"),),
        request_id="abc",
    )


def test_the_request_id_comes_from_the_header_where_no_detail_has_it() -> None:
    assert read_details(trailers(request_id="abc")).request_id == "abc"


def test_details_of_other_kinds_are_passed_over() -> None:
    info = error_details_pb2.ErrorInfo(reason="R")
    assert read_details(trailers(error_details_pb2.Help(), info)).reason == "R"


def test_a_wait_is_never_negative() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(-1500)
    assert read_details(trailers(retry)).retry_after == 0.0


@pytest.mark.parametrize(
    "pairs",
    [
        None,
        (),
        (("grpc-status-details-bin", b"\xff\xff\xff"),),
        (("grpc-status-details-bin", b""),),
        (("grpc-status-details-bin", "text"),),
        (("x-request-id", b"bytes"),),
    ],
)
def test_malformed_trailers_give_no_details(
    pairs: tuple[tuple[str, str | bytes], ...] | None,
) -> None:
    assert read_details(pairs) == Details()


def test_a_malformed_detail_does_not_hide_the_others() -> None:
    status = status_pb2.Status()
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="R"))
    details = read_details((("grpc-status-details-bin", status.SerializeToString()),))
    assert details == Details(reason="R")


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_each_status_has_its_class(code: grpc.StatusCode) -> None:
    error = from_rpc_error(rpc_error(code, "m"))
    assert type(error) is CLASSES.get(code, AtmosphereError)
    assert (error.code, error.message, error.reason) == (code, "m", "")


def test_an_error_without_a_status_is_unknown() -> None:
    error = from_rpc_error(grpc.RpcError("odd"))
    assert (type(error), error.code, error.message) == (
        AtmosphereError,
        grpc.StatusCode.UNKNOWN,
        "odd",
    )


def test_an_error_reads_well() -> None:
    info = error_details_pb2.ErrorInfo(reason="INVALID_FIELD")
    metadata = trailers(info, request_id="abc")
    error = from_rpc_error(
        rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "messages[0].role: is empty", metadata)
    )
    assert str(error) == "INVALID_FIELD: messages[0].role: is empty (request abc)"


def test_an_error_without_a_reason_reads_well() -> None:
    assert str(AtmosphereError(grpc.StatusCode.UNAVAILABLE, "down")) == "UNAVAILABLE: down"
    assert str(AtmosphereError(grpc.StatusCode.UNKNOWN, "")) == "UNKNOWN: no message"


def test_fields_that_the_message_leaves_out_are_named() -> None:
    error = InvalidArgumentError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "seed: too large",
        violations=(Violation("seed", "too large"), Violation("top_p", "is 7")),
    )
    assert str(error) == "INVALID_ARGUMENT: seed: too large; top_p: is 7"


def test_an_error_survives_being_pickled() -> None:
    error = NotFoundError(
        grpc.StatusCode.NOT_FOUND, "m", reason="R", metadata={"a": "b"}, request_id="i"
    )
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 – made one line above
    assert (type(copy), str(copy), copy.metadata) == (NotFoundError, str(error), {"a": "b"})


@pytest.mark.parametrize("name", health_pb2.HealthCheckResponse.ServingStatus.keys())
def test_health_is_read_as_the_health_service_writes_it(name: str) -> None:
    number = health_pb2.HealthCheckResponse.ServingStatus.Value(name)
    encoded = health_pb2.HealthCheckResponse(status=number).SerializeToString()
    assert serving_status(HealthCheckResponse.FromString(encoded)) == name


def test_a_health_that_is_not_known_is_shown_by_its_number() -> None:
    assert serving_status(HealthCheckResponse(status=9)) == "UNKNOWN(9)"
