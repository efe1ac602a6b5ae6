"""What can go wrong, and THE table of what a caller then sees.

Everything below the interceptors raises `Failure` and nothing else that is meant
for a caller; the statuses of gRPC and HTTP exist only in this file. The table is that of the
contract (docs/errors.md is generated from it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from grpc import StatusCode

#: `google.rpc.ErrorInfo.domain` of every failure.
DOMAIN = "atmosphere"


class Reason(StrEnum):
    """Why a call failed: `google.rpc.ErrorInfo.reason`."""

    INVALID_FIELD = "INVALID_FIELD"
    UNSUPPORTED_PARAMETER = "UNSUPPORTED_PARAMETER"
    CONTEXT_OVERFLOW = "CONTEXT_OVERFLOW"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    INTEGRATION_NOT_FOUND = "INTEGRATION_NOT_FOUND"
    CAPABILITY_NOT_FOUND = "CAPABILITY_NOT_FOUND"
    ROUTE_NOT_FOUND = "ROUTE_NOT_FOUND"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RATE_LIMITED = "RATE_LIMITED"
    QUEUE_FULL = "QUEUE_FULL"
    BACKEND_BUSY = "BACKEND_BUSY"
    BACKEND_UNAVAILABLE = "BACKEND_UNAVAILABLE"
    DRAINING = "DRAINING"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    BACKEND_REJECTED = "BACKEND_REJECTED"
    BACKEND_AUTH = "BACKEND_AUTH"
    CAPABILITY_UNSUPPORTED = "CAPABILITY_UNSUPPORTED"
    BACKEND_ERROR = "BACKEND_ERROR"
    BACKEND_CONTRACT = "BACKEND_CONTRACT"
    STREAM_TRUNCATED = "STREAM_TRUNCATED"
    INTERNAL = "INTERNAL"


class Phase(StrEnum):
    """What a call was waiting for when its time was used up."""

    QUEUE = "QUEUE"
    CONNECT = "CONNECT"
    FIRST_TOKEN = "FIRST_TOKEN"  # noqa: S105 - a phase, not a password
    IDLE = "IDLE"
    TOTAL = "TOTAL"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a caller sees for a reason.

    Attributes:
        code: The gRPC status.
        retryable: Whether the same call can succeed later. Such a failure carries
            `google.rpc.RetryInfo`.
        elsewhere: Whether another backend may well answer the same call.
        meaning: What happened and what to do, in a sentence, for the docs.
    """

    code: StatusCode
    retryable: bool
    elsewhere: bool
    meaning: str


TABLE: Mapping[Reason, Rule] = {
    Reason.INVALID_FIELD: Rule(
        StatusCode.INVALID_ARGUMENT,
        False,
        False,
        "A field is missing, unknown, out of its range or given twice. `BadRequest` names it.",
    ),
    Reason.UNSUPPORTED_PARAMETER: Rule(
        StatusCode.INVALID_ARGUMENT,
        False,
        True,
        "The backend cannot honour a parameter of the request. Leave it out or choose another "
        "integration or model.",
    ),
    Reason.CONTEXT_OVERFLOW: Rule(
        StatusCode.INVALID_ARGUMENT,
        False,
        True,
        "The prompt has more tokens than the model's context holds. Shorten it, or choose a model "
        "with a larger `context_length`.",
    ),
    Reason.MODEL_NOT_FOUND: Rule(
        StatusCode.NOT_FOUND,
        False,
        True,
        "No integration asked has that model. The message lists the nearest names; `ListModels` "
        "shows all.",
    ),
    Reason.INTEGRATION_NOT_FOUND: Rule(
        StatusCode.NOT_FOUND,
        False,
        False,
        "No integration has that id. `ListIntegrations` shows them.",
    ),
    Reason.CAPABILITY_NOT_FOUND: Rule(
        StatusCode.NOT_FOUND,
        False,
        False,
        "There is no such capability. The message lists those that exist.",
    ),
    Reason.ROUTE_NOT_FOUND: Rule(
        StatusCode.NOT_FOUND,
        False,
        False,
        "No route has that name, neither a configured nor a built-in one. The message lists the "
        "nearest.",
    ),
    Reason.UNAUTHENTICATED: Rule(
        StatusCode.UNAUTHENTICATED,
        False,
        False,
        "The server asks who calls, and no valid key, token or certificate says so. Which of them "
        "is wrong, and why, is in the server's log only.",
    ),
    Reason.PERMISSION_DENIED: Rule(
        StatusCode.PERMISSION_DENIED,
        False,
        False,
        "The caller may not use the RPC, the integration or the model, whether or not that "
        "exists. Which one is in the server's log.",
    ),
    Reason.RATE_LIMITED: Rule(
        StatusCode.RESOURCE_EXHAUSTED,
        True,
        False,
        "The caller's own limit is reached: of calls or tokens in a minute, or of calls in "
        "flight. Retry after the time in `RetryInfo`.",
    ),
    Reason.QUEUE_FULL: Rule(
        StatusCode.RESOURCE_EXHAUSTED,
        True,
        True,
        "As many calls run and wait for the integration as its `limits` allow. Retry after the "
        "time in `RetryInfo`.",
    ),
    Reason.BACKEND_BUSY: Rule(
        StatusCode.RESOURCE_EXHAUSTED,
        True,
        True,
        "The backend has too much to do (HTTP 429). Retry after the time in `RetryInfo`.",
    ),
    Reason.BACKEND_UNAVAILABLE: Rule(
        StatusCode.UNAVAILABLE,
        True,
        True,
        "The backend refuses connections, broke one off before it answered, or says that it is "
        "not ready (HTTP 502, 503, 504). Is it running?",
    ),
    Reason.DRAINING: Rule(
        StatusCode.UNAVAILABLE,
        True,
        False,
        "This server is stopping. Retry; another one will answer.",
    ),
    Reason.DEADLINE_EXCEEDED: Rule(
        StatusCode.DEADLINE_EXCEEDED,
        False,
        True,
        "The caller's or the server's time is used up. `metadata.phase` says while waiting for "
        "what: QUEUE (its turn), CONNECT, FIRST_TOKEN, IDLE (between two tokens) or TOTAL.",
    ),
    Reason.BACKEND_REJECTED: Rule(
        StatusCode.INVALID_ARGUMENT,
        False,
        False,
        "The backend rejected the request (HTTP 400, 413, 422 or another client error). The "
        "server's log has its words, at level debug.",
    ),
    Reason.BACKEND_AUTH: Rule(
        StatusCode.FAILED_PRECONDITION,
        False,
        True,
        "The backend rejected this server's own credential (HTTP 401, 403). The operator must "
        "mend the integration's `api_key`.",
    ),
    Reason.CAPABILITY_UNSUPPORTED: Rule(
        StatusCode.UNIMPLEMENTED,
        False,
        True,
        "The integration or the model lacks the capability, such as embeddings. Choose another.",
    ),
    Reason.BACKEND_ERROR: Rule(
        StatusCode.INTERNAL,
        False,
        True,
        "The backend failed (HTTP 500, or an error inside its stream).",
    ),
    Reason.BACKEND_CONTRACT: Rule(
        StatusCode.INTERNAL,
        False,
        True,
        "The backend's answer is not what its interface promises, such as HTML or broken JSON. "
        "Does `base_urls` point at the right server?",
    ),
    Reason.STREAM_TRUNCATED: Rule(
        StatusCode.INTERNAL,
        False,
        True,
        "The backend's stream ended before the answer was whole. What was sent is incomplete.",
    ),
    Reason.INTERNAL: Rule(
        StatusCode.INTERNAL,
        False,
        False,
        "A fault of this server. Report it with the request id.",
    ),
}

