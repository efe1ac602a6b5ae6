"""What each dialect does with each parameter of a request: it honours it, or refuses it.

A backend that leaves a parameter out without a word gives the caller another answer than was asked
for. So the table says for every dialect where a parameter goes in its request; one that has no
place there, or that the backend is known to ignore, is refused by name. Requests are built by the
table (`Draft`), the documentation's table is written from it, and the tests are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from atmosphere_grpc.errors import Failure, Reason, Violation


class Dialect(StrEnum):
    """How a backend wants to be spoken to."""

    OPENAI = "openai"
    LLAMAFARM = "llamafarm"
    RUNTIME = "universal runtime"
    OLLAMA = "ollama"


class Parameter(StrEnum):
    """What a request may ask for beyond its texts, as its fields are called."""

    TEMPERATURE = "temperature"
    TOP_P = "top_p"
    TOP_K = "top_k"
    MAX_TOKENS = "max_tokens"
    SEED = "seed"
    STOP = "stop"
    PRESENCE_PENALTY = "presence_penalty"
    FREQUENCY_PENALTY = "frequency_penalty"
    LOGPROBS = "logprobs"
    TOP_LOGPROBS = "top_logprobs"
    TOOLS = "tools"
    TOOL_STRICT = "tools[].strict"
    TOOL_CHOICE_AUTO = "tool_choice: AUTO"
    TOOL_CHOICE_NONE = "tool_choice: NONE"
    TOOL_CHOICE_REQUIRED = "tool_choice: REQUIRED"
    TOOL_CHOICE_NAME = "tool_choice: name"
    JSON_OBJECT = "response_format: json_object"
    JSON_SCHEMA = "response_format: json_schema"
    STRICT = "response_format: json_schema.strict"
    IMAGE_DATA = "image: data"
    IMAGE_URL = "image: url"
    NAME = "messages[].name"
    SESSION_ID = "session_id"
    DIMENSIONS = "dimensions"


@dataclass(frozen=True, slots=True)
class Sent:
    """The parameter goes to `path` of the backend's request; `note` says what to know about it."""

    path: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Honoured:
    """The parameter needs no field of the backend's request; `how` says why not."""

    how: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The backend has no such thing; `remedy` says what to do instead."""

    remedy: str = "leave it out, or choose another integration"


Rule = Sent | Honoured | Refused

_NO = Refused()
_P = Parameter
_WINS = "what the project's configuration sets wins"
_OLD = f"{_WINS}; servers of 2025 ignore it"
_PART = "messages[].content[].image_url.url"
_NO_SESSIONS = Refused("it keeps none; send the whole conversation in messages")
_SCHEMA = Refused("leave it out; a schema is set in the project's configuration")
_CHECKED = "vectors of another length are a failure"
_DEMANDED = "an answer without a call is a failure"
_ONLY_WAY = Honoured("it is the only way")
_TOOLS_LEFT_OUT = Honoured("the tools are left out")


def _row(openai: Rule, llamafarm: Rule, runtime: Rule, ollama: Rule) -> Mapping[Dialect, Rule]:
    return dict(zip(Dialect, (openai, llamafarm, runtime, ollama), strict=True))


MATRIX: Mapping[Parameter, Mapping[Dialect, Rule]] = {
    _P.TEMPERATURE: _row(
        Sent("temperature"),
        Sent("temperature", _OLD),
        Sent("temperature"),
        Sent("options.temperature"),
    ),
    _P.TOP_P: _row(Sent("top_p"), Sent("top_p", _OLD), Sent("top_p"), Sent("options.top_p")),
    _P.TOP_K: _row(Sent("top_k", "OpenAI itself rejects it"), _NO, _NO, Sent("options.top_k")),
    _P.MAX_TOKENS: _row(
        Sent("max_tokens"),
        Sent("max_tokens", _WINS),
        Sent("max_tokens", "unset, the runtime stops after 512"),
        Sent("options.num_predict"),
    ),
    _P.SEED: _row(Sent("seed"), _NO, _NO, Sent("options.seed")),
    _P.STOP: _row(Sent("stop"), _NO, Sent("stop"), Sent("options.stop")),
    _P.PRESENCE_PENALTY: _row(Sent("presence_penalty"), _NO, _NO, Sent("options.presence_penalty")),
    _P.FREQUENCY_PENALTY: _row(
        Sent("frequency_penalty"), _NO, _NO, Sent("options.frequency_penalty")
    ),
    _P.LOGPROBS: _row(Sent("logprobs"), _NO, _NO, Sent("logprobs")),
    _P.TOP_LOGPROBS: _row(Sent("top_logprobs"), _NO, _NO, Sent("top_logprobs")),
    _P.TOOLS: _row(
        Sent("tools"),
        Sent("tools", "beside the project's own, which the server itself calls"),
        Sent("tools"),
        Sent("tools"),
    ),
    _P.TOOL_STRICT: _row(Sent("tools[].function.strict"), _NO, _NO, _NO),
    _P.TOOL_CHOICE_AUTO: _row(Sent("tool_choice"), _ONLY_WAY, Sent("tool_choice"), _ONLY_WAY),
    _P.TOOL_CHOICE_NONE: _row(
        Sent("tool_choice"), _TOOLS_LEFT_OUT, Sent("tool_choice"), _TOOLS_LEFT_OUT
    ),
    _P.TOOL_CHOICE_REQUIRED: _row(
        Sent("tool_choice", _DEMANDED), _NO, Sent("tool_choice", _DEMANDED), _NO
    ),
    _P.TOOL_CHOICE_NAME: _row(
        Sent("tool_choice", _DEMANDED), _NO, Sent("tool_choice", _DEMANDED), _NO
    ),
    _P.JSON_OBJECT: _row(Sent("response_format"), _SCHEMA, _NO, Sent("format")),
    _P.JSON_SCHEMA: _row(Sent("response_format"), _SCHEMA, _NO, Sent("format")),
    _P.STRICT: _row(
        Sent("response_format.json_schema.strict"),
        _SCHEMA,
        _NO,
        Refused("leave it out; Ollama always holds to a schema"),
    ),
    _P.IMAGE_DATA: _row(Sent(_PART), Sent(_PART), _NO, Sent("messages[].images")),
    _P.IMAGE_URL: _row(
        Sent(_PART),
        Sent(_PART),
        _NO,
        Refused("give the picture itself as data; Ollama fetches no address"),
    ),
    _P.NAME: _row(
        Sent("messages[].name"),
        Sent("messages[].name"),
        _NO,
        Refused("leave it out; Ollama's messages have no names"),
    ),
    _P.SESSION_ID: _row(
        _NO_SESSIONS,
        Sent("header X-Session-ID", "the server adds the messages to those it keeps"),
        _NO_SESSIONS,
        _NO_SESSIONS,
    ),
    _P.DIMENSIONS: _row(
        Sent("dimensions", _CHECKED),
        Sent("dimensions", _CHECKED),
        Honoured(_CHECKED),
        Sent("dimensions", _CHECKED),
    ),
}


class Draft:
    """A request in the making: what its dialect has a place for, and what it refuses.

    Args:
        dialect: The dialect.
        body: What the request holds in any case.
    """

    def __init__(self, dialect: Dialect, body: Mapping[str, Any]) -> None:
        self.body: dict[str, Any] = dict(body)
        self._dialect = dialect
        self._invalid: list[Violation] = []
        self._unsupported: list[Violation] = []

    def allows(self, parameter: Parameter, field: str) -> bool:
        """Whether a parameter is honoured; if not, it is noted as refused.

        Args:
            parameter: The parameter.
            field: Its path in the caller's request.
        """
        rule = MATRIX[parameter][self._dialect]
        if isinstance(rule, Refused):
            self.refuse(field, rule.remedy)
        return not isinstance(rule, Refused)

    def sends(self, parameter: Parameter) -> bool:
        """Whether a parameter has a field of the request."""
        return isinstance(MATRIX[parameter][self._dialect], Sent)

    def put(self, parameter: Parameter, value: Any, field: str) -> None:
        """Puts a parameter's value where the dialect wants it, or notes that it is refused."""
        rule = MATRIX[parameter][self._dialect]
        if self.allows(parameter, field) and isinstance(rule, Sent):
            self.set(rule.path, value)

    def set(self, path: str, value: Any) -> None:
        """Puts a value at a path such as `options.seed`."""
        *parents, name = path.split(".")
        place = self.body
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value

    def refuse(self, field: str, remedy: str) -> None:
        """Notes a field that the backend has no use for."""
        self._unsupported.append(
            Violation(field, f"not supported by a backend of kind {self._dialect} – {remedy}")
        )

    def reject(self, field: str, what: str) -> None:
        """Notes a field that is wrong."""
        self._invalid.append(Violation(field, what))

    def check(self) -> None:
        """That nothing was refused.

        Raises:
            Failure: INVALID_FIELD or UNSUPPORTED_PARAMETER, with every field at fault.
        """
        if self._invalid:
            raise Failure.invalid(*self._invalid)
        if self._unsupported:
            raise unsupported(self._unsupported)


def unsupported(violations: Sequence[Violation]) -> Failure:
    """A request with parameters that a backend cannot honour; the message lists them all."""
    message = "; ".join(f"{bad.field}: {bad.description}" for bad in violations)
    return Failure(Reason.UNSUPPORTED_PARAMETER, message, violations=violations)
