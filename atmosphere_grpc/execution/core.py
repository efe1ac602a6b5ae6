"""What the service can do: decides where a call goes and carries it out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from atmosphere_grpc.domain import (
    Capability,
    ChatCall,
    ChatEvent,
    Completed,
    EmbedCall,
    EmbedResult,
    ExecuteCall,
    ExecuteResult,
    IntegrationState,
    IntegrationStatus,
    ListedModel,
    Message,
    ModelList,
    RouteDecision,
    Started,
    Target,
    TestCall,
    TestResult,
    Unavailable,
)
from atmosphere_grpc.errors import Failure, Phase, Reason
from atmosphere_grpc.execution.assemble import Assembler
from atmosphere_grpc.execution.attempt import attempt_chat, attempt_embed
from atmosphere_grpc.execution.attempts import ONCE, Attempts, AttemptSettings, Choice
from atmosphere_grpc.execution.budget import Budget
from atmosphere_grpc.execution.intent import as_chat, as_embed
from atmosphere_grpc.execution.waiting import Pulse, running
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.log import failed
from atmosphere_grpc.record import current
from atmosphere_grpc.routing.router import Candidate, capability_of, decide

log = logging.getLogger(__name__)

#: Failures of a request itself: what TestIntegration does not report as the integration's.
CALLERS_FAULTS = frozenset(
    {Reason.INTEGRATION_NOT_FOUND, Reason.MODEL_NOT_FOUND, Reason.INVALID_FIELD}
)


class Execution:
    """Carries calls out on the integrations of a registry.

    Every method raises `Failure` and nothing else that is meant for a caller.

    Args:
        registry: The integrations.
        settings: How many attempts a call has.
        progress_s: Between two signs of life of a chat that waits, in seconds.
    """

    def __init__(
        self,
        registry: Registry,
        settings: AttemptSettings = AttemptSettings(),  # noqa: B008 - frozen
        progress_s: float = math.inf,
    ) -> None:
        self._registry = registry
        self.settings = settings
        self.progress_s = progress_s

    async def chat(
        self, call: ChatCall, budget: Budget, *, progress: bool = False
    ) -> AsyncGenerator[ChatEvent, None]:
        """Continues a conversation: Started, deltas, Completed; on demand Progress before."""
        pulse = Pulse(budget, self.progress_s if progress else math.inf)
        async with aclosing(self._chat(call, budget, self.settings, pulse)) as events:
            async for event in events:
                yield event

    async def _chat(
        self,
        call: ChatCall,
        budget: Budget,
        settings: AttemptSettings,
        pulse: Pulse,
        undo: Callable[[], None] | None = None,
    ) -> AsyncGenerator[ChatEvent, None]:
        """A chat, attempt by attempt.

        Args:
            call: The conversation.
            budget: The call's time.
            settings: How many attempts there may be.
            pulse: What says that the call is alive.
            undo: Has what came so far forgotten, so that another attempt can begin anew; None
                where it was sent on, so that none can.
        """
        route = await self._decide(call.target, Capability.CHAT, budget)
        current().route = route
        choices = self._choices(call.target, route, settings)
        attempts = Attempts(choices, Capability.CHAT, settings, budget)
        while True:
            trial = attempts.next()
            begun = False
            try:
                trying = attempt_chat(trial, route, call, budget, pulse, attempts.tried)
                async with aclosing(trying) as events:
                    async for event in events:
                        if isinstance(event, Completed) and attempts.made:
                            event = replace(event, attempts=(*attempts.made, *event.attempts))
                        begun = begun or isinstance(event, Started)
                        yield event
                return
            except Failure as failure:
                pause_s = attempts.failed(trial, failure, begun=begun and undo is None)
            if undo is not None:
                undo()
            async with (
                running(asyncio.sleep(pause_s)) as pause,
                aclosing(
                    pulse.until(pause, budget.within(Phase.TOTAL, math.inf, "the next attempt"))
                ) as waiting,
            ):
                async for progress in waiting:
                    yield progress

    async def embed(self, call: EmbedCall, budget: Budget) -> EmbedResult:
        """Turns texts into vectors."""
        route = await self._decide(call.target, Capability.EMBED, budget)
        current().route = route
        choices = self._choices(call.target, route, self.settings)
        attempts = Attempts(choices, Capability.EMBED, self.settings, budget)
        while True:
            trial = attempts.next()
            try:
                embeddings = await attempt_embed(trial, call, budget, attempts.tried)
            except Failure as failure:
                await asyncio.sleep(attempts.failed(trial, failure))
            else:
                made = (*attempts.made, trial.ended())
                return EmbedResult(embeddings, trial.integration.spec.id, route, made)

    async def execute(self, call: ExecuteCall, budget: Budget) -> ExecuteResult:
        """Routes an intent and carries it out, as a chat or as an embedding."""
        capability = capability_of(call.target, Capability.CHAT)
        if capability is Capability.EMBED:
            result = await self.embed(as_embed(call), budget)
            return ExecuteResult(result, result.route, budget.elapsed_ms)
        assembler = Assembler()
        # The caller sees nothing of an answer before it is whole: one that breaks off can be begun
        # anew.
        chat = self._chat(as_chat(call), budget, self.settings, Pulse(budget), assembler.reset)
        async with aclosing(chat) as events:
            answer = await assembler.whole(events)
        return ExecuteResult(answer, answer.started.route, budget.elapsed_ms)

    async def route(self, call: ExecuteCall, budget: Budget) -> RouteDecision:
        """What `execute` would do with the same call."""
        capability = capability_of(call.target, Capability.CHAT)
        if capability is Capability.EMBED:
            as_embed(call)
        else:
            as_chat(call)
        decision = await self._decide(call.target, capability, budget)
        current().route = decision
        return decision

    async def test(self, call: TestCall, budget: Budget) -> TestResult:
        """Prompts one integration; says what failed instead of failing."""
        target = Target(integration_id=call.integration_id, model=call.model)
        chat = ChatCall(target, (Message("user", call.prompt),))
        self._registry.get(call.integration_id)
        assembler = Assembler()
        try:
            async with aclosing(self._chat(chat, budget, ONCE, Pulse(budget))) as events:
                answer = await assembler.whole(events)
        except Failure as failure:
            if failure.reason in CALLERS_FAULTS:
                raise
            failed(log, failure)
            asked = failure.metadata.get("model", call.model)
            return TestResult(
                assembler.text,
                assembler.started.model if assembler.started else asked,
                budget.elapsed_ms,
                error=failure.message,
                reason=failure.reason,
            )
        return TestResult(
            answer.message.content,
            answer.started.model,
            budget.elapsed_ms,
            answer.completed.time_to_first_token_ms,
            answer.completed.usage,
        )

    async def list_models(self, integration_id: str, budget: Budget) -> ModelList:
        """The models of one integration or all, asked now; ordered by integration and id."""
        asked = [self._registry.get(integration_id)] if integration_id else [*self._registry]
        async with budget.within(Phase.TOTAL, budget.given_s, "the integrations' models"):
            failures = await self._registry.refresh(asked)
        models: list[ListedModel] = []
        unavailable: list[Unavailable] = []
        for integration, failure in zip(asked, failures, strict=True):
            if failure is not None:
                unavailable.append(
                    Unavailable(integration.spec.id, failure.message, failure.reason)
                )
                continue
            default = integration.model_for(Capability.CHAT)
            models += [
                ListedModel(integration.spec.id, model, model.id == default)
                for model in integration.models
            ]
        unavailable += [
            Unavailable(status.id, status.error, status.reason)
            for status in self._registry.unfound
            if status.reason is not None and not integration_id
        ]
        models.sort(key=lambda item: (item.integration_id, item.model.id))
        return ModelList(tuple(models), tuple(unavailable))

    def list_integrations(self) -> tuple[IntegrationStatus, ...]:
        """How every integration is doing, by its last probe."""
        return (*(item.status for item in self._registry), *self._registry.unfound)

    def _choices(
        self, target: Target, route: RouteDecision, settings: AttemptSettings
    ) -> list[Choice]:
        """Where a call may go: as it was decided, then the fallbacks of that integration.

        A call that names its integration stays there.
        """
        first = self._registry.get(route.integration_id)
        choices = [Choice(first, route.model)]
        if target.integration_id or settings.maximum == 1:
            return choices
        for fallback in first.spec.fallback:
            integration = self._registry.find(fallback.integration_id)
            if integration is None or integration.state is IntegrationState.DOWN:
                continue
            item = _candidate(integration, route.capability)
            model = fallback.models.get(route.model, "")
            if not model:
                # A model of the same name; a call that named none has the other's default.
                model = route.model if item.has(route.model) else ""
                model = model if target.model else item.default
            if model and not item.lacks(route.capability, model):
                choices.append(Choice(integration, model))
        return choices

    async def _decide(
        self, target: Target, capability: Capability, budget: Budget
    ) -> RouteDecision:
        asked = (
            [self._registry.get(target.integration_id)]
            if target.integration_id
            else [*self._registry]
        )
        try:
            return decide(target, capability, _candidates(asked, capability))
        except Failure as failure:
            if failure.reason not in (Reason.MODEL_NOT_FOUND, Reason.BACKEND_UNAVAILABLE):
                raise
        # What is known may be old, or nothing yet: ask before saying no.
        async with budget.within(Phase.CONNECT, budget.given_s, "the integrations' models"):
            await self._registry.refresh(asked)
        return decide(target, capability, _candidates(asked, capability))


def _candidates(asked: list[Integration], capability: Capability) -> list[Candidate]:
    return [_candidate(item, capability) for item in asked]


def _candidate(item: Integration, capability: Capability) -> Candidate:
    state = item.state
    return Candidate(
        item.spec.id,
        state,
        item.models,
        item.model_for(capability),
        item.lists_all_models(capability),
        item.status.error if state is IntegrationState.DOWN else "",
        item.spec.advice if capability is Capability.CHAT else "",
    )
