"""The exceptions that every call raises, one class a gRPC status."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from ._status import Violation, read_details

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "AtmosphereError",
    "CallCancelledError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
]


class AtmosphereError(Exception):
    """A call failed.

    Attributes:
        code: The gRPC status.
        message: What went wrong, for people.
        reason: What went wrong, for programs, such as ``MODEL_NOT_FOUND``; empty when the
            server did not say, or never was reached.
        retry_after: Seconds after which a retry makes sense; None when the server names none.
        violations: The fields of the request at fault.
        metadata: What the reason is about, such as the integration.
        request_id: The id of the call in the server's log, or empty.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        retry_after: float | None = None,
        violations: tuple[Violation, ...] = (),
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.reason = reason
        self.retry_after = retry_after
        self.violations = violations
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.request_id = request_id

    def __str__(self) -> str:
        parts = [self.message] if self.message else []
        # The server's message names the field as a rule; where it does not, we do.
        parts += [
            f"{violation.field}: {violation.description}"
            for violation in self.violations
            if violation.field not in self.message
        ]
        text = f"{self.reason or self.code.name}: {'; '.join(parts) or 'no message'}"
        return f"{text} (request {self.request_id})" if self.request_id else text


class CallCancelledError(AtmosphereError):
    """The call was cancelled: by `close` or `cancel`, or by the server."""


class DeadlineExceededError(AtmosphereError):
    """The time of the caller or of the server was used up."""


class FailedPreconditionError(AtmosphereError):
    """The server is not configured for this, such as a backend that rejects its key."""


class InternalError(AtmosphereError):
    """The backend or the server broke its contract."""


class InvalidArgumentError(AtmosphereError):
    """The request is wrong; `violations` names the fields."""


class NotFoundError(AtmosphereError):
    """There is no such model, integration or capability."""


class PermissionDeniedError(AtmosphereError):
    """The caller is known, and not allowed to do this."""


class ResourceExhaustedError(AtmosphereError):
    """A limit is reached: of rate, of a queue, or of a message's size."""


class UnauthenticatedError(AtmosphereError):
    """The key, token or certificate is missing or wrong."""


class UnavailableError(AtmosphereError):
    """The server or the backend cannot be reached now."""


class UnimplementedError(AtmosphereError):
    """The server or the backend cannot do this."""


_CLASSES: dict[grpc.StatusCode, type[AtmosphereError]] = {
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


def from_rpc_error(error: grpc.RpcError) -> AtmosphereError:
    """Returns what gRPC raised, as the exception of this package."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return AtmosphereError(grpc.StatusCode.UNKNOWN, str(error))
    code = error.code()
    details = read_details(error.trailing_metadata())
    return _CLASSES.get(code, AtmosphereError)(
        code,
        error.details() or "",
        reason=details.reason,
        retry_after=details.retry_after,
        violations=details.violations,
        metadata=details.metadata,
        request_id=details.request_id,
    )


def cancelled(message: str) -> CallCancelledError:
    """Returns the error of a call that was cancelled on this side."""
    return CallCancelledError(grpc.StatusCode.CANCELLED, message)


def broken(reason: str, message: str) -> InternalError:
    """Returns the error of an answer that is not what the contract says."""
    return InternalError(grpc.StatusCode.INTERNAL, message, reason=reason)


@contextmanager
def translated() -> Iterator[None]:
    """Raises gRPC's errors as those of this package; for sync and async calls.

    Raises:
        AtmosphereError: The call failed.
        asyncio.CancelledError: The task that awaits the call is being cancelled.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError:
        # grpc.aio also raises it when the call, and not the task, was cancelled: by
        # `call.cancel()` elsewhere, or by closing the channel. Let through, that
        # would end a task that nobody asked to end.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise cancelled("the call was cancelled, or its client closed") from None
