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

    @property
    def text(self) -> str:
        """The answer's text so far."""
        return "".join(self._content)

    async def whole(self, events: AsyncIterator[ChatEvent]) -> Answer:
        """The answer, when it is complete; whatever the events raise goes through."""
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
        self._content.append(delta.content)
        self._reasoning.append(delta.reasoning)
        for piece in delta.tool_calls:
            call = self._calls.setdefault(piece.index, _Call(piece.id, piece.name))
            call.arguments.append(piece.arguments)

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
