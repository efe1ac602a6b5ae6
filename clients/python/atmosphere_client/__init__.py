"""Python client of Atmosphere's execution layer, for blocking code and for asyncio."""

from ._call import CallOptions, GenerateOptions
from ._listing import Models
from ._request import Sampling
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
    "CallOptions",
    "ChatResult",
    "ChatStream",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "GenerateOptions",
    "InternalError",
    "InvalidArgumentError",
    "Models",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "Sampling",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
]
