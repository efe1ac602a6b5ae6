"""What was said, as traces hold it where that is switched on: redacted, and cut."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from atmosphere_grpc.domain import Delta, Image, Message

#: What stands for whatever a pattern found.
REDACTED = "[redacted]"
#: The most characters of one text.
MAX_CHARACTERS = 32 * 1024
#: A character by its number, but for half a one.
_ESCAPE = re.compile(r"\\u((?![dD][89a-fA-F])[0-9a-fA-F]{4})")


class Redaction:
    """Writes conversations by the conventions for generative AI, without what patterns find.

    Args:
        patterns: Regular expressions.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]

    def messages(self, messages: Sequence[Message]) -> str:
        """A conversation, as JSON; of pictures, only that they were there."""
        return _json([{"role": item.role, "parts": self._parts(item)} for item in messages])

    def answer(self, deltas: Sequence[Delta], finish_reason: str) -> str:
        """An answer in its pieces, as JSON."""
        calls: dict[int, dict[str, Any]] = {}
        for piece in (piece for delta in deltas for piece in delta.tool_calls):
            call = calls.setdefault(piece.index, {"id": piece.id, "name": piece.name, "said": ""})
            call["said"] += piece.arguments
        parts = [
            *self._text("reasoning", "".join(delta.reasoning for delta in deltas)),
            *self._text("text", "".join(delta.content for delta in deltas)),
            *(self._call(call["id"], call["name"], call["said"]) for call in calls.values()),
        ]
        return _json([{"role": "assistant", "parts": parts, "finish_reason": finish_reason}])

    def _parts(self, message: Message) -> list[dict[str, Any]]:
        if message.tool_call_id:
            said = self._clean_json(message.content)
            call_id = self._clean(message.tool_call_id)
            return [{"type": "tool_call_response", "id": call_id, "response": said}]
        parts = [*self._text("reasoning", message.reasoning), *self._text("text", message.content)]
        for part in message.parts:
            if isinstance(part, Image):
                parts.append({"type": "image"})
            else:
                parts += self._text("text", part)
        parts += [self._call(c.id, c.name, c.arguments_json) for c in message.tool_calls]
        return parts

    def _text(self, kind: str, text: str) -> list[dict[str, Any]]:
        return [{"type": kind, "content": self._clean(text)}] if text else []

    def _call(self, call_id: str, name: str, arguments: str) -> dict[str, Any]:
        return {
            "type": "tool_call",
            "id": self._clean(call_id),
            "name": self._clean(name),
            "arguments": self._clean_json(arguments),
        }

    def _clean(self, text: str) -> str:
        # Redacted first: half of a secret, cut off, would not be found.
        return self._redacted(text)[:MAX_CHARACTERS]

    def _clean_json(self, text: str) -> str:
        """A text that may be JSON, in which a secret may be written with escapes."""
        return self._unescaped(text)[:MAX_CHARACTERS]

    def _unescaped(self, text: str) -> str:
        text = self._redacted(text)
        if not self._patterns or "\\" not in text:
            return text
        try:
            value = json.loads(text)
            clean = self._values(value)
            return text if clean == value else self._redacted(json.dumps(clean))
        except (ValueError, RecursionError):  # such as one that was cut off
            return self._redacted(_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text))

    def _values(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._unescaped(value)
        if isinstance(value, list):
            return [self._values(item) for item in value]
        if isinstance(value, dict):
            return {self._unescaped(name): self._values(item) for name, item in value.items()}
        return value

    def _redacted(self, text: str) -> str:
        for pattern in self._patterns:
            text = pattern.sub(REDACTED, text)
        return text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
