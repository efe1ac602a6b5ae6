"""Which route an intent takes, and why: what it names, then rules, then what it means."""

from __future__ import annotations

from dataclasses import dataclass, replace

from atmosphere_grpc.domain import Capability, ExecuteCall, RouteDecision, RouteMethod
from atmosphere_grpc.errors import Failure, Violation
from atmosphere_grpc.routing.ranking import Ranking
from atmosphere_grpc.routing.reader import Reader
from atmosphere_grpc.routing.router import capability_of
from atmosphere_grpc.routing.routes import MayUse, Route, Routes, everybody, excerpt, read_text

#: Methods by which a route was found, not named: a request that it cannot carry goes elsewhere.
FOUND = frozenset({RouteMethod.RULE, RouteMethod.SEMANTIC, RouteMethod.LEXICAL})


@dataclass(frozen=True, slots=True)
class Chosen:
    """The route that an intent takes.

    Attributes:
        method: How it was found.
        route: The route; None where the default holds, or the request names what it wants.
        why: The same in words; empty where there is nothing to say.
        ranking: How the routes compare, where they were compared.
        read_by: How they were: SEMANTIC or LEXICAL.
    """

    method: RouteMethod
    route: Route | None = None
    why: str = ""
    ranking: Ranking | None = None
    read_by: RouteMethod = RouteMethod.SEMANTIC

    def capability(self, call: ExecuteCall) -> Capability:
        """What is done.

        Raises:
            Failure: CAPABILITY_NOT_FOUND, or the route is for another than the request names.
        """
        named = capability_of(call.target, self.route.capability if self.route else Capability.CHAT)
        if self.route is not None and named is not self.route.capability:
            raise Failure.invalid(
                Violation(
                    "capability",
                    f'is {named.value}, but route "{self.route.name}" is for '
                    f"{self.route.capability.value}; leave one of the two out",
                )
            )
        return named

    def given_up(self, why: str, default: Route | None = None) -> Chosen:
        """The default in its place."""
        return replace(self, method=RouteMethod.DEFAULT, route=default, why=why)

    def evidence(self, placed: RouteDecision) -> RouteDecision:
        """A decision on integration and model, with what led to the route."""
        decision = placed
        if self.why:
            said = f"{self.why}; {placed.explanation}" if placed.explanation else self.why
            decision = replace(placed, explanation=said)
        if self.route is not None or self.ranking is not None:
            decision = replace(
                decision, method=self.method, route=self.route.name if self.route else ""
            )
        if (ranking := self.ranking) is None:
            return decision
        if self.method is RouteMethod.DEFAULT or self.route is None:
            return replace(
                decision,
                threshold=ranking.bar.threshold,
                runner_up=ranking.best,
                runner_up_score=ranking.score,
            )
        by_name = dict(ranking.scores)
        others = [item for item in ranking.scores if item[0] != self.route.name]
        runner_up, runner_up_score = others[0] if others else ("", 0.0)
        return replace(
            decision,
            score=by_name.get(self.route.name, 0.0),
            threshold=ranking.bar.threshold,
            runner_up=runner_up,
            runner_up_score=runner_up_score,
        )


class IntentRouter:
    """Chooses routes for intents.

    Args:
        routes: The routes.
        reader: Reads intents; None where no route is told by its meaning.
        max_chars: How much of an intent is read, in characters.
    """

    def __init__(self, routes: Routes, reader: Reader | None = None, max_chars: int = 200) -> None:
        self.routes = routes
        self.reader = reader
        self._max_chars = max_chars

    def text(self, call: ExecuteCall) -> str:
        """What of a request is read."""
        return excerpt(read_text(call), self._max_chars)

    async def choose(
        self, call: ExecuteCall, within_s: float, may_use: MayUse = everybody
    ) -> Chosen:
        """The route for a request.

        Args:
            call: The request.
            within_s: How long reading it may take, in seconds.
            may_use: Whether its caller may use a route: others are neither taken nor named.

        Raises:
            Failure: ROUTE_NOT_FOUND.
        """
        target = call.target
        if target.route:
            route = self.routes.get(target.route, may_use)
            return Chosen(RouteMethod.EXPLICIT, route, f"the request names route {route.name}")
        if target.capability or target.integration_id or target.model:
            return Chosen(RouteMethod.EXPLICIT)
        text = self.text(call)
        if found := self.routes.by_rule(call, text, may_use):
            route, rule = found
            return Chosen(RouteMethod.RULE, route, f"route {route.name} by its rule {rule}")
        usable = tuple(route.name for route in self.routes.described if may_use(route))
        if self.reader is None or not text or not usable:
            return Chosen(RouteMethod.DEFAULT, self.default(may_use))
        reading = await self.reader.read(text, within_s, usable)
        ranking = reading.ranking
        why = in_words(ranking)
        if reading.note:
            why = f"{why}, by letters, since {reading.note}"
        if not ranking.sure:
            default = self.default(may_use)
            return Chosen(RouteMethod.DEFAULT, default, why, ranking, reading.method)
        best = self.routes.get(ranking.best)
        return Chosen(reading.method, best, why, ranking, reading.method)

    def default(self, may_use: MayUse = everybody) -> Route | None:
        """The configured route of the default, if there is one that may be used."""
        route = self.routes.default
        return route if route is not None and may_use(route) else None


def in_words(ranking: Ranking) -> str:
    """What a ranking says."""
    bar, (runner_up, runner_up_score) = ranking.bar, ranking.runner_up
    then = f", before {runner_up} with {runner_up_score:.2f}" if runner_up else ""
    if ranking.sure:
        return f"route {ranking.best} with {ranking.score:.2f} (from {bar.threshold:.2f} on){then}"
    if ranking.score < bar.threshold:
        return (
            f"no route is sure: the nearest is {ranking.best} with {ranking.score:.2f}, "
            f"which takes {bar.threshold:.2f}"
        )
    return (
        f"no route is sure: {ranking.best} with {ranking.score:.2f} is less than {bar.margin:.2f} "
        f"before {runner_up} with {runner_up_score:.2f}"
    )
