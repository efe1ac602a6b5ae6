"""What the service can do: decides where a call goes and carries it out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from atmosphere_grpc.backends import Backend, joining
from atmosphere_grpc.domain import (
    Anomalies,
    AnomalyCall,
    Answer,
    Attempt,
    Capability,
    ChatCall,
    ChatEvent,
    Classifications,
    ClassifyCall,
    Completed,
    EmbedCall,
    Embeddings,
    EmbedResult,
    ExecuteCall,
    ExecuteResult,
    FittedResult,
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
from atmosphere_grpc.execution import visible
from atmosphere_grpc.execution.assemble import Assembler
from atmosphere_grpc.execution.attempt import Ask, attempt_chat, attempt_whole
from atmosphere_grpc.execution.attempts import ONCE, Attempts, AttemptSettings
from atmosphere_grpc.execution.budget import Budget
from atmosphere_grpc.execution.caller import permit
from atmosphere_grpc.execution.joining import Joining, whole
from atmosphere_grpc.execution.plan import Place, Planner
from atmosphere_grpc.execution.waiting import Pulse, running
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.log import failed
from atmosphere_grpc.record import current

log = logging.getLogger(__name__)
T = TypeVar("T")

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
        planner: Decides where calls go; None for one without configured routes.
        join: How long the text of a stream is joined; None for not at all.
    """

    def __init__(
        self,
        registry: Registry,
        settings: AttemptSettings = AttemptSettings(),  # noqa: B008 - frozen
        progress_s: float = math.inf,
        planner: Planner | None = None,
        join: Joining | None = None,
    ) -> None:
        self._registry = registry
        self.join = join or Joining(0.0)
        self.planner = planner or Planner(registry)
        self.settings = settings
        self.progress_s = progress_s

    async def chat(
        self,
        call: ChatCall,
        budget: Budget,
        *,
        progress: bool = False,
        routed: bool = False,
        undo: Callable[[], None] | None = None,
        max_delay_s: float = 0.0,
    ) -> AsyncGenerator[ChatEvent, None]:
        """Continues a conversation: Started, deltas, Completed.

        Args:
            call: The conversation.
            budget: Its time.
            progress: Whether Progress comes before, while there is nothing to show.
            routed: Whether the router decides where it goes, by what was said last.
            undo: Has what came so far forgotten, so that an answer that broke off can be begun
                anew; None where it was sent on.
            max_delay_s: How long text may be joined after the first delta; 0 for the default.
        """
        if routed:
            call, place = await self._routed(call, budget)
        else:
            place = await self.planner.of(call.target, Capability.CHAT, budget)
        pulse = Pulse(budget, self.progress_s if progress else math.inf)
        join = self.join.of(max_delay_s)
        joining.set(join)
        chat = self._chat(call, place, budget, self.settings, pulse, undo)
        try:
            async with aclosing(chat) as events:
                async for event in events:
                    yield event
        finally:
            join.close()

    async def _routed(self, call: ChatCall, budget: Budget) -> tuple[ChatCall, Place]:
        """A conversation with what its route adds to it, and where it goes.

        A route that is for something else than conversations is not taken.
        """
        intent = ExecuteCall(
            Target(), "", messages=call.messages, sampling=call.sampling, extra=call.extra
        )
        plan = await self.planner.of_intent(intent, budget)
        if not isinstance(plan.call, ChatCall):
            return call, await self.planner.of(call.target, Capability.CHAT, budget)
        made = replace(
            plan.call,
            tools=call.tools,
            tool_choice=call.tool_choice,
            response_format=call.response_format,
            session_id=call.session_id,
            extra_path=call.extra_path,
            messages_path=call.messages_path,
        )
        return made, plan.place

    async def _chat(
        self,
        call: ChatCall,
        place: Place,
        budget: Budget,
        settings: AttemptSettings,
        pulse: Pulse,
        undo: Callable[[], None] | None = None,
    ) -> AsyncGenerator[ChatEvent, None]:
        """A chat, attempt by attempt.

        Args:
            call: The conversation.
            place: Where it goes.
            budget: The call's time.
            settings: How many attempts there may be.
            pulse: What says that the call is alive.
            undo: Has what came so far forgotten, so that another attempt can begin anew; None
                where it was sent on, so that none can.
        """
        route = current().route = place.decision
        attempts = Attempts(place.choices, route.capability, settings, budget)
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
        return await self._embed(
            call, await self.planner.of(call.target, Capability.EMBED, budget), budget
        )

    async def _embed(self, call: EmbedCall, place: Place, budget: Budget) -> EmbedResult:
        async def ask(backend: Backend, model: str, connect_s: float) -> Embeddings:
            return await backend.embed(model, call, connect_s=connect_s)

        return EmbedResult(*await self._whole(place, ask, budget))

    async def _fitted(
        self, call: ClassifyCall | AnomalyCall, place: Place, budget: Budget
    ) -> FittedResult:
        async def ask(
            backend: Backend, model: str, connect_s: float
        ) -> Classifications | Anomalies:
            if isinstance(call, ClassifyCall):
                return await backend.classify(model, call, connect_s=connect_s)
            return await backend.anomalies(model, call, connect_s=connect_s)

        return FittedResult(*await self._whole(place, ask, budget))

    async def _whole(
        self, place: Place, ask: Ask[T], budget: Budget
    ) -> tuple[T, str, RouteDecision, tuple[Attempt, ...]]:
        """An answer that comes as a whole, attempt by attempt; who gave it, why, and the tries."""
        route = current().route = place.decision
        attempts = Attempts(place.choices, route.capability, self.settings, budget)
        while True:
            trial = attempts.next()
            try:
                answer = await attempt_whole(trial, route.capability, ask, budget, attempts.tried)
            except Failure as failure:
                await asyncio.sleep(attempts.failed(trial, failure))
            else:
                return answer, trial.integration.spec.id, route, (*attempts.made, trial.ended())

    async def execute(self, call: ExecuteCall, budget: Budget) -> ExecuteResult:
        """Routes an intent and carries it out."""
        plan = await self.planner.of_intent(call, budget)
        outcome: Answer | EmbedResult | FittedResult
        match plan.call:
            case ChatCall() as chat:
                outcome = await self._answer(chat, plan.place, budget)
            case EmbedCall() as embed:
                outcome = await self._embed(embed, plan.place, budget)
            case fitted:
                outcome = await self._fitted(fitted, plan.place, budget)
        return ExecuteResult(outcome, plan.place.decision, budget.elapsed_ms, plan.tried)

    async def _answer(self, call: ChatCall, place: Place, budget: Budget) -> Answer:
        assembler = Assembler()
        # The caller sees nothing of an answer before it is whole: one that breaks off can be begun
        # anew.
        joining.set(whole)
        chat = self._chat(call, place, budget, self.settings, Pulse(budget), assembler.reset)
        async with aclosing(chat) as events:
            return await assembler.whole(events)

    async def route(self, call: ExecuteCall, budget: Budget) -> RouteDecision:
        """What `execute` would do with the same call and as much time."""
        plan = await self.planner.of_intent(call, budget)
        current().route = plan.place.decision
        plan.check()
        return plan.place.decision

    async def test(self, call: TestCall, budget: Budget) -> TestResult:
        """Prompts one integration; says what failed instead of failing."""
        target = Target(integration_id=call.integration_id, model=call.model)
        chat = ChatCall(target, (Message("user", call.prompt),))
        visible.named(self._registry, call.integration_id)
        assembler = Assembler()
        joining.set(whole)
        try:
            place = await self.planner.of(target, Capability.CHAT, budget)
            async with aclosing(self._chat(chat, place, budget, ONCE, Pulse(budget))) as events:
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
        asked = visible.asked(self._registry, integration_id)
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
            offered = visible.candidate(integration, Capability.CHAT)
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
            replace(item.status, default_model=visible.candidate(item, Capability.CHAT).default)
            for item in visible.asked(self._registry)
        )
        unfound = (item for item in self._registry.unfound if allowed.integration(item.id))
        return (*found, *unfound)
