"""What the service can do: decides where a call goes and carries it out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from atmosphere_grpc.access.policy import denied
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
from atmosphere_grpc.execution.caller import permit
from atmosphere_grpc.execution.intent import as_chat, as_embed
from atmosphere_grpc.execution.waiting import Pulse, running
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.log import failed
from atmosphere_grpc.routing.router import Candidate, capability_of, decide

log = logging.getLogger(__name__)

#: Failures of a request itself: what TestIntegration does not report as the integration's.
CALLERS_FAULTS = frozenset(
    {
        Reason.INTEGRATION_NOT_FOUND,
        Reason.MODEL_NOT_FOUND,
        Reason.INVALID_FIELD,
        Reason.PERMISSION_DENIED,
    }
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
        return await self._decide(call.target, capability, budget)

    async def test(self, call: TestCall, budget: Budget) -> TestResult:
        """Prompts one integration; says what failed instead of failing."""
        target = Target(integration_id=call.integration_id, model=call.model)
        chat = ChatCall(target, (Message("user", call.prompt),))
        self._get(call.integration_id)
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
        asked = self._asked(integration_id)
        async with budget.within(Phase.TOTAL, budget.given_s, "the integrations' models"):
            failures = await self._registry.refresh(asked)
        allowed = permit.get()
        models: list[ListedModel] = []
        unavailable: list[Unavailable] = []
        for integration, failure in zip(asked, failures, strict=True):
            if failure is not None:
                unavailable.append(
                    Unavailable(integration.spec.id, failure.message, failure.reason)
                )
                continue
            offered = _candidate(integration, Capability.CHAT)
            models += [
                ListedModel(integration.spec.id, model, model.id == offered.default)
                for model in offered.models
            ]
        unavailable += [
            Unavailable(status.id, status.error, status.reason)
            for status in self._registry.unfound
            if status.reason is not None and not integration_id and allowed.integration(status.id)
        ]
        models.sort(key=lambda item: (item.integration_id, item.model.id))
        return ModelList(tuple(models), tuple(unavailable))

    def list_integrations(self) -> tuple[IntegrationStatus, ...]:
        """How every integration is doing, by its last probe."""
        allowed = permit.get()
        found = (
            replace(item.status, default_model=_candidate(item, Capability.CHAT).default)
            for item in self._asked("")
        )
        unfound = (item for item in self._registry.unfound if allowed.integration(item.id))
        return (*found, *unfound)

    def _get(self, integration_id: str) -> Integration:
        """The integration of an id, if the caller may use it."""
        allowed = permit.get()
        if not allowed.integration(integration_id):
            # Before it is looked for: whether it exists is not told.
            raise denied(f'integration "{integration_id[:64]}"')
        return self._registry.get(integration_id, allowed.integration)

    def _asked(self, integration_id: str) -> list[Integration]:
        """The integration that a call names, or all that its caller may use."""
        if integration_id:
            return [self._get(integration_id)]
        allowed = permit.get()
        return [item for item in self._registry if allowed.integration(item.spec.id)]

    def _choices(
        self, target: Target, route: RouteDecision, settings: AttemptSettings
    ) -> list[Choice]:
        """Where a call may go: as it was decided, then the fallbacks of that integration.

        A call that names its integration stays there.
        """
        first = self._get(route.integration_id)
        allowed = permit.get()
        choices = [Choice(first, route.model)]
        if target.integration_id or settings.maximum == 1:
            return choices
        for fallback in first.spec.fallback:
            integration = self._registry.find(fallback.integration_id)
            if integration is None or integration.state is IntegrationState.DOWN:
                continue
            if not allowed.integration(fallback.integration_id):
                continue
            item = _candidate(integration, route.capability)
            model = fallback.models.get(route.model, "")
            if not model:
                # A model of the same name; a call that named none has the other's default.
                model = route.model if item.has(route.model) else ""
                model = model if target.model else item.default
            if model and allowed.model(model) and not item.lacks(route.capability, model):
                choices.append(Choice(integration, model))
        return choices

    async def _decide(
        self, target: Target, capability: Capability, budget: Budget
    ) -> RouteDecision:
        asked = self._asked(target.integration_id)
        _check_allowed(target, asked)
        try:
            return decide(target, capability, _candidates(asked, capability))
        except Failure as failure:
            if failure.reason not in (Reason.MODEL_NOT_FOUND, Reason.BACKEND_UNAVAILABLE):
                raise
        # What is known may be old, or nothing yet: ask before saying no.
        async with budget.within(Phase.CONNECT, budget.given_s, "the integrations' models"):
            await self._registry.refresh(asked)
        try:
            return decide(target, capability, _candidates(asked, capability))
        except Failure:
            # Nothing was named, so that nothing is given away by saying why there is no model.
            if not target.model and any(_kept_back(item, capability) for item in asked):
                raise denied("every model") from None
            raise


def _candidates(asked: list[Integration], capability: Capability) -> list[Candidate]:
    return [_candidate(item, capability) for item in asked]


def _check_allowed(target: Target, asked: list[Integration]) -> None:
    """That a caller may use what a call names, and anything at all.

    Raises:
        Failure: PERMISSION_DENIED, before anything is looked for.
    """
    allowed = permit.get()
    if target.model and not allowed.model(target.model):
        raise denied(f'model "{target.model[:64]}"')
    if not asked and not allowed.all_integrations:
        raise denied("every integration")


def _kept_back(item: Integration, capability: Capability) -> bool:
    """Whether an integration has models for a call, but none that its caller may use."""
    return bool(item.model_for(capability)) and not item.model_for(capability, permit.get().model)


def _candidate(item: Integration, capability: Capability) -> Candidate:
    """An integration as its caller sees it: with what that one may use."""
    state = item.state
    allowed = permit.get()
    return Candidate(
        item.spec.id,
        state,
        tuple(model for model in item.models if allowed.model(model.id)),
        item.model_for(capability, allowed.model),
        item.lists_all_models(capability),
        item.status.error if state is IntegrationState.DOWN else "",
        item.spec.advice if capability is Capability.CHAT else "",
    )
