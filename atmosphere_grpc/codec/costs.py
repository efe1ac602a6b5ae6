"""What a call costs its caller in tokens, off its messages."""

from __future__ import annotations

from typing import Any

from atmosphere_grpc.v1 import chat_pb2, execution_pb2

#: Bytes of text that are taken for a token where nobody counted: English has some four.
BYTES_PER_TOKEN = 4


class Meter:
    """Reads off a call's messages what it costs.

    Args:
        request: The request.
    """

    def __init__(self, request: Any) -> None:
        self._request = request
        self._reported = 0
        self._sent = 0
        self._answered = False

    def sent(self, response: Any) -> None:
        """Notes a message of the answer."""
        match response:
            case chat_pb2.ChatResponse():
                self._event(response)
            case execution_pb2.ExecuteResponse():
                self._whole(response.data.usage, response.data.message.ByteSize())
            case execution_pb2.EmbedResponse():
                self._whole(response.usage, 0)
            case execution_pb2.TestIntegrationResponse():
                self._whole(response.usage, len(response.response))

    def tokens(self, *, failed: bool) -> int:
        """What it costs, counted by the backend, else estimated by its length.

        Args:
            failed: Whether it failed; such a call costs nothing unless something was sent, while
                one that was cancelled had its prompt read.
        """
        if self._reported:
            return self._reported
        if failed and not self._answered:
            return 0
        return -(-(_prompt_bytes(self._request) + self._sent) // BYTES_PER_TOKEN)

    def _event(self, response: chat_pb2.ChatResponse) -> None:
        kind = response.WhichOneof("event")
        if kind == "delta":
            self._answered = True
            self._sent += response.delta.ByteSize()
        elif kind == "completed":
            self._whole(response.completed.usage, 0)

    def _whole(self, usage: chat_pb2.Usage, size: int) -> None:
        self._answered = True
        self._sent += size
        self._reported = usage.total_tokens or usage.prompt_tokens + usage.completion_tokens


def _prompt_bytes(request: Any) -> int:
    """How much text a request has; pictures are not text."""
    match request:
        case chat_pb2.ChatRequest():
            texts = [message.content for message in request.messages]
            texts += [part.text for message in request.messages for part in message.parts]
            return sum(len(text.encode()) for text in texts) + sum(
                tool.ByteSize() for tool in request.tools
            )
        case execution_pb2.ExecuteRequest():
            return max(len(request.intent.encode()), request.kwargs.ByteSize())
        case execution_pb2.EmbedRequest():
            return sum(len(text.encode()) for text in request.input)
        case execution_pb2.TestIntegrationRequest():
            return len(request.prompt.encode())
    return 0
