"""One try at one backend: bounded in time, timed, and told as an `Attempt`."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from atmosphere_grpc.domain import (
    Attempt,
    Begun,
    ChatCall,
    ChatEvent,
    Completed,
    Delta,
    EmbedCall,
    EmbedResult,
    Finished,
    FinishReason,
    NamedTool,
    RouteDecision,
    Started,
    ToolMode,
)
from atmosphere_grpc.errors import Failure, Phase, Reason, Violation
from atmosphere_grpc.execution.budget import Budget
from atmosphere_grpc.integrations.integration import Integration

#: Connecting ends this much before the call's time, so that its own failure is the one told.
CONNECT_MARGIN_S = 0.01


class Clock:
    """When an attempt began, and when its first delta came."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.first_token_ms = 0.0

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the attempt began."""
        return (time.monotonic() - self._began) * 1000

    def first_token(self) -> None:
        """Notes the first delta."""
        if not self.first_token_ms:
            self.first_token_ms = self.elapsed_ms

    def attempt(
        self,
        integration: Integration,
        model: str,
        reason: Reason | None,
        *,
        prompt_truncated: bool = False,
    ) -> Attempt:
        """What came of the attempt, up to now."""
        endpoint = next(iter(integration.backend.endpoints), "")
        return Attempt(
            integration.spec.id,
            endpoint,
            model,
            reason,
            self.elapsed_ms,
            self.first_token_ms,
            prompt_truncated,
        )


async def attempt_chat(
    integration: Integration, route: RouteDecision, call: ChatCall, budget: Budget
) -> AsyncGenerator[ChatEvent, None]:
    """Continues a conversation on one backend: Started, deltas, Completed.

    Raises:
        Failure: The backend failed or the time was used up; its metadata says where.
    """
    clock = Clock()
    timeouts = integration.spec.timeouts
    name = f'integration "{integration.spec.id}"'
    call_first_token_ms = 0.0
    called = False
    wait, limit_s, what = Phase.FIRST_TOKEN, timeouts.first_token_s, f"the first token of {name}"
    try:
        async with (
            _turn(integration, budget),
            aclosing(
                integration.backend.chat(
                    route.model, call, connect_s=_connect_s(integration, budget)
                )
            ) as events,
        ):
            while True:
                async with budget.within(wait, limit_s, what):
                    event = await anext(events)
                match event:
                    case Begun(id, model):
                        yield Started(
                            id or f"atmosphere-{uuid.uuid4().hex}",
                            model or route.model,
                            integration.spec.id,
                            time.time(),
                            route,
                        )
                    case Delta():
                        called = called or bool(event.tool_calls)
                        if wait is Phase.FIRST_TOKEN:
                            clock.first_token()
                            call_first_token_ms = budget.elapsed_ms
                            wait, limit_s = Phase.IDLE, timeouts.idle_s
                            what = f"the next token of {name}"
                        yield event
                    case Finished(finish_reason, usage, sources, prompt_truncated):
                        if not called and _demands_a_call(call, finish_reason):
                            raise _tool_choice_ignored(name)
                        attempt = clock.attempt(
                            integration, route.model, None, prompt_truncated=prompt_truncated
                        )
                        yield Completed(
                            finish_reason,
                            usage,
                            call_first_token_ms,
                            budget.elapsed_ms,
                            (attempt,),
                            sources,
                        )
                        return
    except Failure as failure:
        _say_where(failure, integration, route)
        raise


def _demands_a_call(call: ChatCall, finish_reason: FinishReason) -> bool:
    """Whether an answer must hold a tool call; one that was cut off may not have come to it."""
    demanded = call.tool_choice is ToolMode.REQUIRED or isinstance(call.tool_choice, NamedTool)
    return demanded and finish_reason is not FinishReason.LENGTH


def _tool_choice_ignored(name: str) -> Failure:
    return Failure(
        Reason.UNSUPPORTED_PARAMETER,
        f"tool_choice: {name} answered without the call that was demanded – its model may know no "
        "tools",
        violations=[Violation("tool_choice", "not honoured by this model")],
    )


async def attempt_embed(
    integration: Integration, route: RouteDecision, call: EmbedCall, budget: Budget
) -> EmbedResult:
    """Turns texts into vectors on one backend.

    Raises:
        Failure: The backend failed or the time was used up; its metadata says where.
    """
    clock = Clock()
    what = f'the vectors of integration "{integration.spec.id}"'
    try:
        async with (
            _turn(integration, budget),
            budget.within(Phase.FIRST_TOKEN, integration.spec.timeouts.first_token_s, what),
        ):
            embeddings = await integration.backend.embed(
                route.model, call, connect_s=_connect_s(integration, budget)
            )
    except Failure as failure:
        _say_where(failure, integration, route)
        raise
    return EmbedResult(embeddings, route, (clock.attempt(integration, route.model, None),))


@asynccontextmanager
async def _turn(integration: Integration, budget: Budget) -> AsyncGenerator[None, None]:
    """A permit of the integration, waited for as long as the call has time."""
    async with AsyncExitStack() as permit:
        what = f'a turn at integration "{integration.spec.id}"'
        async with budget.within(Phase.QUEUE, math.inf, what):
            await permit.enter_async_context(integration.limiter.permit())
        yield


def _connect_s(integration: Integration, budget: Budget) -> float:
    return max(
        0.001, min(integration.spec.timeouts.connect_s, budget.remaining_s - CONNECT_MARGIN_S)
    )


def _say_where(failure: Failure, integration: Integration, route: RouteDecision) -> None:
    failure.metadata.setdefault("integration_id", integration.spec.id)
    failure.metadata.setdefault("model", route.model[:128])
