"""Fake model servers on loopback: scriptable, with every byte under control.

    async with FakeServer(Ollama()) as fake:
        fake.script("/v1/chat/completions", Reply.stream(event(text("Hi")), Stall()))

By hand: `python -m tests.fakes --dialect openai --port 8080`.
"""

from tests.fakes.chunks import (
    DONE,
    MODEL,
    USAGE,
    answer_events,
    chunk,
    completion,
    embeddings,
    event,
    text,
    tool_call,
    usage,
)
from tests.fakes.llamafarm import LlamaFarm
from tests.fakes.ollama import Ollama
from tests.fakes.openai import OpenAI
from tests.fakes.reply import Reply
from tests.fakes.request import Request
from tests.fakes.runtime import Runtime
from tests.fakes.server import ANY, PATIENCE_S, Dialect, FakeServer
from tests.fakes.steps import Close, ColdModel, Load, Pause, Reset, Send, Stall, Step, Until

__all__ = [
    "ANY",
    "DONE",
    "MODEL",
    "PATIENCE_S",
    "USAGE",
    "Close",
    "ColdModel",
    "Dialect",
    "FakeServer",
    "LlamaFarm",
    "Load",
    "Ollama",
    "OpenAI",
    "Pause",
    "Reply",
    "Request",
    "Reset",
    "Runtime",
    "Send",
    "Stall",
    "Step",
    "Until",
    "answer_events",
    "chunk",
    "completion",
    "embeddings",
    "event",
    "text",
    "tool_call",
    "usage",
]
