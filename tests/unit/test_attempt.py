"""One try at one backend: a demanded tool call that does not come is no success."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest

from atmosphere_grpc.backends.language import LanguageOnly
from atmosphere_grpc.domain import (
    BackendEvent,
    Begun,
    Capability,
    ChatCall,
    ChatEvent,
    Completed,
    Delta,
    EmbedCall,
    Embeddings,
    Finished,
    FinishReason,
    Message,
    Model,
    NamedTool,
    RouteDecision,
    RouteMethod,
    Started,
    Target,
    Tool,
    ToolCallDelta,
    ToolMode,
    Usage,
)
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.execution.attempt import Trial, attempt_chat
from atmosphere_grpc.execution.budget import Budget, Deadlines
from atmosphere_grpc.execution.waiting import Pulse
from atmosphere_grpc.integrations.integration import Integration, IntegrationSpec

ROUTE = RouteDecision(Capability.CHAT, RouteMethod.DEFAULT, "a", "m", "")
TOOL = Tool("weather")
TEXT = Delta("I cannot know.")
CALL = Delta(tool_calls=(ToolCallDelta(0, "1", "weather", "{}"),))


class Scripted(LanguageOnly):
    """A backend that says what it is told to."""

    endpoints = ("a:1",)

    def __init__(self, events: Sequence[BackendEvent]) -> None:
        self._events = events

    async def chat(
        self, model: str, call: ChatCall, *, connect_s: float
    ) -> AsyncGenerator[BackendEvent, None]:
        for event in self._events:
            yield event

    async def embed(self, model: str, call: EmbedCall, *, connect_s: float) -> Embeddings:
        raise AssertionError

    async def models(self) -> tuple[Model, ...]:
        return (Model("m"),)

    def is_cold(self, model: str) -> bool:
        return False

    async def warm(self, model: str) -> None:
        raise AssertionError

    def lists_all_models(self, capability: Capability) -> bool:
        return True

    async def aclose(self) -> None:
        pass


async def events(
    choice: ToolMode | NamedTool | None, delta: Delta, reason: FinishReason
) -> list[ChatEvent]:
    script: list[BackendEvent] = [Begun("1", "m"), delta, Finished(reason, Usage())]
    integration = Integration(IntegrationSpec("a", "openai"), Scripted(script))
    call = ChatCall(Target(), (Message("user", "Rain?"),), tools=(TOOL,), tool_choice=choice)
    budget = Budget(None, Deadlines())
    attempt = attempt_chat(Trial(integration, "m"), ROUTE, call, budget, Pulse(budget), ())
    return [event async for event in attempt]


@pytest.mark.parametrize("choice", [ToolMode.REQUIRED, NamedTool("weather")])
async def test_a_demanded_call_that_does_not_come_is_a_failure(
    choice: ToolMode | NamedTool,
) -> None:
    with pytest.raises(Failure) as caught:
        await events(choice, TEXT, FinishReason.STOP)
    assert caught.value.reason is Reason.UNSUPPORTED_PARAMETER
    assert [violation.field for violation in caught.value.violations] == ["tool_choice"]


@pytest.mark.parametrize(
    ("choice", "delta", "reason"),
    [
        (ToolMode.REQUIRED, CALL, FinishReason.TOOL_CALLS),
        (NamedTool("weather"), CALL, FinishReason.STOP),
        (ToolMode.REQUIRED, TEXT, FinishReason.LENGTH),  # cut off before it came to the call
        (ToolMode.AUTO, TEXT, FinishReason.STOP),
        (ToolMode.NONE, TEXT, FinishReason.STOP),
        (None, TEXT, FinishReason.STOP),
    ],
)
async def test_any_other_end_is_an_answer(
    choice: ToolMode | NamedTool | None, delta: Delta, reason: FinishReason
) -> None:
    kinds = [type(event) for event in await events(choice, delta, reason)]
    assert kinds == [Started, Delta, Completed]
