"""A configured integration: its endpoints, what it offers, how it is doing."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from atmosphere_grpc.backends import Backend
from atmosphere_grpc.domain import Capability, IntegrationState, IntegrationStatus, Model
from atmosphere_grpc.errors import Failure
from atmosphere_grpc.integrations.balancing import Balancer, Balancing
from atmosphere_grpc.integrations.breaker import BreakerSettings
from atmosphere_grpc.integrations.endpoint import Endpoint
from atmosphere_grpc.integrations.limiter import Limiter

#: Parts of a model's name that say that it embeds, where its server does not say so.
EMBEDDING_NAMES = ("embed", "minilm", "bge-", "gte-", "e5-")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a call waits for an integration, phase by phase, in seconds."""

    connect_s: float = 5.0
    first_token_s: float = 120.0
    idle_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How many calls an integration is given at a time, and how many wait."""

    max_concurrency: int = 256
    max_queue: int = 256


@dataclass(frozen=True, slots=True)
class Fallback:
    """Where a call goes that an integration cannot answer.

    `models` says what a model is called there; one that it does not name keeps its name.
    """

    integration_id: str
    models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IntegrationSpec:
    """What the configuration says of an integration; an empty model means the first fitting one.

    `weights` are of its endpoints, in their order; empty for equal ones. `advice` is what may be
    missing where it cannot chat.
    """

    id: str
    kind: str
    default_model: str = ""
    default_embed_model: str = ""
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    fallback: tuple[Fallback, ...] = ()
    balancing: Balancing = Balancing.LEAST_OUTSTANDING
    weights: tuple[float, ...] = ()
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    advice: str = ""


class Integration:
    """Backends under one id, one for each of its endpoints."""

    def __init__(self, spec: IntegrationSpec, *backends: Backend) -> None:
        self.spec = spec
        weights = spec.weights or (1.0,) * len(backends)
        self.endpoints = tuple(
            Endpoint(spec.id, backend, weight, spec.breaker)
            for backend, weight in zip(backends, weights, strict=True)
        )
        self.limiter = Limiter(spec.id, spec.limits.max_concurrency, spec.limits.max_queue)
        self._balancer = Balancer(spec.balancing)

    @property
    def models(self) -> tuple[Model, ...]:
        """What its endpoints offered when they were last asked, each model once."""
        if len(self.endpoints) == 1:
            return self.endpoints[0].models
        # Those of usable endpoints first: they say best how a model is doing.
        ranked = sorted(self.endpoints, key=lambda item: not item.usable)
        known: dict[str, Model] = {}
        for endpoint in ranked:
            for model in endpoint.models:
                known.setdefault(model.id, model)
        return tuple(known.values())

    @property
    def status(self) -> IntegrationStatus:
        """How it is doing, by the last time it was asked."""
        state = self.state
        shown = next((item for item in self.endpoints if item.state is state), self.endpoints[0])
        failure = None if state is IntegrationState.UP else shown.failure
        return IntegrationStatus(
            self.spec.id,
            self.spec.kind,
            state,
            tuple(address for item in self.endpoints for address in item.backend.endpoints),
            last_probe=shown.last_probe,
            latency_ms=shown.latency_ms,
            default_model=self.model_for(Capability.CHAT),
            capabilities=tuple(item.value for item in Capability if self._shows(item)),
            error=failure.message if failure else "",
            reason=failure.reason if failure else None,
        )

    @property
    def state(self) -> IntegrationState:
        """Whether one of its endpoints is usable, by the last time they were asked."""
        states = [item.state for item in self.endpoints]
        return min(states, key=_BEST_FIRST.index)

    def lists_all_models(self, capability: Capability) -> bool:
        """Whether a model that none of its endpoints named can be ruled out."""
        return all(item.backend.lists_all_models(capability) for item in self.endpoints)

    def offers(self, capability: Capability) -> bool:
        """Whether one of its endpoints has a capability, as far as is known."""
        return any(item.backend.offers(capability) for item in self.endpoints)

    def pick(
        self, model: str, capability: Capability, tried: Container[Endpoint], session_id: str = ""
    ) -> Endpoint:
        """The endpoint for a call: one that has the model, is well, and was not tried before.

        The wishes are given up in that order from the last: a call is never without an endpoint.
        """
        having = [item for item in self.endpoints if item.may_have(model, capability)]
        fitting = having or list(self.endpoints)
        well = [item for item in fitting if item.usable]
        left = [item for item in well if item not in tried]
        left = left or [item for item in fitting if item not in tried]
        return self._balancer.pick(left or well or fitting, session_id)

    def has_untried(self, model: str, capability: Capability, tried: Container[Endpoint]) -> bool:
        """Whether there is another endpoint for a call, which is well."""
        return any(
            item.usable and item not in tried and item.may_have(model, capability)
            for item in self.endpoints
        )

    async def aclose(self) -> None:
        """Closes every connection."""
        for item in self.endpoints:
            await item.aclose()

    async def retire(self) -> None:
        """Closes every connection once the last call is done."""
        await self.limiter.idle()
        await self.aclose()

    async def refresh(self, timeout_s: float) -> tuple[Model, ...]:
        """Asks every endpoint for its models, and notes how they are doing.

        Raises:
            Failure: None of them answers in time, and as it should.
        """
        asked = await asyncio.gather(*(_asked(item, timeout_s) for item in self.endpoints))
        failures = [failure for failure in asked if failure is not None]
        if len(failures) == len(asked):
            raise failures[0]
        return self.models

    def model_for(
        self, capability: Capability, allowed: Callable[[str], bool] = lambda _: True
    ) -> str:
        """The model for a request that names none, of those that are allowed.

        Empty where there is no fitting one.
        """
        models = self.models
        fitting = [item for item in models if item.can(capability) and allowed(item.id)]
        if capability.is_fitted:  # each knows labels or features of its own: none is a default
            return fitting[0].id if len(fitting) == 1 else ""
        spec = self.spec
        configured = spec.default_model if capability.is_chat else spec.default_embed_model
        if configured and allowed(configured):
            known = next((model for model in models if model.answers_to(configured)), None)
            if capability is not Capability.VISION or not known or known in fitting:
                return configured
        if capability is Capability.VISION:
            fitting.sort(key=lambda model: model.accepts_images is not True)
        wanted = capability is Capability.EMBED
        named = (model for model in fitting if looks_like_embedding(model.id) is wanted)
        chosen = next(named, fitting[0] if fitting else None)
        return chosen.id if chosen else ""

    def _shows(self, capability: Capability) -> bool:
        """Whether it is known to have a capability, and a model for it.

        Fitted models may be in memory without being listed.
        """
        if not self.offers(capability):
            return False
        if capability.is_fitted:
            return self.state is IntegrationState.UP
        return bool(self.models and self.model_for(capability))


#: Which state of its endpoints is an integration's.
_BEST_FIRST = (
    IntegrationState.UP,
    IntegrationState.STARTING,
    IntegrationState.UNKNOWN,
    IntegrationState.DOWN,
)


async def _asked(endpoint: Endpoint, timeout_s: float) -> Failure | None:
    try:
        await endpoint.refresh(timeout_s)
    except Failure as failure:
        return failure
    return None


@functools.lru_cache(maxsize=4096)
def looks_like_embedding(name: str) -> bool:
    """Whether a model's name says that it embeds."""
    return any(part in name.lower() for part in EMBEDDING_NAMES)
