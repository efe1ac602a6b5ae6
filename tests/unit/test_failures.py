"""What a failure tells its caller, and that it stays small whatever is in it."""

from __future__ import annotations

import base64
from typing import Any, TypeVar
from urllib.parse import quote

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from atmosphere_grpc.codec.failures import encode_failure
from atmosphere_grpc.errors import TABLE, Failure, Phase, Reason, Violation, code_number

T = TypeVar("T", bound=Message)
ID = "request-1"
#: What HTTP/2 peers are sure to accept, less the half that is left to others.
LIMIT = 4096


def detail(status: status_pb2.Status, kind: type[T]) -> T | None:
    """The one detail of a kind."""
    found = [item for item in status.details if item.Is(kind.DESCRIPTOR)]
    assert len(found) <= 1
    message = kind()
    return message if found and found[0].Unpack(message) else None


def texts(status: status_pb2.Status) -> list[str]:
    """Every text that a caller may show."""
    info = detail(status, error_details_pb2.ErrorInfo)
    bad = detail(status, error_details_pb2.BadRequest)
    request = detail(status, error_details_pb2.RequestInfo)
    assert info is not None
    assert request is not None
    violations = bad.field_violations if bad else []
    return [
        status.message,
        request.request_id,
        *info.metadata,
        *info.metadata.values(),
        *(text for item in violations for text in (item.field, item.description)),
    ]


def trailers_size(status: status_pb2.Status) -> int:
    """The bytes of the trailers on the wire: the details in base64, the message percent-encoded."""
    message = quote(status.message, safe="".join(map(chr, range(0x20, 0x7F))).replace("%", ""))
    details = base64.b64encode(status.SerializeToString())
    return (
        len(message) + len(details) + len("grpc-messagegrpc-status-details-binx-request-id") + 128
    )


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_rule(reason: Reason) -> None:
    rule = TABLE[reason]
    assert rule.meaning.endswith((".", "?"))
    assert Failure(reason, "x").code is rule.code
    assert code_number(reason) == code_pb2.Code.Value(rule.code.name) != 0
    assert code_number(None) == 0


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("retry_after_s", [None, 0.25, 30.0])
def test_a_failure_says_its_reason_and_when_to_retry_if_that_makes_sense(
    reason: Reason, retry_after_s: float | None
) -> None:
    failure = Failure(reason, "what is wrong", metadata={"a": "b"}, retry_after_s=retry_after_s)
    status = encode_failure(failure, ID)
    assert status.code == code_pb2.Code.Value(TABLE[reason].code.name)
    assert status.message == "what is wrong"
    info = detail(status, error_details_pb2.ErrorInfo)
    assert info == error_details_pb2.ErrorInfo(
        reason=reason.value, domain="atmosphere", metadata={"a": "b"}
    )
    request = detail(status, error_details_pb2.RequestInfo)
    assert request == error_details_pb2.RequestInfo(request_id=ID)
    assert detail(status, error_details_pb2.BadRequest) is None
    retry = detail(status, error_details_pb2.RetryInfo)
    assert (retry is not None) is TABLE[reason].retryable
    if retry is not None:
        expected_ms = 1000 if retry_after_s is None else retry_after_s * 1000
        assert retry.retry_delay.ToMilliseconds() == expected_ms


def test_what_makes_sense_to_retry_is_what_may_be_otherwise_later() -> None:
    assert {reason for reason in Reason if TABLE[reason].retryable} == {
        Reason.RATE_LIMITED,
        Reason.QUEUE_FULL,
        Reason.BACKEND_BUSY,
        Reason.BACKEND_UNAVAILABLE,
        Reason.DRAINING,
    }


def test_bad_fields_are_told_one_by_one() -> None:
    failure = Failure.invalid(
        Violation("messages[2].role", "is unset"), Violation("stream", "is odd")
    )
    status = encode_failure(failure, ID)
    assert status.message == "messages[2].role: is unset; stream: is odd"
    bad = detail(status, error_details_pb2.BadRequest)
    assert bad is not None
    assert [(item.field, item.description) for item in bad.field_violations] == [
        ("messages[2].role", "is unset"),
        ("stream", "is odd"),
    ]


