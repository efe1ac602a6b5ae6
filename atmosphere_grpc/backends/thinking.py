"""Reasoning that a model writes into its answer, between `<think>` and `</think>`."""

from __future__ import annotations

from enum import Enum, auto

OPENS, CLOSES = "<think>", "</think>"


class _State(Enum):
    START = auto()  # nothing but spaces and a piece of `<think>` yet
    THINKING = auto()
    AFTER = auto()  # nothing but spaces since `</think>`
    ANSWER = auto()


class ThinkSplitter:
    """Parts an answer from the reasoning before it, however the text is cut.

    Only what an answer begins with is reasoning: a model may well write about the tag later on.
    """

    __slots__ = ("_held", "_state")

    def __init__(self) -> None:
        self._state = _State.START
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """What is known of `text` and what was held back: the answer's part, the reasoning's."""
        if self._state is _State.ANSWER:
            return text, ""
        content, reasoning = "", ""
        text, self._held = self._held + text, ""
        if self._state is _State.START:
            begun = text.lstrip()
            if len(begun) < len(OPENS) and OPENS.startswith(begun):
                self._held = text
                return "", ""
            if not begun.startswith(OPENS):
                self._state = _State.ANSWER
                return text, ""
            self._state = _State.THINKING
            text = begun.removeprefix(OPENS)
        if self._state is _State.THINKING:
            reasoning, closed, text = text.partition(CLOSES)
            if not closed:
                kept = _overlap(reasoning)
                self._held = reasoning[len(reasoning) - kept :]
                return "", reasoning[: len(reasoning) - kept]
            self._state = _State.AFTER
        content = text.lstrip()
        if content:
            self._state = _State.ANSWER
        return content, reasoning

    def flush(self) -> tuple[str, str]:
        """What is still held back when the answer ends."""
        held, self._held = self._held, ""
        return ("", held) if self._state is _State.THINKING else (held, "")


def _overlap(text: str) -> int:
    """How many characters at the end of a text may be the beginning of `</think>`."""
    for length in range(min(len(CLOSES) - 1, len(text)), 0, -1):
        if text.endswith(CLOSES[:length]):
            return length
    return 0
