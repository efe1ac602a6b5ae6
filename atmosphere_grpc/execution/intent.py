"""An intent as the call that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from atmosphere_grpc.domain import (
    AnomalyCall,
    Call,
    Capability,
    ChatCall,
    ClassifyCall,
    EmbedCall,
    ExecuteCall,
    Message,
    Row,
)
from atmosphere_grpc.errors import Failure, Violation

#: Where an intent's request has `extra`.
EXTRA_PATH = "kwargs.extra"
MAX_TEXTS = 2048
#: Which capabilities use which of the arguments that not all of them use.
USERS: Mapping[str, tuple[Capability, ...]] = {
    "prompt": (Capability.CHAT, Capability.GENERATE, Capability.RAG),
    "messages": (Capability.CHAT, Capability.RAG, Capability.VISION),
    "system": (Capability.CHAT, Capability.GENERATE, Capability.RAG, Capability.VISION),
    "text": (Capability.EMBED, Capability.CLASSIFY),
    "data": (Capability.CLASSIFY, Capability.ANOMALY),
}
#: How an image is given.
IMAGE_SHAPE = (
    '{"role": "user", "content": [{"type": "text", "text": "…"}, {"type": "image_url", '
    '"image_url": {"url": "https://… or data:image/png;base64,…"}}]}'
)


def as_call(call: ExecuteCall, capability: Capability) -> Call:
    """What is to be done for an intent.

    Raises:
        Failure: INVALID_FIELD; it lacks what the capability needs, or has what it does not use.
    """
    given = {name: getattr(call, name) is not None for name in USERS}
    unused = [name for name, is_set in given.items() if is_set and capability not in USERS[name]]
    violations = [Violation(f"kwargs.{name}", _used_by(USERS[name])) for name in unused]
    if not capability.is_chat:
        violations[:0] = [
            Violation(field, _used_by(USERS["system"])) for field in call.sampling_fields
        ]
    if violations:
        raise Failure.invalid(*violations)
    return _MAKERS[capability](call)


def _chat(call: ExecuteCall) -> ChatCall:
    """The conversation: `messages`, else `prompt`, else the intent, after the `system` text."""
    if call.messages is not None:
        messages = call.messages
    else:
        messages = (Message("user", _text(call.prompt, call, "kwargs.prompt or kwargs.messages")),)
    if call.system is not None:
        messages = (Message("system", call.system), *messages)
    return ChatCall(
        call.target,
        messages,
        call.sampling,
        extra=call.extra,
        extra_path=EXTRA_PATH,
        sampling_fields=call.sampling_fields,
        messages_path="kwargs.messages",
        messages_before=0 if call.system is None else 1,
    )


def _rag(call: ExecuteCall) -> ChatCall:
    if call.extra.get("rag_enabled", True) is not True:
        raise Failure.invalid(
            Violation(
                f"{EXTRA_PATH}.rag_enabled",
                'must be true or unset with capability "rag"; use "chat" to do without',
            )
        )
    return replace(_chat(call), extra={**call.extra, "rag_enabled": True})


def _vision(call: ExecuteCall) -> ChatCall:
    shown = _chat(call) if call.messages is not None else None
    if shown is None or shown.image_path is None:
        raise Failure.invalid(
            Violation(
                "kwargs.messages", f'must hold an image for capability "vision": {IMAGE_SHAPE}'
            )
        )
    return shown


def _embed(call: ExecuteCall) -> EmbedCall:
    """The text: `text`, else the intent."""
    text = _text(call.text, call, "kwargs.text")
    return EmbedCall(call.target, (text,), extra=call.extra, extra_path=EXTRA_PATH)


def _classify(call: ExecuteCall) -> ClassifyCall:
    """The texts: `data`, else `text`, else the intent."""
    if call.data is None:
        texts: tuple[str, ...] = (_text(call.text, call, "kwargs.data or kwargs.text"),)
    elif call.text is not None:
        raise Failure.invalid(Violation("kwargs.text", "excludes kwargs.data; give one of the two"))
    else:
        if len(call.data) > MAX_TEXTS:
            what = f"must have at most {MAX_TEXTS} texts, not {len(call.data)}"
            raise Failure.invalid(Violation("kwargs.data", what))
        wrong = [i for i, item in enumerate(call.data) if not isinstance(item, str) or not item]
        _check_data(wrong, "must be a text that is not empty")
        texts = call.data
    return ClassifyCall(call.target, texts, extra=call.extra, extra_path=EXTRA_PATH)


def _anomaly(call: ExecuteCall) -> AnomalyCall:
    """The rows: `data`."""
    if call.data is None:
        raise Failure.invalid(
            Violation(
                "kwargs.data",
                'is required for capability "anomaly": a list of rows, each a list of numbers or '
                "an object",
            )
        )
    rows: tuple[Row, ...] = call.data
    first = rows[0]
    if isinstance(first, dict):
        wrong = [i for i, row in enumerate(rows) if not isinstance(row, dict) or not row]
        _check_data(wrong, "must be an object with features, as the first row is")
    else:
        wrong = [i for i, row in enumerate(rows) if not _is_numbers(row)]
        _check_data(wrong, "must be a list of numbers, or an object where all rows are")
        wrong = [i for i, row in enumerate(rows) if len(row) != len(first)]
        _check_data(wrong, f"must have as many numbers as the first row, which has {len(first)}")
    return AnomalyCall(call.target, rows, extra=call.extra, extra_path=EXTRA_PATH)


_MAKERS: Mapping[Capability, Callable[[ExecuteCall], Call]] = {
    Capability.CHAT: _chat,
    Capability.EMBED: _embed,
    Capability.GENERATE: _chat,
    Capability.RAG: _rag,
    Capability.VISION: _vision,
    Capability.CLASSIFY: _classify,
    Capability.ANOMALY: _anomaly,
}
#: How many wrong items of `data` are told.
_TOLD = 5


def _check_data(wrong: list[int], what: str) -> None:
    if wrong:
        raise Failure.invalid(*(Violation(f"kwargs.data[{i}]", what) for i in wrong[:_TOLD]))


def _is_numbers(row: Any) -> bool:
    """Whether it is a list of numbers; those of a request are finite."""
    return (
        isinstance(row, list)
        and bool(row)
        and all(isinstance(item, int | float) and not isinstance(item, bool) for item in row)
    )


def _used_by(users: tuple[Capability, ...]) -> str:
    names = " and ".join(f'"{item.value}"' for item in users)
    return f"is used by capability {names} only; leave it out"


def _text(given: str | None, call: ExecuteCall, otherwise: str) -> str:
    if text := call.intent if given is None else given:
        return text
    raise Failure.invalid(Violation("intent", f"is required, unless {otherwise} is given"))
