"""A configured backend: its settings, what it last said, and how it is doing."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace

from atmosphere_grpc.backends import Backend
from atmosphere_grpc.domain import Capability, IntegrationState, IntegrationStatus, Model
from atmosphere_grpc.errors import Failure, Reason
from atmosphere_grpc.integrations.limiter import Limiter

log = logging.getLogger(__name__)

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
class IntegrationSpec:
    """What the configuration says of an integration; an empty model means the first fitting one."""

    id: str
    kind: str
    default_model: str = ""
    default_embed_model: str = ""
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()


class Integration:
    """A backend under its id.

    `models` and `status` are what it said when it was last asked; `refresh` asks.
    """

    def __init__(self, spec: IntegrationSpec, backend: Backend) -> None:
        self.spec = spec
        self.backend = backend
        self.models: tuple[Model, ...] = ()
        self.limiter = Limiter(spec.id, spec.limits.max_concurrency, spec.limits.max_queue)
        self._status = IntegrationStatus(
            spec.id, spec.kind, IntegrationState.UNKNOWN, backend.endpoints
        )

    @property
    def status(self) -> IntegrationStatus:
        """How it is doing, by the last time it was asked."""
        capabilities = tuple(c.value for c in Capability if self.model_for(c))
        return replace(
            self._status,
            endpoints=self.backend.endpoints,
            default_model=self.model_for(Capability.CHAT),
            capabilities=capabilities if self.models else (),
        )

    @property
    def state(self) -> IntegrationState:
        """Whether it is usable, by the last time it was asked."""
        return self._status.state

    async def retire(self) -> None:
        """Closes the backend once its last call is done."""
        await self.limiter.idle()
        await self.backend.aclose()

    async def refresh(self, timeout_s: float) -> tuple[Model, ...]:
        """Asks for its models, and notes how it is doing.

        Raises:
            Failure: It does not answer in time, or not as it should.
        """
        began = time.perf_counter()
        failure: Failure | None = None
        try:
            async with asyncio.timeout(timeout_s):
                self.models = await self.backend.models()
        except Failure as error:
            failure = error
        except TimeoutError:
            text = f'integration "{self.spec.id}": no answer within {timeout_s:g} s'
            failure = Failure(Reason.BACKEND_UNAVAILABLE, f"{text} – is it overloaded?")
        self._note(failure, (time.perf_counter() - began) * 1000)
        if failure is not None:
            raise failure
        return self.models

    def model_for(self, capability: Capability) -> str:
        """The model for a request that names none; empty where there is no fitting one."""
        spec = self.spec
        configured = (
            spec.default_model if capability is Capability.CHAT else spec.default_embed_model
        )
        if configured:
            return configured
        fitting = [model for model in self.models if can(model, capability)]
        wanted = capability is Capability.EMBED
        by_name = [model.id for model in fitting if looks_like_embedding(model.id) is wanted]
        return next(iter([*by_name, *(model.id for model in fitting)]), "")

    def _note(self, failure: Failure | None, latency_ms: float) -> None:
        state = IntegrationState.DOWN if failure else IntegrationState.UP
        if state is not self._status.state:
            if failure is None:
                log.info('integration "%s" is up: %d models', self.spec.id, len(self.models))
            else:
                why = f" [{failure.detail}]" if failure.detail else ""
                log.warning("%s%s", failure.message, why)
                if failure.words:
                    log.debug("in the backend's words: %s", failure.words)
        self._status = replace(
            self._status,
            state=state,
            last_probe=time.time(),
            latency_ms=latency_ms,
            error=failure.message if failure else "",
            reason=failure.reason if failure else None,
        )


def can(model: Model, capability: Capability) -> bool:
    """Whether a model has a capability; true also where its server does not say."""
    return not model.capabilities or capability.value in model.capabilities


def looks_like_embedding(name: str) -> bool:
    """Whether a model's name says that it embeds."""
    return any(part in name.lower() for part in EMBEDDING_NAMES)
