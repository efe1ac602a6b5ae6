"""What is to be done for a call, and where: decided once, before anything is asked of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from atmosphere_grpc.access.policy import denied
from atmosphere_grpc.domain import (
    Attempt,
    Call,
    Capability,
    ExecuteCall,
    IntegrationState,
    RouteDecision,
    RouteMethod,
    Target,
)
from atmosphere_grpc.errors import TABLE, Failure, Phase, Reason
from atmosphere_grpc.execution import visible
from atmosphere_grpc.execution.attempt import check_support
from atmosphere_grpc.execution.attempts import Choice
from atmosphere_grpc.execution.budget import Budget
from atmosphere_grpc.execution.caller import permit
from atmosphere_grpc.execution.intent import as_call
from atmosphere_grpc.execution.tie_break import TieBreak
from atmosphere_grpc.integrations.registry import Registry
from atmosphere_grpc.routing.intents import FOUND, Chosen, IntentRouter
from atmosphere_grpc.routing.router import decide, first_available
from atmosphere_grpc.routing.routes import Route, Routes

#: How much of the time that is left reading an intent may take.
READING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call goes, and why.

    Attributes:
        decision: The integration and model, and why they.
        choices: The same, then the integrations that may take their place.
    """

    decision: RouteDecision
    choices: Sequence[Choice]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for an intent.

    Attributes:
        call: What is asked of a backend.
        place: Of which, by which route.
        tried: What was asked of a model to find the route.
    """

    call: Call
    place: Place
    tried: tuple[Attempt, ...] = ()

    def check(self) -> None:
        """That a backend can be told what is asked, as far as that is known before it is asked.

        Raises:
            Failure: That of the first integration, where none of them can.
        """
        refused: Failure | None = None
        for choice in self.place.choices:
            try:
                check_support(self.call, choice.integration, choice.model)
            except Failure as failure:
                refused = refused or failure
                if not TABLE[failure.reason].elsewhere:
                    break
            else:
                return
        if refused is not None:
            raise refused


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """How a model of several is chosen.

    Attributes:
        resident_below_s: A call with less time takes one that is in memory before one that is not.
    """

    resident_below_s: float = 10.0


class Planner:
    """Decides what is done where.

    Args:
        registry: The integrations.
        router: Finds the routes of intents.
        tie_break: Chooses between routes that are close together; None for nobody.
        settings: How a model of several is chosen.
    """

    def __init__(
        self,
        registry: Registry,
        router: IntentRouter | None = None,
        tie_break: TieBreak | None = None,
        settings: PlanSettings = PlanSettings(),
    ) -> None:
        self._registry = registry
        self.router = router or IntentRouter(Routes())
        self._tie_break = tie_break
        self._settings = settings

    async def of_intent(self, call: ExecuteCall, budget: Budget) -> Plan:
        """What is to be done for an intent, and where.

        Raises:
            Failure: The request names what is not there, lacks something, or holds what nobody
                can use.
        """
        within_s = budget.remaining_s * READING_SHARE
        chosen = await self.router.choose(call, within_s, _may_use)
        tried: tuple[Attempt, ...] = ()
        if self._tie_break is not None:
            text = self.router.text(call)
            chosen, tried = await self._tie_break.settled(chosen, text, self.router.routes, budget)
            if chosen.method is RouteMethod.DEFAULT:
                chosen = replace(chosen, route=self.router.default(_may_use))
        try:
            made, place = await self._carried(chosen, call, budget)
        except Failure as failure:
            if chosen.method not in FOUND or chosen.route is None or not _gives_way(failure):
                raise
            why = (
                f"route {chosen.route.name} was found, but cannot carry the request: "
                f"{failure.message}"
            )
            chosen = chosen.given_up(why, self.router.default(_may_use))
            made, place = await self._carried(chosen, call, budget)
        told = permit.get().integration
        tried = tuple(attempt for attempt in tried if told(attempt.integration_id))
        return Plan(made, Place(chosen.evidence(place.decision), place.choices), tried)

    async def _carried(
        self, chosen: Chosen, call: ExecuteCall, budget: Budget
    ) -> tuple[Call, Place]:
        """What is asked of a backend by a route, and of which."""
        capability = chosen.capability(call)
        made = as_call(chosen.route.applied(call) if chosen.route else call, capability)
        return made, await self._place_of_route(chosen, call.target, capability, budget)

    async def of(self, target: Target, capability: Capability, budget: Budget) -> Place:
        """Where a call goes that names what is to be done.

        Raises:
            Failure: See `decide`, and INTEGRATION_NOT_FOUND.
        """
        decision = await self._decide(target, capability, budget)
        return Place(decision, self._choices(decision, target))

    async def _place_of_route(
        self, chosen: Chosen, named: Target, capability: Capability, budget: Budget
    ) -> Place:
        """Where an intent goes: as it names it, else as its route does."""
        route = chosen.route
        if route is None:
            return await self.of(named, capability, budget)
        target = Target(
            capability.value,
            named.integration_id or route.integration_id,
            named.model,
        )
        models = () if named.model else tuple(filter(permit.get().model, route.models))
        by = f"route {route.name}"
        if named.integration_id or named.model:
            by = f"the request, or its {by},"
        try:
            decision = await self._decide(target, capability, budget, by, models)
        except Failure as failure:
            if failure.reason is not Reason.PERMISSION_DENIED:  # which reads like any other
                failure.message = f"route {route.name}: {failure.message}"
            raise
        return Place(decision, self._choices(decision, named, models))

    def _choices(
        self, decision: RouteDecision, named: Target, models: Sequence[str] = ()
    ) -> list[Choice]:
        """Where a call may go: as it was decided, then the fallbacks of that integration.

        A call that names its integration stays there.

        Args:
            decision: Where it goes first.
            named: What the call names.
            models: Those of its route.
        """
        first = visible.named(self._registry, decision.integration_id)
        allowed = permit.get()
        choices = [Choice(first, decision.model)]
        for fallback in () if named.integration_id else first.spec.fallback:
            integration = self._registry.find(fallback.integration_id)
            if integration is None or integration.state is IntegrationState.DOWN:
                continue
            if not allowed.integration(fallback.integration_id):
                continue
            item = visible.candidate(integration, decision.capability)
            model = fallback.models.get(decision.model, "")
            if not model:
                # One of the same name where the call or its route names one, or another of the
                # route's; else the other's default, unless the call itself names one.
                wanted = (decision.model, *models) if named.model or models else ()
                fitting = (name for name in wanted if item.has(name))
                model = next(fitting, "" if named.model else item.default)
            if model and allowed.model(model) and not item.lacks(decision.capability, model):
                choices.append(Choice(integration, model))
        return choices

    async def _decide(
        self,
        target: Target,
        capability: Capability,
        budget: Budget,
        by: str = "the request",
        models: Sequence[str] = (),
    ) -> RouteDecision:
        """Where a call goes; of several models that it may use, by the first that is available."""
        seen = visible.asked(self._registry, target.integration_id)
        visible.check_allowed(target, seen)
        resident = budget.remaining_s < self._settings.resident_below_s

        def decided() -> RouteDecision:
            known = visible.candidates(seen, capability)
            wanted = target
            if models and not target.model:
                model = first_available(models, known, resident=resident)
                wanted = replace(target, model=model)
            return decide(wanted, capability, known, by)

        try:
            return decided()
        except Failure as failure:
            if failure.reason not in (Reason.MODEL_NOT_FOUND, Reason.BACKEND_UNAVAILABLE):
                raise
        # What is known may be old, or nothing yet: ask before saying no.
        async with budget.within(Phase.CONNECT, budget.given_s, "the integrations' models"):
            await self._registry.refresh(seen)
        try:
            return decided()
        except Failure:
            # Nothing was named, so that nothing is given away by saying why there is no model.
            named = target.model or models
            if not named and any(visible.kept_back(item, capability) for item in seen):
                raise denied("every model") from None
            raise


#: Failures for which a route that was found, not named, gives way to the default.
_GIVES_WAY = frozenset(
    {
        Reason.INVALID_FIELD,
        Reason.MODEL_NOT_FOUND,
        Reason.CAPABILITY_UNSUPPORTED,
        Reason.INTEGRATION_NOT_FOUND,
    }
)


def _gives_way(failure: Failure) -> bool:
    """Whether another route may do: not where the right one's backend is down."""
    return failure.reason in _GIVES_WAY


def _may_use(route: Route) -> bool:
    """Whether the caller may use where a route goes, as far as the route itself says."""
    allowed = permit.get()
    place = not route.integration_id or allowed.integration(route.integration_id)
    return place and (not route.models or any(map(allowed.model, route.models)))
