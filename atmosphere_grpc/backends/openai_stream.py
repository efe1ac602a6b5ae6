"""Chunks of the OpenAI dialect put together: one delta a socket read, one end a stream."""

from __future__ import annotations

from atmosphere_grpc.backends.openai_schema import (
    Alternative,
    Chunk,
    Fragment,
    Logprobs,
    TokenInfo,
    ToolCallChunk,
    UsageChunk,
)
from atmosphere_grpc.domain import (
    Delta,
    Finished,
    FinishReason,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    UsageSource,
)

FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}


class Assembly:
    """What has been read of an answer.

    `add` takes chunks in; `take` gives what came since the last time as one
    delta, so that tokens that arrived together leave together.
    """

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: dict[int, ToolCallDelta] = {}
        self._logprobs: list[TokenLogprob] = []
        self._tool_ids: dict[int, str] = {}  # of every call begun, by index
        self._moved: dict[int, int] = {}  # the server's index of a call → its own one
        self._pieces = 0
        self._finish_reason: FinishReason | None = None
        self._usage: UsageChunk | None = None

    @property
    def finished(self) -> bool:
        """Whether the model has said why it ended."""
        return self._finish_reason is not None

    @property
    def whole(self) -> bool:
        """Whether nothing more is to come, also from a server that does not say `[DONE]`."""
        return self._finish_reason is not None and self._usage is not None

    def add(self, chunk: Chunk) -> None:
        """Takes a chunk in. Only the first choice is read, since only one is asked for."""
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices or ():
            if choice.index not in (0, None):
                continue
            if (fragment := choice.delta or choice.message) is not None:
                self._add_fragment(fragment)
            if choice.logprobs is not None:
                self._logprobs.extend(_logprobs(choice.logprobs))
            if choice.finish_reason:
                self._finish_reason = FINISH_REASONS.get(choice.finish_reason, FinishReason.OTHER)

    def take(self) -> Delta | None:
        """What was added since the last time; None for nothing."""
        if not (self._content or self._reasoning or self._tool_calls or self._logprobs):
            return None
        delta = Delta(
            "".join(self._content),
            "".join(self._reasoning),
            tuple(self._tool_calls.values()),
            tuple(self._logprobs),
        )
        self._content.clear()
        self._reasoning.clear()
        self._tool_calls.clear()
        self._logprobs.clear()
        return delta

    def end(self) -> Finished:
        """The end of a finished answer."""
        return Finished(self._finish_reason or FinishReason.OTHER, usage(self._usage, self._pieces))

    def _add_fragment(self, fragment: Fragment) -> None:
        text = fragment.content or fragment.refusal
        reasoning = fragment.reasoning_content or fragment.reasoning
        if text:
            self._content.append(text)
        if reasoning:
            self._reasoning.append(reasoning)
        for call in fragment.tool_calls or ():
            self._add_tool_call(call)
        if text or reasoning or fragment.tool_calls:
            self._pieces += 1

    def _add_tool_call(self, call: ToolCallChunk) -> None:
        index = self._tool_index(call)
        begins = index not in self._tool_ids
        if begins:
            self._tool_ids[index] = call.id or f"call_{index}"
        function = call.function
        before = self._tool_calls.get(index, ToolCallDelta(index))
        self._tool_calls[index] = ToolCallDelta(
            index,
            # Some servers repeat both in every chunk; they are passed on once.
            self._tool_ids[index] if begins else before.id,
            ((function and function.name) or "") if begins else before.name,
            before.arguments + ((function and function.arguments) or ""),
        )

    def _tool_index(self, call: ToolCallChunk) -> int:
        """Which call a chunk belongs to, also where the server leaves `index` out or reuses it."""
        if call.index is not None:
            index = self._moved.get(call.index, call.index)
            other = call.id and call.id != self._tool_ids.get(index, call.id)
            if other and call.function and call.function.name:
                # Ollama gives each call of an answer index 0 (ollama#15457).
                index = self._moved[call.index] = max(self._tool_ids) + 1
            return index
        for index, known in self._tool_ids.items():
            if call.id == known:
                return index
        begins = bool(call.id) or not self._tool_ids
        return len(self._tool_ids) if begins else len(self._tool_ids) - 1


def usage(reported: UsageChunk | None, pieces: int = 0) -> Usage:
    """What a server reported, completed where it is incomplete.

    Universal Runtime always says 0 completion tokens: then the pieces of the
    answer, about one a token, are counted instead and the source says so.
    """
    if reported is None or not (reported.prompt_tokens or reported.completion_tokens):
        return Usage(source=UsageSource.MISSING)
    prompt = reported.prompt_tokens or 0
    completion = reported.completion_tokens or 0
    source = UsageSource.REPORTED
    if pieces and not completion:
        completion = pieces
        source = UsageSource.ESTIMATED
    prompt_details = reported.prompt_tokens_details
    completion_details = reported.completion_tokens_details
    return Usage(
        prompt,
        completion,
        prompt + completion,
        (prompt_details and prompt_details.cached_tokens) or 0,
        (completion_details and completion_details.reasoning_tokens) or 0,
        source,
    )


def _logprobs(logprobs: Logprobs) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            *_token(info), tuple(TokenLogprob(*_token(x)) for x in info.top_logprobs or ())
        )
        for info in logprobs.content or ()
    ]


def _token(info: TokenInfo | Alternative) -> tuple[str, float, bytes]:
    return info.token, info.logprob, bytes(info.bytes or ())
