"""What Ollama says when it fails, as reasons: its sources' words, else the status."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.backends.ollama_errors import explain, explain_line
from atmosphere_grpc.backends.wire import MAX_WORDS, Endpoint, HttpStatus, WireSettings
from atmosphere_grpc.errors import Failure, Reason

ENDPOINT = Endpoint(WireSettings("mine", "http://ollama.test:11434", hint="start it"))

#: What is said with which status, and what it means.
SAID = {
    "the input length exceeds the context length": (400, Reason.CONTEXT_OVERFLOW),
    "input length exceeds maximum context length": (400, Reason.CONTEXT_OVERFLOW),
    "input after truncation exceeds maximum context length": (400, Reason.CONTEXT_OVERFLOW),
    "input length (9 tokens) exceeds the model's maximum context length (4 tokens)": (
        500,
        Reason.CONTEXT_OVERFLOW,
    ),
    '{"code":400,"message":"x","type":"exceed_context_size_error","n_ctx":4}': (
        400,
        Reason.CONTEXT_OVERFLOW,
    ),
    "registry.ollama.ai/library/x:latest does not support tools": (
        400,
        Reason.UNSUPPORTED_PARAMETER,
    ),
    '"x" does not support thinking': (400, Reason.UNSUPPORTED_PARAMETER),
    "this model is missing data required for image input": (500, Reason.UNSUPPORTED_PARAMETER),
    "image input is not supported - hint: if this is unexpected, you may need to provide": (
        500,
        Reason.UNSUPPORTED_PARAMETER,
    ),
    '"x" does not support chat': (400, Reason.CAPABILITY_UNSUPPORTED),
    '"x" does not support generate': (400, Reason.CAPABILITY_UNSUPPORTED),
    "this model does not support embeddings": (501, Reason.CAPABILITY_UNSUPPORTED),
    "model 'x' not found": (404, Reason.MODEL_NOT_FOUND),
    'model "x" not found, try pulling it first': (404, Reason.MODEL_NOT_FOUND),
    "server busy, please try again.  maximum pending requests exceeded": (
        503,
        Reason.BACKEND_BUSY,
    ),
    "missing request body": (400, Reason.BACKEND_REJECTED),
    'option "seed" must be of type integer': (400, Reason.BACKEND_REJECTED),
    "request canceled": (499, Reason.BACKEND_REJECTED),
    "llama runner process has terminated: exit status 2": (500, Reason.BACKEND_ERROR),
    "model requires more system memory (9 GiB) than is available (1 GiB)": (
        500,
        Reason.BACKEND_ERROR,
    ),
}
#: What the status alone says, whatever else is there.
STATUSES = {
    301: Reason.BACKEND_CONTRACT,
    400: Reason.BACKEND_REJECTED,
    401: Reason.BACKEND_AUTH,
    403: Reason.BACKEND_AUTH,
    404: Reason.MODEL_NOT_FOUND,
    405: Reason.BACKEND_REJECTED,
    429: Reason.BACKEND_BUSY,
    500: Reason.BACKEND_ERROR,
    502: Reason.BACKEND_UNAVAILABLE,
    503: Reason.BACKEND_UNAVAILABLE,
}
WORDS = "Xyzzy-7"  # what no message may repeat


def failure(status: int, body: bytes, retry_after_s: float | None = None) -> Failure:
    return explain(ENDPOINT, HttpStatus(status, body, retry_after_s))


def said(status: int, text: str, retry_after_s: float | None = None) -> Failure:
    return failure(status, json.dumps({"error": text}).encode(), retry_after_s)


@pytest.mark.parametrize(
    ("text", "status", "reason"), [(text, *meant) for text, meant in SAID.items()]
)
def test_what_ollama_says_has_its_reason(text: str, status: int, reason: Reason) -> None:
    failed = said(status, text)
    assert failed.reason is reason
    assert failed.message.startswith('integration "mine": ')
    assert text not in failed.message
    assert json.loads(failed.words) == {"error": text}  # for the log


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (text, reason)
        for text, (status, reason) in SAID.items()
        if reason
        in (Reason.CONTEXT_OVERFLOW, Reason.UNSUPPORTED_PARAMETER, Reason.CAPABILITY_UNSUPPORTED)
    ],
)
@pytest.mark.parametrize("shape", ["text", "object"])
def test_inside_a_stream_the_words_mean_the_same(text: str, reason: Reason, shape: str) -> None:
    failed = explain_line(ENDPOINT, text if shape == "text" else {"message": text})
    assert failed.reason is reason
    assert text not in failed.message
    assert text.split()[-1].strip('"}') in failed.words


@pytest.mark.parametrize("error", [WORDS, {"message": WORDS, "code": 1}, [WORDS], 7, True])
def test_another_error_inside_a_stream_is_the_backends(error: Any) -> None:
    failed = explain_line(ENDPOINT, error)
    assert failed.reason is Reason.BACKEND_ERROR
    assert WORDS not in failed.message
    assert json.dumps(error, separators=(",", ":")) in failed.words


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x does not support tools", "tools"),
        ('"x" does not support thinking', "extra.think"),
        ("this model is missing data required for image input", "image"),
        ("the input length exceeds the context length", "context_length"),
        ("model 'x' not found", "ollama pull"),
        ("server busy, please try again.", "OLLAMA_MAX_QUEUE"),
    ],
)
def test_the_message_says_what_is_at_fault_or_what_to_do(text: str, names: str) -> None:
    status = next((meant[0] for known, meant in SAID.items() if text in known), 400)
    assert names in said(status, text).message


@pytest.mark.parametrize(("status", "reason"), STATUSES.items())
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps({"error": WORDS}).encode(), id="an error"),
        pytest.param(json.dumps({"error": {"message": WORDS}}).encode(), id="an object"),
        pytest.param(b"404 page not found", id="text"),
        pytest.param(b"<html>Xyzzy-7</html>", id="a web page"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(b"[" * 60_000, id="a deep nest"),
    ],
)
def test_whatever_is_said_otherwise_the_status_decides(
    status: int, reason: Reason, body: bytes
) -> None:
    failed = failure(status, body)
    assert failed.reason is reason
    assert str(status) in failed.message
    assert WORDS not in failed.message


@settings(deadline=None)
@given(st.sampled_from(sorted(STATUSES)), st.binary(max_size=60))
def test_no_body_is_too_odd_for_a_failure(status: int, body: bytes) -> None:
    assert failure(status, body).reason is STATUSES[status]


def test_a_busy_servers_retry_after_is_kept() -> None:
    busy = "server busy, please try again.  maximum pending requests exceeded"
    assert said(503, busy, 3.0).retry_delay_s == 3.0
    assert said(429, WORDS, 2.0).retry_delay_s == 2.0
    assert said(503, WORDS, 2.0).retry_delay_s == 2.0
    assert said(503, busy).retry_delay_s == 1.0
    assert said(400, WORDS, 2.0).retry_delay_s is None


def test_a_host_name_that_ollama_refuses_is_no_matter_of_a_key() -> None:
    message = failure(403, b"").message
    assert "OLLAMA_HOST" in message
    assert "api_key" not in message


def test_what_the_log_may_know_is_cut_and_holds_no_key() -> None:
    wire = WireSettings("mine", "http://x:1", headers={"authorization": "Bearer sk-topsecret"})
    text = "model 'x' not found: Bearer sk-topsecret " + "x" * 10_000
    body = json.dumps({"error": text}).encode()
    for failed in (
        explain(Endpoint(wire), HttpStatus(404, body, None)),
        explain_line(Endpoint(wire), f"does not support tools {text}"),
    ):
        assert "sk-topsecret" not in failed.words
        assert "not found: Bearer ***" in failed.words
        assert len(failed.words) <= MAX_WORDS
