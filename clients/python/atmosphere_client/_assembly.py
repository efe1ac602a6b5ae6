"""Puts the events of a chat together; what the sync and the async stream have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from atmosphere_grpc.v1 import chat_pb2

from .errors import AtmosphereError, broken, cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class ChatResult:
    """A whole answer.

    Attributes:
        message: The assistant's message, ready to be appended to the next request. It
            carries no reasoning, which requests reject.
        reasoning: The model's reasoning, apart from its answer.
        started: Who answered: id, model, integration and why.
        completed: Why it ended, what it cost, how long it took and what was tried.
    """

    message: chat_pb2.Message
    reasoning: str
    started: chat_pb2.Started | None
    completed: chat_pb2.Completed

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.message.content

    @property
    def tool_calls(self) -> Sequence[chat_pb2.ToolCall]:
        """The tools that the model calls."""
        return self.message.tool_calls


class Assembly:
    """The answer so far.

    Attributes:
        text: The text so far.
        reasoning: The reasoning so far.
        started: Who answers; None until the backend has begun to.
        progress: The last word on what the call waits for, or None.
        completed: How the answer ended; None until it is whole.
    """

    def __init__(self, on_progress: Callable[[chat_pb2.Progress], None] | None = None) -> None:
        self.text = ""
        self.reasoning = ""
        self.started: chat_pb2.Started | None = None
        self.progress: chat_pb2.Progress | None = None
        self.completed: chat_pb2.Completed | None = None
        self._on_progress = on_progress
        self._calls: dict[int, chat_pb2.ToolCall] = {}
        self._ended = False
        self._error: AtmosphereError | None = None

    @property
    def message(self) -> chat_pb2.Message:
        """The assistant's message so far, without its reasoning, which requests reject."""
        calls = [self._calls[index] for index in sorted(self._calls)]
        return chat_pb2.Message(role="assistant", content=self.text, tool_calls=calls)

    @property
    def tool_calls(self) -> list[chat_pb2.ToolCall]:
        """The tool calls so far, in the order of their index."""
        return list(self.message.tool_calls)

    @property
    def _open(self) -> bool:
        return not self._ended and self._error is None

    def _more(self) -> bool:
        """Says whether there is more to read; raises again what the stream failed with."""
        if self._error is not None:
            raise self._error
        return not self._ended

    def _apply(self, event: chat_pb2.ChatResponse) -> chat_pb2.Delta | None:
        """Takes an event in, and returns its delta if it is one."""
        match event.WhichOneof("event"):
            case "delta":
                self._append(event.delta)
                return event.delta
            case "started":
                self.started = event.started
            case "progress":
                self.progress = event.progress
                if self._on_progress is not None:
                    self._on_progress(event.progress)
            case "completed":
                self.completed = event.completed
            case _:
                pass  # an event of a later version of the contract
        return None

    def _append(self, delta: chat_pb2.Delta) -> None:
        self.text += delta.content
        self.reasoning += delta.reasoning
        for piece in delta.tool_calls:
            call = self._calls.setdefault(piece.index, chat_pb2.ToolCall())
            call.id = piece.id or call.id
            call.name = piece.name or call.name
            call.arguments_json += piece.arguments_json_fragment

    def _end(self) -> None:
        """Notes that the call ended OK.

        Raises:
            InternalError: The answer is not whole; the reason is ``STREAM_TRUNCATED``.
        """
        if self.completed is None:
            raise self._fail(broken("STREAM_TRUNCATED", "the stream ended without `completed`"))
        self._ended = True

    def _fail(self, error: AtmosphereError) -> AtmosphereError:
        """Notes why the call failed, and returns what it failed with first."""
        if self._error is None:
            self._error = error
        return self._error

    def _abandon(self) -> bool:
        """Notes that nobody reads on; returns whether there is a call to be cancelled."""
        if not self._open:
            return False
        self._fail(cancelled("the stream was closed before its end"))
        return True

    def _result(self) -> ChatResult:
        if self.completed is None:
            raise RuntimeError("the stream has not been read to its end")
        return ChatResult(self.message, self.reasoning, self.started, self.completed)
