"""What Ollama says when it fails, as a Failure: `{"error": "text"}`, in no fixed words.

The words are those of its sources; what they do not tell, the HTTP status does.
"""

from __future__ import annotations

from typing import Any

from atmosphere_grpc.backends.openai_errors import from_error, from_status
from atmosphere_grpc.backends.wire import Endpoint, HttpStatus
from atmosphere_grpc.errors import Failure, Reason

#: A prompt that is too long, which it was told not to cut (chat and embeddings).
OVERFLOW = (
    "exceed_context_size_error",  # llama.cpp's own answer, as text in `error` (0.30 and newer)
    "exceeds the context length",
    "exceeds maximum context length",
    "exceeds the model's maximum context length",
    "longer than the context length",
)
#: What a model cannot do that the request asks for, and the field that asks.
LACKS = {
    "does not support tools": "tools",
    "does not support thinking": "extra.think",
    "missing data required for image input": "image",
    "does not support image": "image",
}
#: What a model is not made for at all.
INCAPABLE = ("does not support chat", "does not support generate", "does not support embed")


def explain(endpoint: Endpoint, answer: HttpStatus) -> Failure:
    """The failure that an answer other than 2xx stands for."""
    text = answer.body.decode(errors="replace")
    failure = _by_words(endpoint, text)
    if failure is None and answer.status == 404:
        failure = endpoint.fail(
            Reason.MODEL_NOT_FOUND,
            "Ollama has no such model any more, or no such path (HTTP 404) – ollama list shows "
            "its models, ollama pull gets one",
        )
    if failure is None and answer.status == 403:
        failure = endpoint.fail(
            Reason.BACKEND_AUTH,
            "Ollama refuses the host name of base_urls (HTTP 403) – use localhost or its IP "
            "address, or set OLLAMA_HOST at the server",
        )
    if failure is None and answer.status == 503 and "busy" in text:
        failure = endpoint.fail(
            Reason.BACKEND_BUSY, "Ollama has too much to do (HTTP 503; OLLAMA_MAX_QUEUE)"
        )
    if failure is None:
        return from_status(endpoint, answer)
    failure.retry_after_s = answer.retry_after_s
    failure.words = endpoint.words(answer.body)
    return failure


def explain_line(endpoint: Endpoint, error: Any) -> Failure:
    """The failure that an error inside a stream stands for."""
    try:
        text = str(error)
    except RecursionError:  # so deep that there was just room to read it
        text = ""
    known = _by_words(endpoint, text)
    if known is None:
        return from_error(endpoint, 500, {"error": error})
    known.words = endpoint.words(text.encode())
    return known


def _by_words(endpoint: Endpoint, text: str) -> Failure | None:
    if any(words in text for words in OVERFLOW):
        return endpoint.fail(
            Reason.CONTEXT_OVERFLOW,
            "the prompt has more tokens than the model's context holds – shorten it, or set a "
            "greater context_length for the integration",
        )
    if any(words in text for words in INCAPABLE):
        return endpoint.fail(
            Reason.CAPABILITY_UNSUPPORTED, "the model is not made for this – choose another"
        )
    for words, field in LACKS.items():
        if words in text:
            return endpoint.fail(
                Reason.UNSUPPORTED_PARAMETER,
                f"{field}: not supported by this model – leave it out, or choose another",
            )
    return None
