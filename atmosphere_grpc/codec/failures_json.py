"""A failure as JSON: in the shape of this service, and in that of OpenAI's API."""

from __future__ import annotations

from typing import Any

from atmosphere_grpc.codec.failures import cut
from atmosphere_grpc.codec.openai_paths import in_openai_terms
from atmosphere_grpc.errors import TABLE, Failure, Reason

#: Bytes. A body has room for more than the trailers of gRPC, but not for everything.
MAX_MESSAGE = 4000
MAX_VALUE = 1000
#: How many violations are told.
MAX_VIOLATIONS = 64

#: What OpenAI calls these; clients look for its names.
_CODES = {
    Reason.CONTEXT_OVERFLOW: "context_length_exceeded",
    Reason.UNAUTHENTICATED: "invalid_api_key",
    Reason.RATE_LIMITED: "rate_limit_exceeded",
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}


def failure_document(failure: Failure, request_id: str) -> dict[str, Any]:
    """What a caller is told of a failure.

    Shape: `{success: false, error, reason, code, request_id, violations: [{field, description}],
    metadata, retry_after_s}`; the last is null where a retry makes no sense.
    """
    return {
        "success": False,
        "error": cut(failure.message, MAX_MESSAGE),
        "reason": failure.reason.value,
        "code": TABLE[failure.reason].code.name,
        "request_id": request_id,
        "violations": [
            {"field": cut(item.field, MAX_VALUE), "description": cut(item.description, MAX_VALUE)}
            for item in failure.violations[:MAX_VIOLATIONS]
        ],
        "metadata": _metadata(failure),
        "retry_after_s": failure.retry_delay_s,
    }


def openai_error(failure: Failure, request_id: str) -> dict[str, Any]:
    """The same as OpenAI's clients expect it: `{error: {message, type, param, code, …}}`.

    Beside what OpenAI's have: `reason`, `request_id` and `metadata`, as in `failure_document`.
    """
    violations = failure.violations
    reason = failure.reason
    return {
        "error": {
            "message": cut(in_openai_terms(failure.message), MAX_MESSAGE),
            "type": _TYPES.get(failure.http_status, "server_error"),
            "param": cut(in_openai_terms(violations[0].field), MAX_VALUE) if violations else None,
            "code": _CODES.get(reason, reason.value.lower()),
            "reason": reason.value,
            "request_id": request_id,
            "metadata": _metadata(failure),
        }
    }


def _metadata(failure: Failure) -> dict[str, str]:
    return {cut(name, MAX_VALUE): cut(value, MAX_VALUE) for name, value in failure.metadata.items()}