#: The statuses of HTTP that stand for those of gRPC.
HTTP_STATUS: Mapping[StatusCode, int] = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.CANCELLED: 499,
    StatusCode.INTERNAL: 500,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.FAILED_PRECONDITION: 502,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
#: What is a backend's fault and none of this server, though gRPC has one status for both.
BACKENDS_FAULTS = frozenset(
    {Reason.BACKEND_ERROR, Reason.BACKEND_CONTRACT, Reason.STREAM_TRUNCATED}
)

#: How long a caller should wait before it retries, where the backend did not say: seconds.
DEFAULT_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that is wrong.

    Attributes:
        field: Its path in the request, such as `messages[2].role`.
        description: What is wrong with it and what would be right.
    """

    field: str
    description: str


class Failure(Exception):
    """A call that cannot succeed; becomes the caller's status.

    Attributes:
        reason: Why; gives the status by `TABLE`.
        message: For people: what is wrong and what to do. Never a backend's own
            words, a path or a key: those go to the log, as `detail`.
        violations: The fields at fault.
        metadata: Further facts for programs (`ErrorInfo.metadata`).
        retry_after_s: When a retry makes sense, in seconds; None: not known.
        detail: What the log may know beyond the message, such as an exception's text.
        words: What the backend said, in which a prompt may be repeated: for the log at level
            debug only.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        detail: str = "",
        words: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.detail = detail
        self.words = words

    @classmethod
    def invalid(cls, *violations: Violation) -> Self:
        """A request with bad fields; the message lists them all."""
        message = "; ".join(f"{bad.field}: {bad.description}" for bad in violations)
        return cls(Reason.INVALID_FIELD, message, violations=violations)

    @classmethod
    def out_of_time(cls, phase: Phase, message: str, **metadata: str) -> Self:
        """A call whose time was used up while it waited for `phase`."""
        return cls(Reason.DEADLINE_EXCEEDED, message, metadata={"phase": phase.value, **metadata})

    @property
    def code(self) -> StatusCode:
        """The gRPC status of the reason."""
        return TABLE[self.reason].code

    @property
    def http_status(self) -> int:
        """The status of HTTP."""
        return http_status(self.reason)

    @property
    def retry_delay_s(self) -> float | None:
        """Seconds for `RetryInfo`; None where a retry makes no sense."""
        if not TABLE[self.reason].retryable:
            return None
        return DEFAULT_RETRY_AFTER_S if self.retry_after_s is None else self.retry_after_s


def code_number(reason: Reason | None) -> int:
    """The `google.rpc.Code` of a reason; 0 (OK) for none."""
    if reason is None:
        return 0
    number: int = TABLE[reason].code.value[0]
    return number


def http_status(reason: Reason) -> int:
    """The status of HTTP that stands for a reason."""
    return 502 if reason in BACKENDS_FAULTS else HTTP_STATUS[TABLE[reason].code]