@pytest.mark.parametrize("phase", Phase)
def test_used_up_time_says_what_was_waited_for(phase: Phase) -> None:
    status = encode_failure(Failure.out_of_time(phase, "x", integration_id="a"), ID)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert info is not None
    assert dict(info.metadata) == {"phase": phase.value, "integration_id": "a"}


def test_what_is_for_the_log_is_not_told() -> None:
    failure = Failure(Reason.BACKEND_ERROR, "it failed", detail="HTTP 500: sk-secret")
    assert b"sk-secret" not in encode_failure(failure, ID).SerializeToString()


def test_what_is_cut_says_so() -> None:
    failure = Failure(
        Reason.INVALID_FIELD,
        "m" * 1000,
        violations=[Violation("f" * 1000, "d" * 1000)],
        metadata={"k" * 1000: "v" * 1000},
    )
    for text in texts(encode_failure(failure, ID)):
        assert text == ID or (text.endswith("…") and len(text) > 100)


def test_usual_failures_are_told_whole() -> None:
    violations = [Violation(f"messages[{i}].role", "must be one of user, tool") for i in range(10)]
    failure = Failure.invalid(*violations)
    bad = detail(encode_failure(failure, ID), error_details_pb2.BadRequest)
    assert bad is not None
    assert len(bad.field_violations) == 10
    nearest = {"nearest": "llama3.2:latest, qwen3:8b, smollm2", "integration_id": "a", "model": "m"}
    failure = Failure(Reason.MODEL_NOT_FOUND, "no such model", metadata=nearest)
    info = detail(encode_failure(failure, ID), error_details_pb2.ErrorInfo)
    assert info is not None
    assert info.metadata == nearest


@pytest.mark.parametrize("character", ["x", "%", "ü", "語", "\U0001f30d", "\n", "\ud800"])
@pytest.mark.parametrize("reason", [Reason.INVALID_FIELD, Reason.BACKEND_UNAVAILABLE])
def test_trailers_stay_under_their_limit(reason: Reason, character: str) -> None:
    long = character * 5000
    failure = Failure(
        reason,
        long,
        violations=[Violation(f"{i}{long}", long) for i in range(500)],
        metadata={f"{i}{long}": long for i in range(500)},
    )
    status = encode_failure(failure, long)
    assert status.ByteSize() < LIMIT
    assert trailers_size(status) < LIMIT


@pytest.mark.parametrize(
    "control", ["\x00", "\n", "\r\n", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u202e", "\ud800"]
)
def test_control_characters_are_blanks(control: str) -> None:
    text = f"a{control}b"
    failure = Failure(
        Reason.INVALID_FIELD, text, violations=[Violation(text, text)], metadata={text: text}
    )
    for shown in texts(encode_failure(failure, text)):
        assert shown.isprintable()
        assert shown.startswith("a ")
        assert shown.endswith("b")


Anything: Any = st.text(max_size=40) | st.text(min_size=1, max_size=5).map(lambda text: text * 300)


@given(
    st.sampled_from(Reason),
    Anything,
    st.lists(st.builds(Violation, Anything, Anything), max_size=40),
    st.dictionaries(Anything, Anything, max_size=40),
    st.none() | st.floats(0, 3600),
)
def test_whatever_a_failure_holds_its_status_is_small_and_clean(
    reason: Reason,
    message: str,
    violations: list[Violation],
    metadata: dict[str, str],
    retry_after_s: float | None,
) -> None:
    failure = Failure(
        reason, message, violations=violations, metadata=metadata, retry_after_s=retry_after_s
    )
    status = encode_failure(failure, ID)
    assert trailers_size(status) < LIMIT
    assert all(text.isprintable() for text in texts(status))
