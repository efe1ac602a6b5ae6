"""Python client of Atmosphere's execution layer, for blocking code and for asyncio."""

from ._listing import Models
from .aio import AsyncAtmosphereClient
from .chat import AsyncChatStream, ChatResult, ChatStream
from .client import AtmosphereClient
from .errors import (
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

__all__ = [
    "AsyncAtmosphereClient",
    "AsyncChatStream",
    "AtmosphereClient",
    "AtmosphereError",
    "CallCancelledError",
    "ChatResult",
    "ChatStream",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "Models",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
]
