"""What is wrong with a request of HTTP before it is a call, or beside what the call says."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from atmosphere_grpc.errors import Failure, Reason


class HttpReason(StrEnum):
    """Why there was no call, where the contract has no reason for it."""

    PATH_NOT_FOUND = "PATH_NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    FOREIGN_HOST = "FOREIGN_HOST"
    FOREIGN_ORIGIN = "FOREIGN_ORIGIN"
    MALFORMED = "MALFORMED"


class BadBody(Failure):
    """A body that cannot be taken; HTTP has a status of its own for why.

    Attributes:
        status: That status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(Reason.INVALID_FIELD, message)
        self.status = status


def status_of(failure: Failure) -> int:
    """The status that a failure has here."""
    return failure.status if isinstance(failure, BadBody) else failure.http_status


def refusal_document(reason: HttpReason, message: str, request_id: str) -> dict[str, Any]:
    """What is told of a request that is no call; the shape is that of failures."""
    return {
        "success": False,
        "error": message,
        "reason": reason.value,
        "request_id": request_id,
        "violations": [],
        "metadata": {},
        "retry_after_s": None,
    }
