"""What the service can do: decides where a call goes and carries it out."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from atmosphere_grpc.domain import (
    Capability,
    ChatCall,
    ChatEvent,
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
    Target,
    TestCall,
    TestResult,
    Unavailable,
)
from atmosphere_grpc.errors import Failure, Phase, Reason, Violation
from atmosphere_grpc.execution.assemble import Assembler
from atmosphere_grpc.execution.attempt import attempt_chat, attempt_embed
from atmosphere_grpc.execution.budget import Budget
from atmosphere_grpc.execution.intent import as_chat, as_embed
from atmosphere_grpc.integrations.integration import Integration
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.log import failed
from atmosphere_grpc.routing.router import Candidate, capability_of, decide

log = logging.getLogger(__name__)

#: Failures of a request itself: what TestIntegration does not report as the integration's.
CALLERS_FAULTS = frozenset(
    {Reason.INTEGRATION_NOT_FOUND, Reason.MODEL_NOT_FOUND, Reason.INVALID_FIELD}
)


class Execution:
    """Carries calls out on the integrations of a registry.

    Every method raises `Failure` and nothing else that is meant for a caller.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def chat(self, call: ChatCall, budget: Budget) -> AsyncGenerator[ChatEvent, None]:
        """Continues a conversation: Started, deltas, Completed."""
        route = await self._decide(call.target, Capability.CHAT, budget)
        integration = self._registry.get(route.integration_id)
        _check_support(call, integration, route.model)
        async with aclosing(attempt_chat(integration, route, call, budget)) as events:
            async for event in events:
                yield event

    async def embed(self, call: EmbedCall, budget: Budget) -> EmbedResult:
        """Turns texts into vectors."""
        route = await self._decide(call.target, Capability.EMBED, budget)
        return await attempt_embed(self._registry.get(route.integration_id), route, call, budget)

    async def execute(self, call: ExecuteCall, budget: Budget) -> ExecuteResult:
        """Routes an intent and carries it out, as a chat or as an embedding."""
        capability = capability_of(call.target, Capability.CHAT)
        if capability is Capability.EMBED:
            result = await self.embed(as_embed(call), budget)
            return ExecuteResult(result, result.route, budget.elapsed_ms)
        async with aclosing(self.chat(as_chat(call), budget)) as events:
            answer = await Assembler().whole(events)
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
        self._registry.get(call.integration_id)
        assembler = Assembler()
        try:
            async with aclosing(self.chat(chat, budget)) as events:
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
    return [
        Candidate(
            item.spec.id,
            item.state,
            item.models,
            item.model_for(capability),
            item.backend.lists_all_models(capability),
            item.status.error if item.state is IntegrationState.DOWN else "",
        )
        for item in asked
    ]


def _check_support(call: ChatCall, integration: Integration, model: str) -> None:
    """That a model is not sent what it is known not to take.

    llama.cpp answers a picture for a text model with status 500, and leaves tools out without a
    word where the chat template has no place for them.
    """
    known = next((item for item in integration.models if item.id == model), None)
    if known is None:
        return
    if (path := call.image_path) is not None and known.accepts_images is False:
        raise _unsupported(path, model, "takes no images – leave them out or choose a vision model")
    if call.tools and known.accepts_tools is False:
        raise _unsupported("tools", model, "knows no tools – leave them out or choose another")


def _unsupported(path: str, model: str, what: str) -> Failure:
    return Failure(
        Reason.UNSUPPORTED_PARAMETER,
        f'{path}: model "{model}" {what}',
        violations=[Violation(path, "not supported by this model")],
    )
