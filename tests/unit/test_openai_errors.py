"""What servers of the OpenAI dialect say when they fail, as reasons."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atmosphere_grpc.backends.openai_errors import from_error, from_status, stream_error_status
from atmosphere_grpc.backends.wire import MAX_WORDS, Endpoint, HttpStatus, WireSettings
from atmosphere_grpc.errors import Failure, Reason
from tests.fakes import recordings

ENDPOINT = Endpoint(WireSettings("mine", "http://backend.test:8080/v1", hint="start it"))

RECORDED = {
    "llama-cpp-server/embeddings_noflag": Reason.CAPABILITY_UNSUPPORTED,
    "llama-cpp-server/embflag/emb_empty": Reason.BACKEND_REJECTED,
    "llama-cpp-server/embflag/emb_long_ubatch": Reason.CONTEXT_OVERFLOW,  # said with status 500
    "llama-cpp-server/errors/bad_json": Reason.BACKEND_REJECTED,
    "llama-cpp-server/errors/bad_response_format": Reason.BACKEND_REJECTED,
    "llama-cpp-server/errors/bad_schema": Reason.BACKEND_REJECTED,
    "llama-cpp-server/errors/delete_chat": Reason.BACKEND_REJECTED,
    "llama-cpp-server/errors/invalid_utf8": Reason.BACKEND_REJECTED,
    "llama-cpp-server/errors/max_tokens_neg": Reason.BACKEND_REJECTED,
    "llama-cpp-server/errors/message_content_image": Reason.UNSUPPORTED_PARAMETER,  # likewise
    "llama-cpp-server/errors/message_content_number": Reason.BACKEND_REJECTED,
    "llama-cpp-server/errors/message_no_role": Reason.BACKEND_ERROR,
    "llama-cpp-server/errors/no_messages": Reason.BACKEND_REJECTED,
    "llama-cpp-server/errors/too_long": Reason.CONTEXT_OVERFLOW,
    "llama-cpp-server/errors/tool_choice_bad": Reason.BACKEND_REJECTED,
    "llama-cpp-server/errors/tools_not_array": Reason.BACKEND_ERROR,
    "llama-cpp-server/get_v1_nope": Reason.BACKEND_REJECTED,
    "llama-cpp-server/minilm/chat": Reason.BACKEND_ERROR,
    "llamafarm-2025-08/chat_backend_down": Reason.BACKEND_ERROR,
    "llamafarm-2025-08/chat_badjson": Reason.BACKEND_REJECTED,
    "llamafarm-2025-08/chat_badtypes": Reason.BACKEND_REJECTED,
    "llamafarm-2025-08/chat_nomessages": Reason.BACKEND_REJECTED,
    "llamafarm-2025-08/embeddings_root": Reason.BACKEND_REJECTED,
    "llamafarm-2025-08/get_health": Reason.BACKEND_REJECTED,
    "llamafarm-2025-08/get_v1_projects_default_nope": Reason.BACKEND_REJECTED,
}

STATUSES = {
    301: Reason.BACKEND_CONTRACT,
    307: Reason.BACKEND_CONTRACT,
    400: Reason.BACKEND_REJECTED,
    401: Reason.BACKEND_AUTH,
    403: Reason.BACKEND_AUTH,
    404: Reason.BACKEND_REJECTED,
    405: Reason.BACKEND_REJECTED,
    413: Reason.BACKEND_REJECTED,
    422: Reason.BACKEND_REJECTED,
    429: Reason.BACKEND_BUSY,
    500: Reason.BACKEND_ERROR,
    501: Reason.CAPABILITY_UNSUPPORTED,
    502: Reason.BACKEND_UNAVAILABLE,
    503: Reason.BACKEND_UNAVAILABLE,
    504: Reason.BACKEND_UNAVAILABLE,
    529: Reason.BACKEND_ERROR,
}

WORDS = "Xyzzy-7"  # what no message may repeat
BODIES: dict[str, Any] = {
    "an integer code": {"error": {"code": 400, "message": WORDS, "type": "t"}},
    "a text code": {"error": {"code": "invalid_api_key", "message": WORDS}},
    "a null code": {"error": {"code": None, "param": None, "type": WORDS, "message": WORDS}},
    "a code beyond 64 bits": {"error": {"code": 10**30, "message": WORDS}},
    "a text for an error": {"error": WORDS, "message": WORDS, "details": None},
    "no text at all": {"error": None},
    "detail as a text": {"detail": WORDS},
    "detail as an object": {"detail": {"error": WORDS, "message": WORDS}},
    "detail as a list": {"detail": [{"type": "x", "loc": ["body", WORDS], "input": WORDS}]},
    "a message alone": {"message": WORDS},
    "a list": [WORDS],
    "a text": WORDS,
    "a number": 7,
    "null": None,
}


def failure(status: int, body: bytes, retry_after_s: float | None = None) -> Failure:
    return from_status(ENDPOINT, HttpStatus(status, body, retry_after_s))


def strings(value: Any) -> list[str]:
    """All texts in a JSON value, names left out."""
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return (
        [text for part in values for text in strings(part)] if hasattr(values, "__iter__") else []
    )


@pytest.mark.parametrize(("name", "reason"), RECORDED.items())
def test_a_recorded_error_has_its_reason(name: str, reason: Reason) -> None:
    name += ".resp.txt"
    body = recordings.body(name)
    failed = failure(recordings.status(name), body)
    assert failed.reason is reason
    assert body.decode() in failed.words  # for the log
    for text in strings(json.loads(body)):
        assert text not in failed.message.split()
        assert len(text) < 8 or text not in failed.message


@pytest.mark.parametrize(("status", "reason"), STATUSES.items())
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_whatever_the_bodys_shape_the_status_decides(
    status: int, reason: Reason, body: Any
) -> None:
    failed = failure(status, json.dumps(body).encode())
    assert failed.reason is reason
    assert failed.message.startswith('integration "mine": ')
    assert str(status) in failed.message
    assert WORDS not in failed.message
    assert json.loads(failed.words) == body


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>Xyzzy-7</html>", id="a web page"),
        pytest.param(b'{"error": {"message": "Xyzzy-7', id="JSON cut short"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(b'{"error": "\xff"}', id="bytes that are no characters in a text"),
        pytest.param(b'{"\xff": 1}', id="bytes that are no characters in a name"),
        pytest.param(b"[" * 60_000, id="a deep nest"),
        pytest.param(b'{"error": {"code": 1e999}}', id="a number too large"),
    ],
)
def test_a_body_that_is_no_json_leaves_the_status(body: bytes) -> None:
    failed = failure(503, body)
    assert failed.reason is Reason.BACKEND_UNAVAILABLE
    assert WORDS not in failed.message
    assert "start it" in failed.message


@settings(deadline=None)
@given(st.sampled_from(sorted(STATUSES)), st.binary(max_size=60))
def test_no_body_is_too_odd_for_a_failure(status: int, body: bytes) -> None:
    assert failure(status, body).reason is STATUSES[status]


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 4}},
        {"error": {"code": "context_length_exceeded", "message": "x"}},
        {"detail": {"error": "context_length_exceeded", "message": "x"}},
        {"error": {"code": 500, "message": "input (9 tokens) is too large to process. x"}},
    ],
)
@pytest.mark.parametrize("status", [400, 413, 500])
def test_an_over_long_prompt_is_told_as_such_under_any_name(status: int, body: Any) -> None:
    assert failure(status, json.dumps(body).encode()).reason is Reason.CONTEXT_OVERFLOW


def test_an_over_long_prompts_counts_are_told_where_the_server_gives_them() -> None:
    failed = failure(400, recordings.body("llama-cpp-server/errors/too_long.resp.txt"))
    assert failed.metadata == {"prompt_tokens": "10031", "context_length": "4096"}


@pytest.mark.parametrize("counts", [{}, {"n_prompt_tokens": "many", "n_ctx": None}])
def test_counts_that_are_none_are_left_out(counts: Any) -> None:
    error = {"error": {"type": "exceed_context_size_error", **counts}}
    assert from_error(ENDPOINT, 400, error).metadata == {}


def test_a_busy_backends_retry_after_is_kept_and_a_rejections_is_of_no_use() -> None:
    assert failure(429, b"", 3.0).retry_delay_s == 3.0
    assert failure(503, b"", 2.0).retry_delay_s == 2.0
    assert failure(429, b"").retry_delay_s == 1.0
    assert failure(400, b"", 3.0).retry_delay_s is None


def test_where_it_helps_the_message_says_what_to_do() -> None:
    assert "api_key" in failure(401, b"").message
    assert "base_urls" in failure(404, b"").message
    assert "backend.test:8080" in failure(503, b"").message


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 400}, 400),
        ({"code": "429"}, 429),
        ({"code": 599}, 599),
        ({"code": 200}, 500),
        ({"code": 600}, 500),
        ({"code": "rate_limit_exceeded"}, 500),
        ({"code": None}, 500),
        ({"code": True}, 500),
        ({"code": 400.0}, 500),
        ({"code": "²"}, 500),
        ({"message": "x"}, 500),
        ("text", 500),
        ([], 500),
        (7, 500),
    ],
)
def test_an_error_inside_a_stream_has_the_status_that_it_names_or_500(
    error: Any, status: int
) -> None:
    assert stream_error_status(error) == status


def test_what_the_log_may_know_is_cut_and_holds_no_key() -> None:
    settings = WireSettings(
        "mine", "http://127.0.0.1:1/v1", headers={"authorization": "Bearer sk-topsecret"}
    )
    said = json.dumps({"detail": "bad header: Bearer sk-topsecret", "more": "x" * 10_000})
    failed = from_status(Endpoint(settings), HttpStatus(401, said.encode(), None))
    assert "sk-topsecret" not in failed.words
    assert "bad header: Bearer ***" in failed.words
    assert len(failed.words) <= MAX_WORDS


@pytest.mark.parametrize(
    "body",
    [
        {"object": "error", "message": "This model's maximum context length is 10 tokens."},
        {"error": {"message": "This model's maximum context length is 8 tokens. However, …"}},
        {"error": "the model is loaded with context length of only 4 tokens"},
    ],
)
def test_a_prompt_that_is_too_long_is_told_in_the_words_of_other_servers(body: Any) -> None:
    assert failure(400, json.dumps(body).encode()).reason is Reason.CONTEXT_OVERFLOW


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": "model_not_found", "message": "x"}},
        {"object": "error", "message": "The model `m` does not exist.", "type": "NotFoundError"},
        {"error": {"message": "model 'm' not found, try pulling it first"}},
    ],
)
def test_a_model_that_the_backend_has_not_is_told_as_such(body: Any) -> None:
    assert failure(404, json.dumps(body).encode()).reason is Reason.MODEL_NOT_FOUND
    assert failure(400, json.dumps(body).encode()).reason is Reason.BACKEND_REJECTED
