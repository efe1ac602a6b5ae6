"""What a server of the OpenAI dialect says when it fails, as a Failure.

Servers agree on little: `error` may be a string or an object, its code a number,
a text or null, `detail` a string, an object or a list. The HTTP status decides;
the words only tell a context overflow from another bad request, and go to the log.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from atmosphere_grpc.backends.openai_schema import MALFORMED
from atmosphere_grpc.backends.wire import Endpoint, HttpStatus
from atmosphere_grpc.errors import Failure, Reason

#: How servers name a prompt that is too long: llama.cpp, Universal Runtime and OpenAI.
OVERFLOW_NAMES = ("exceed_context_size_error", "context_length_exceeded")
#: How others put it: llama.cpp for embeddings (with status 500), vLLM, LM Studio.
OVERFLOW_WORDS = re.compile(
    r"is too large to process|maximum context length|context length of only"
)
#: How servers say that they have no such model, with status 404.
NO_MODEL_WORDS = re.compile(r"model_not_found|\bmodel\b.{0,200}(?:does not exist|not found)", re.I)
#: How llama.cpp says, with status 500, that a text model was shown a picture.
IMAGE_WORDS = "image input is not supported"


def from_status(endpoint: Endpoint, answer: HttpStatus) -> Failure:
    """The failure that an answer other than 2xx stands for."""
    try:
        body = msgspec.json.decode(answer.body)
    except MALFORMED:
        body = None
    failure = from_error(endpoint, answer.status, body)
    failure.retry_after_s = answer.retry_after_s
    failure.words = endpoint.words(answer.body)
    return failure


def from_error(endpoint: Endpoint, status: int, body: Any) -> Failure:
    """The failure of an HTTP status and a decoded error body, of whatever shape.

    Args:
        endpoint: Who said it.
        status: The HTTP status; 500 for an error inside a stream that names none.
        body: The decoded JSON; None where it was none.
    """
    text = _text(body)
    failure = _classify(endpoint, status, text)
    failure.words = endpoint.words(text.encode())
    if failure.reason is Reason.CONTEXT_OVERFLOW:
        failure.metadata.update(_token_counts(body))
    return failure


def stream_error_status(error: Any) -> int:
    """The HTTP status that an error inside a stream names; 500 for none."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    return code if isinstance(code, int) and 400 <= code <= 599 else 500


def _text(body: Any) -> str:
    """A body to look for words in; empty for one so deep that there was just room to read it."""
    try:
        return msgspec.json.encode(body).decode()
    except RecursionError:
        return ""


def _classify(endpoint: Endpoint, status: int, text: str) -> Failure:
    fail = endpoint.fail
    if any(name in text for name in OVERFLOW_NAMES) or OVERFLOW_WORDS.search(text):
        return fail(
            Reason.CONTEXT_OVERFLOW,
            "the prompt has more tokens than the model's context holds – shorten it or choose a "
            "model with a larger one",
        )
    if IMAGE_WORDS in text:
        return fail(
            Reason.UNSUPPORTED_PARAMETER,
            "the model takes no images – leave them out or choose a vision model",
        )
    match status:
        case 401 | 403:
            return fail(
                Reason.BACKEND_AUTH,
                f"the backend rejected this server's credential (HTTP {status}) – check api_key",
            )
        case 404 if NO_MODEL_WORDS.search(text):
            return fail(
                Reason.MODEL_NOT_FOUND,
                "the backend has no such model (HTTP 404) – ListModels shows those that it has",
            )
        case 404:
            return fail(
                Reason.BACKEND_REJECTED,
                "the backend knows no such path or model (HTTP 404) – check base_urls and the "
                "model's name",
            )
        case 429:
            return fail(Reason.BACKEND_BUSY, "the backend has too much to do (HTTP 429)")
        case 501:
            return fail(
                Reason.CAPABILITY_UNSUPPORTED,
                "the backend does not support this (HTTP 501) – choose another integration",
            )
        case 502 | 503 | 504:
            return endpoint.unavailable(f"the backend is not ready (HTTP {status})")
        case _ if 300 <= status < 400:
            return endpoint.contract(f"it answers with a redirect (HTTP {status})")
        case _ if 400 <= status < 500:
            return fail(
                Reason.BACKEND_REJECTED,
                f"the backend rejected the request (HTTP {status}); the server's log has its "
                "words, at level debug",
            )
        case _:
            return fail(Reason.BACKEND_ERROR, f"the backend failed (HTTP {status})")


def _token_counts(body: Any) -> dict[str, str]:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return {}
    counts = {"prompt_tokens": error.get("n_prompt_tokens"), "context_length": error.get("n_ctx")}
    return {name: str(value) for name, value in counts.items() if isinstance(value, int)}
