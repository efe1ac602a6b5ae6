"""Lines of Ollama's own API put together: one delta a socket read, one end a stream."""

from __future__ import annotations

import re

import msgspec

from atmosphere_grpc.backends.ollama_schema import Call, Line
from atmosphere_grpc.backends.openai_schema import UsageChunk
from atmosphere_grpc.backends.openai_stream import token_logprobs, usage
from atmosphere_grpc.domain import (
    ChatCall,
    Delta,
    Finished,
    FinishReason,
    TokenLogprob,
    ToolCallDelta,
)
from atmosphere_grpc.errors import Failure, Reason, Violation

#: Why Ollama ended; a model that is loaded or unloaded instead of asked is neither of them.
DONE_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_RUN = re.compile(r"([\W_])\1+")
#: No text has so many characters a token; a prompt that seems to was not read as a whole.
MAX_CHARACTERS_PER_TOKEN = 12


class Answer:
    """What has been read of an answer; `add` and `take` are as those of the OpenAI dialect.

    Args:
        call: What is answered.
        num_ctx: The context of the model that answers, in tokens, where it is known.
    """

    def __init__(self, call: ChatCall, num_ctx: int | None) -> None:
        self._wants_logprobs = bool(call.sampling.logprobs)
        self._gave_logprobs = False
        self._said = False  # whether there was any text, thoughts and calls aside
        self._texts = [
            text
            for message in call.messages
            for text in (message.content, *(p for p in message.parts if isinstance(p, str)))
        ]
        self._num_ctx = num_ctx
        self._content: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._logprobs: list[TokenLogprob] = []
        self._call_count = 0
        self._pieces = 0
        self._last: Line | None = None

    @property
    def finished(self) -> bool:
        """Whether the last line was read."""
        return self._last is not None

    def add(self, line: Line) -> None:
        """Takes a line in."""
        if (message := line.message) is not None:
            if message.content:
                self._content.append(message.content)
            if message.thinking:
                self._thinking.append(message.thinking)
            for call in message.tool_calls or ():
                self._add_call(call)
            if message.content or message.thinking or message.tool_calls:
                self._pieces += 1
            self._said = self._said or bool(message.content)
        if line.logprobs:
            self._gave_logprobs = True
            self._logprobs.extend(token_logprobs(line.logprobs))
        if line.done:
            self._last = line

    def take(self) -> Delta | None:
        """What was added since the last time; None for nothing."""
        if not (self._content or self._thinking or self._calls or self._logprobs):
            return None
        delta = Delta(
            "".join(self._content),
            "".join(self._thinking),
            tuple(self._calls),
            tuple(self._logprobs),
        )
        for part in (self._content, self._thinking, self._calls, self._logprobs):
            part.clear()
        return delta

    def end(self) -> Finished:
        """The end of a finished answer.

        Raises:
            Failure: The server is too old for what it was asked for.
        """
        if self._wants_logprobs and self._said and not self._gave_logprobs:
            raise Failure(
                Reason.UNSUPPORTED_PARAMETER,
                "sampling.logprobs: this Ollama gives none – use 0.12.11 or newer, or leave them "
                "out",
                violations=[Violation("sampling.logprobs", "not supported by this server")],
            )
        last = self._last or Line()
        reason = DONE_REASONS.get(last.done_reason or "", FinishReason.OTHER)
        if reason is not FinishReason.LENGTH and self._call_count:
            reason = FinishReason.TOOL_CALLS
        reported = UsageChunk(last.prompt_eval_count, last.eval_count)
        return Finished(
            reason,
            usage(reported, self._pieces),
            prompt_truncated=self._was_truncated(last.prompt_eval_count or 0),
        )

    def _was_truncated(self, read: int) -> bool:
        """Whether the prompt was certainly not read as a whole, by the tokens that were.

        Servers before 0.12.4 cut it although they are told not to, to what the context holds.
        """
        if not read:
            return False
        if self._num_ctx is not None and read >= self._num_ctx:
            return True
        most = read * MAX_CHARACTERS_PER_TOKEN
        if sum(map(len, self._texts)) <= most:
            return False
        # A run of blanks or dashes may be one token, however long it is.
        return sum(len(_RUN.sub(r"\1", text)) for text in self._texts) > most

    def _add_call(self, call: Call) -> None:
        arguments = msgspec.json.encode(call.function.arguments or {}).decode()
        index = self._call_count
        self._call_count += 1
        self._calls.append(
            ToolCallDelta(index, call.id or f"call_{index}", call.function.name, arguments)
        )
