"""A whole answer out of a stream's events.

Every answer is streamed from the backend, also that of a unary call: backends
stop generating only when a stream is closed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from atmosphere_grpc.domain import (
    Answer,
    ChatEvent,
    Completed,
    Delta,
    Message,
    Started,
    ToolCall,
)
from atmosphere_grpc.errors import Failure, Reason

#: The most bytes of an answer that is put together: no more could be sent to the caller.
MAX_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class Assembler:
    """Takes a chat's events in; `text` is what came so far, also of an answer that broke off."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets what came so far."""
        self.started: Started | None = None
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._left = MAX_BYTES

    @property
    def text(self) -> str:
        """The answer's text so far."""
        return "".join(self._content)

    async def whole(self, events: AsyncIterator[ChatEvent]) -> Answer:
        """The answer, when it is complete; whatever the events raise goes through.

        Raises:
            Failure: BACKEND_CONTRACT, where it has no end in sight.
        """
        async for event in events:
            match event:
                case Started():
                    self.started = event
                case Delta():
                    self._add(event)
                case Completed() if self.started is not None:
                    return Answer(self.started, self._message(), event)
        raise AssertionError("a chat ended without Started and Completed")

    def _add(self, delta: Delta) -> None:
        if delta.content:
            self._content.append(self._counted(delta.content))
        if delta.reasoning:
            self._reasoning.append(self._counted(delta.reasoning))
        for piece in delta.tool_calls:
            if (call := self._calls.get(piece.index)) is None:
                call = self._calls[piece.index] = _Call(piece.id, piece.name)
                self._counted(f"{piece.id} {piece.name}")
            if piece.arguments:
                call.arguments.append(self._counted(piece.arguments))
        if self._left < 0:
            self._content, self._reasoning, self._calls = [], [], {}
            who = f'integration "{self.started.integration_id}"' if self.started else "the backend"
            raise Failure(
                Reason.BACKEND_CONTRACT,
                f"{who}: the answer is larger than {MAX_BYTES // 1024 // 1024} MB – set max_tokens,"
                " or use the streaming Chat",
            )

    def _counted(self, text: str) -> str:
        self._left -= len(text) if text.isascii() else len(text.encode(errors="replace"))
        return text

    def _message(self) -> Message:
        return Message(
            role="assistant",
            content=self.text,
            reasoning="".join(self._reasoning),
            tool_calls=tuple(
                ToolCall(call.id, call.name, "".join(call.arguments))
                for _, call in sorted(self._calls.items())
            ),
        )
