"""Chunks of the OpenAI dialect put together: one delta a socket read, one end a stream."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from atmosphere_grpc.backends.events import Event
from atmosphere_grpc.backends.openai_schema import (
    MALFORMED,
    Alternative,
    Chunk,
    Fragment,
    TokenInfo,
    ToolCallChunk,
    UsageChunk,
)
from atmosphere_grpc.backends.sources import read_sources
from atmosphere_grpc.backends.thinking import ThinkSplitter
from atmosphere_grpc.domain import (
    Delta,
    Finished,
    FinishReason,
    Source,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    UsageSource,
)

log = logging.getLogger(__name__)

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

    Args:
        splitter: Parts reasoning from the answer where the server does not.
        max_pieces: With this many pieces the answer was cut by length, though the
            server may call that a stop; None where it tells.
    """

    def __init__(
        self, splitter: ThinkSplitter | None = None, max_pieces: int | None = None
    ) -> None:
        self._splitter = splitter
        self._max_pieces = max_pieces
        self._sources: list[Source] = []
        self._prompt_truncated = False
        #: Whether the server began anew after it had said why the answer ended; LlamaFarm's does
        #: when that was its length.
        self.goes_on = False
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
        if chunk.sources is not None:
            self._sources.extend(read_sources(chunk.sources))
        if chunk.x_context_usage is not None:
            self._prompt_truncated = bool(chunk.x_context_usage.truncated)
        if chunk.thinking is not None and chunk.thinking.content:
            self._reasoning.append(chunk.thinking.content)
        for choice in chunk.choices or ():
            if choice.index not in (0, None):
                continue
            fragment = choice.delta or choice.message
            if self._finish_reason is not None:
                self.goes_on |= fragment is not None and _says(fragment)
                continue
            if fragment is not None:
                self._add_fragment(fragment)
            if choice.logprobs is not None:
                self._logprobs.extend(token_logprobs(choice.logprobs.content or ()))
            if choice.finish_reason:
                self._finish_reason = FINISH_REASONS.get(choice.finish_reason, FinishReason.OTHER)
                if self._splitter is not None:
                    self._add_text(self._splitter.flush())

    def add_other(self, event: Event) -> None:
        """Takes in an event that is no chunk; only what was retrieved is of interest."""
        if event.type == b"sources":
            try:
                self._sources.extend(read_sources(msgspec.json.decode(event.data)))
            except MALFORMED:
                log.debug("an event with sources is not JSON; the answer goes on without them")

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
        reason = self._finish_reason or FinishReason.OTHER
        full = self._max_pieces is not None and self._pieces >= self._max_pieces
        if full and reason is FinishReason.STOP:
            reason = FinishReason.LENGTH
        return Finished(
            reason, usage(self._usage, self._pieces), tuple(self._sources), self._prompt_truncated
        )

    def _add_text(self, parts: tuple[str, str]) -> None:
        content, reasoning = parts
        if content:
            self._content.append(content)
        if reasoning:
            self._reasoning.append(reasoning)

    def _add_fragment(self, fragment: Fragment) -> None:
        text = fragment.content or fragment.refusal
        reasoning = fragment.reasoning_content or fragment.reasoning
        if text and self._splitter is not None:
            self._add_text(self._splitter.feed(text))
        elif text:
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


def _says(fragment: Fragment) -> bool:
    """Whether there is anything in a fragment."""
    texts = (fragment.content, fragment.reasoning_content, fragment.reasoning, fragment.tool_calls)
    return any(texts)


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


def token_logprobs(tokens: Iterable[TokenInfo]) -> list[TokenLogprob]:
    """Log probabilities of tokens, each with those of its alternatives."""
    return [
        TokenLogprob(
            *_token(info), tuple(TokenLogprob(*_token(x)) for x in info.top_logprobs or ())
        )
        for info in tokens
    ]


def _token(info: TokenInfo | Alternative) -> tuple[str, float, bytes]:
    return info.token, info.logprob, bytes(info.bytes or ())
