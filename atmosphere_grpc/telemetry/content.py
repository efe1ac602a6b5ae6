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
            said = self._clean(message.content)
            return [{"type": "tool_call_response", "id": message.tool_call_id, "response": said}]
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
        said = self._clean(arguments)
        return {"type": "tool_call", "id": call_id, "name": name, "arguments": said}

    def _clean(self, text: str) -> str:
        # Redacted first: half of a secret, cut off, would not be found.
        for pattern in self._patterns:
            text = pattern.sub(REDACTED, text)
        return text[:MAX_CHARACTERS]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
